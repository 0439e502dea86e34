// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: the first instruction set (-mcpu=v1): no less-than jumps, no 32-bit
 * registers.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int isa_v1(struct xdp_md *ctx)
{
	__u32 length = ctx->data_end - ctx->data;

	if (length < 60)
		return XDP_ABORTED;
	return (__s32)(length - 1000) < 0 ? XDP_PASS : XDP_DROP;
}

char _license[] SEC("license") = "GPL";

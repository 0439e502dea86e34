// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: 32-bit jumps and arithmetic (-mcpu=v3): the object needs JMP32
 * already.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int jmp32(struct xdp_md *ctx)
{
	__u32 length = ctx->data_end - ctx->data;
	__s32 rest = (__s32)(ctx->ingress_ifindex - length);

	if (rest < -1000)
		return XDP_DROP;
	return length * 2654435761u > 0x80000000u ? XDP_ABORTED : XDP_PASS;
}

char _license[] SEC("license") = "GPL";

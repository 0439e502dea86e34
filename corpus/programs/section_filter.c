// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a section whose name does not say what the program is for (iproute2's
 * way): the hook must be named.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("filter")
int section_filter(struct xdp_md *ctx)
{
	return ctx->data_end - ctx->data > 100 ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";

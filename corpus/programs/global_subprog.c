// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: global subprograms, verified on their own: one takes numbers, one the
 * context.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

__noinline int mix(__u32 left, __u32 right)
{
	return (left * 31 + right) & 1;
}

__noinline int long_frame(struct xdp_md *ctx)
{
	return ctx->data_end - ctx->data > 256;
}

SEC("xdp")
int global_subprog(struct xdp_md *ctx)
{
	if (long_frame(ctx))
		return XDP_DROP;
	return mix(ctx->ingress_ifindex, ctx->rx_queue_index) ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";

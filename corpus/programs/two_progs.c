// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: two programs in one section that share a subprogram. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

__u64 counts[2];

static __noinline int small(struct xdp_md *ctx)
{
	return ctx->data_end - ctx->data < 128;
}

SEC("xdp")
int first(struct xdp_md *ctx)
{
	counts[0] += 1;
	return small(ctx) ? XDP_PASS : XDP_DROP;
}

SEC("xdp")
int second(struct xdp_md *ctx)
{
	counts[1] += 1;
	return small(ctx) ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";

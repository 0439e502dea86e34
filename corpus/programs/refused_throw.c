// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: bpf_throw leaves the program past anything that follows it. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern void bpf_throw(__u64 cookie) __ksym;

SEC("xdp")
int refused_throw(struct xdp_md *ctx)
{
	if (ctx->data_end - ctx->data > 100)
		bpf_throw(XDP_DROP);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";

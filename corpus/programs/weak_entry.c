// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: an entry program that is a weak symbol. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp") __weak
int weak_entry(struct xdp_md *ctx)
{
	return ctx->data_end - ctx->data > 100 ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";

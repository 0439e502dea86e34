// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: no license section. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int no_license(struct xdp_md *ctx)
{
	return ctx->data_end - ctx->data > 100 ? XDP_DROP : XDP_PASS;
}

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: BTF declaration tags on the entry program and on a subprogram's
 * argument.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define tag(text) __attribute__((btf_decl_tag(text)))

static __noinline int odd(__u32 value tag("owner:value"))
{
	return value & 1;
}

SEC("xdp") tag("owner:entry")
int decl_tag(struct xdp_md *ctx)
{
	return odd(ctx->data_end - ctx->data) ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";

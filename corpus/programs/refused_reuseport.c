// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a type outside the policy's table: choice of a reuseport socket. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("sk_reuseport")
int refused_reuseport(struct sk_reuseport_md *ctx)
{
	return SK_PASS;
}

char _license[] SEC("license") = "GPL";

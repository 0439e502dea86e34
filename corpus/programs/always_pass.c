// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a program that always returns a code in S, and reads nothing. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int always_pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";

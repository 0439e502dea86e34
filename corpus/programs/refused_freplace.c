// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a program that replaces another program's function. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("freplace/global_subprog")
int refused_freplace(struct xdp_md *ctx)
{
	return XDP_DROP;
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: verdict by map at netfilter (libbpf knows the section since 1.3). */
#include "verdict.h"

struct bpf_nf_ctx;

SEC("netfilter")
int verdict_netfilter(struct bpf_nf_ctx *ctx)
{
	return count_and_decide(1) & 1;
}

char _license[] SEC("license") = "GPL";

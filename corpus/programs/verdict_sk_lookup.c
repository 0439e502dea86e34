// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: verdict by map at socket lookup. */
#include "verdict.h"

SEC("sk_lookup")
int verdict_sk_lookup(struct bpf_sk_lookup *ctx)
{
	return count_and_decide(1) & 1;
}

char _license[] SEC("license") = "GPL";

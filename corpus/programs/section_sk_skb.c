// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a section name that says the type and not the attach type: the hook
 * must be named (here the verdict without a parser).
 */
#include "verdict.h"

SEC("sk_skb")
int section_sk_skb(struct __sk_buff *skb)
{
	return count_and_decide(SK_PASS) & 1;
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: verdict by map on a socket's stream. */
#include "verdict.h"

SEC("sk_skb/stream_verdict")
int verdict_sk_skb(struct __sk_buff *skb)
{
	return count_and_decide(SK_PASS) & 1;
}

char _license[] SEC("license") = "GPL";

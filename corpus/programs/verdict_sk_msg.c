// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: verdict by map on a socket's messages. */
#include "verdict.h"

SEC("sk_msg")
int verdict_sk_msg(struct sk_msg_md *ctx)
{
	return count_and_decide(SK_PASS) & 1;
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: verdict by map of a socket filter (how many bytes to keep). */
#include "verdict.h"

SEC("socket")
int verdict_socket(struct __sk_buff *skb)
{
	return count_and_decide(-1);
}

char _license[] SEC("license") = "GPL";

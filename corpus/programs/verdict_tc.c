// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: verdict by map at tc (clsact), by both of its section names. */
#include <linux/pkt_cls.h>
#include "verdict.h"

SEC("tc")
int verdict_tc(struct __sk_buff *skb)
{
	return count_and_decide(TC_ACT_UNSPEC);
}

SEC("classifier")
int verdict_classifier(struct __sk_buff *skb)
{
	return count_and_decide(TC_ACT_UNSPEC);
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: verdict by map at a cgroup's packets, each direction with its own
 * range of codes.
 */
#include "verdict.h"

SEC("cgroup_skb/ingress")
int verdict_ingress(struct __sk_buff *skb)
{
	return count_and_decide(1) & 1;
}

SEC("cgroup_skb/egress")
int verdict_egress(struct __sk_buff *skb)
{
	return count_and_decide(1) & 3;
}

char _license[] SEC("license") = "GPL";

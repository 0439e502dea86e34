// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a section name that says the type and not the direction: the hook
 * must be named.
 */
#include "verdict.h"

SEC("cgroup/skb")
int section_cgroup_skb(struct __sk_buff *skb)
{
	return count_and_decide(1) & 1;
}

char _license[] SEC("license") = "GPL";

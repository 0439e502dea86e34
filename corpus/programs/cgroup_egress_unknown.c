// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: r0 unknown at the exit of a range-checked hook: a map's value, masked
 * to 0..3.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "verdict.h"

SEC("cgroup_skb/egress")
int cgroup_egress_unknown(struct __sk_buff *skb)
{
	return count_and_decide(1) & 3;
}

char _license[] SEC("license") = "GPL";

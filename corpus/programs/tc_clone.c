// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a tc egress program that clones a marked packet back to its own
 * interface, so that it runs again inside its own run.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include "verdict.h"

SEC("tc")
int tc_clone(struct __sk_buff *skb)
{
	if (skb->mark == 77) {
		skb->mark = 78;
		bpf_clone_redirect(skb, skb->ifindex, 0);
	}
	return count_and_decide(TC_ACT_OK);
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: bpf_redirect in a tc program's static subprogram. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

volatile const __u32 out_ifindex = 0;

static __noinline int send(__u32 ifindex)
{
	return bpf_redirect(ifindex, 0);
}

SEC("tc")
int tc_redirect(struct __sk_buff *skb)
{
	return out_ifindex && skb->mark ? send(out_ifindex) : TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "GPL";

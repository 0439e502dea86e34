// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: several programs of different types in different sections. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

__u64 packets;

SEC("xdp")
int on_xdp(struct xdp_md *ctx)
{
	packets += 1;
	return XDP_PASS;
}

SEC("tc")
int on_tc(struct __sk_buff *skb)
{
	packets += 1;
	return skb->mark ? 2 : 0;
}

SEC("cgroup_skb/egress")
int on_egress(struct __sk_buff *skb)
{
	packets += 1;
	return skb->len < 1000;
}

SEC("raw_tp/sys_enter")
int on_enter(struct bpf_raw_tracepoint_args *ctx)
{
	return 0;
}

char _license[] SEC("license") = "GPL";

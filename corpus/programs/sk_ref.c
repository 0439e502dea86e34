// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a socket reference taken and released, on every way to an exit. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

__u64 found;

SEC("tc")
int sk_ref(struct __sk_buff *skb)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	int ret = TC_ACT_OK;

	tuple.ipv4.daddr = bpf_htonl(0x7f000001);
	tuple.ipv4.dport = bpf_htons(80);
	sk = bpf_sk_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return TC_ACT_UNSPEC;
	found += 1;
	if (sk->state != BPF_TCP_LISTEN)
		ret = TC_ACT_SHOT;
	bpf_sk_release(sk);
	return ret;
}

char _license[] SEC("license") = "GPL";

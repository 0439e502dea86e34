// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a stream parser: it returns a length. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("sk_skb/stream_parser")
int refused_parser(struct __sk_buff *skb)
{
	return skb->len;
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a type outside the policy's table: flow dissection. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("flow_dissector")
int refused_dissector(struct __sk_buff *skb)
{
	return BPF_OK;
}

char _license[] SEC("license") = "GPL";

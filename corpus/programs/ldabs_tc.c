// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: LD_ABS at tc, where leaving at once means 0, which is TC_ACT_OK. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

unsigned long long load_half(void *skb, unsigned long long offset)
	asm("llvm.bpf.load.half");

SEC("tc")
int ldabs_tc(struct __sk_buff *skb)
{
	return load_half(skb, 12) == 0x86dd ? TC_ACT_UNSPEC : TC_ACT_SHOT;
}

char _license[] SEC("license") = "GPL";

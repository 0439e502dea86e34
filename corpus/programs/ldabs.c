// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: LD_ABS and LD_IND in a socket filter: a load behind the packet's end
 * leaves the program at once, with 0.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

unsigned long long load_byte(void *skb, unsigned long long offset)
	asm("llvm.bpf.load.byte");
unsigned long long load_half(void *skb, unsigned long long offset)
	asm("llvm.bpf.load.half");

SEC("socket")
int ldabs(struct __sk_buff *skb)
{
	__u64 proto = load_half(skb, 12);
	__u64 at = load_byte(skb, 0) & 15;

	if (proto == 0x86dd)
		return skb->len;
	return load_byte(skb, at) & 1 ? skb->len : 0;
}

char _license[] SEC("license") = "GPL";

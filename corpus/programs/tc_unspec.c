// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: tc's negative code, once with its upper half set (-1 in 64 bits) and
 * once clear (0xffffffff), and codes that are not in the header's list.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("tc")
int tc_unspec(struct __sk_buff *skb)
{
	asm volatile ("					\
	r2 = *(u32 *)(r1 + 8);				\
	r0 = -1;					\
	if r2 == 0 goto 1f;				\
	w0 = -1;					\
	if r2 == 1 goto 1f;				\
	r0 = 9;						\
	if r2 == 2 goto 1f;				\
	r0 = r2;					\
1:	exit;						\
"	::: "memory");
	__builtin_unreachable();
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a loop whose head is the body's first instruction. The context comes
 * in once; the turns after that carry a number in r1 (verdict, and turns to go
 * above it).
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int loop_first(struct xdp_md *ctx)
{
	asm volatile ("					\
1:	w2 = w1;					\
	if r2 > 15 goto 2f;				\
	if r2 < 4 goto 3f;				\
	r2 -= 4;					\
	r1 = r2;					\
	goto 1b;					\
2:	r3 = *(u32 *)(r1 + 0);				\
	r4 = *(u32 *)(r1 + 4);				\
	r5 = r3;					\
	r5 += 1;					\
	r0 = 1;						\
	if r5 > r4 goto 4f;				\
	r0 = *(u8 *)(r3 + 0);				\
	r0 &= 1;					\
	r0 += 1;					\
4:	r0 += 12;					\
	r1 = r0;					\
	goto 1b;					\
3:	r0 = r2;					\
	exit;						\
"	::: "memory");
	__builtin_unreachable();
}

char _license[] SEC("license") = "GPL";

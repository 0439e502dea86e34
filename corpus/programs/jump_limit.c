// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a body near the limit of a 16-bit jump: one jump of exactly +32767
 * and an early exit whose way to the body's end is as long. With TOO_FAR
 * (jump_too_far.o) there is one before it, too far away. What r0 is at these is
 * not known. No context load lies between: the kernel makes two of it.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#ifdef TOO_FAR
#define NAME jump_too_far
#define FIRST "if r2 != 3 goto +2;  r0 = r3;  exit;"
#else
#define NAME jump_limit
#define FIRST ""
#endif

SEC("xdp")
int NAME(struct xdp_md *ctx)
{
	asm volatile ("					\
	r0 = 1;						\
	r2 = *(u32 *)(r1 + 12);				\
	r3 = *(u32 *)(r1 + 16);				\
	" FIRST "					\
	if r2 == 0 goto 9f;				\
	if r2 != 1 goto 1f;				\
	r0 = r3;					\
	exit;						\
1:	.rept 64;					\
	r0 += 1;					\
	.endr;						\
	if r2 != 2 goto 2f;				\
	r0 = 2;						\
	exit;						\
2:	.rept 32697;					\
	r0 += 1;					\
	.endr;						\
9:	r0 &= 1;					\
	r0 += 1;					\
	exit;						\
"	::: "memory");
	__builtin_unreachable();
}

char _license[] SEC("license") = "GPL";

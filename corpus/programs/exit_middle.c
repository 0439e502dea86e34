// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: exits in the middle and at the end, with code that only a jump
 * reaches behind each.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int exit_middle(struct xdp_md *ctx)
{
	asm volatile ("					\
	r2 = *(u32 *)(r1 + 0);				\
	r3 = *(u32 *)(r1 + 4);				\
	r0 = r3;					\
	r0 -= r2;					\
	if r0 > 200 goto 2f;				\
	if r0 > 100 goto 1f;				\
	r0 &= 3;					\
	exit;						\
1:	r0 &= 1;					\
	exit;						\
2:	r0 = 2;						\
	exit;						\
"	::: "memory");
	__builtin_unreachable();
}

char _license[] SEC("license") = "GPL";

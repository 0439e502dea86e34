// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: several exits with different known constants, one whose constant
 * differs by the way that leads to it, and one that is known on all ways.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int exits_const(struct xdp_md *ctx)
{
	asm volatile ("					\
	r2 = *(u32 *)(r1 + 0);				\
	r3 = *(u32 *)(r1 + 4);				\
	r3 -= r2;					\
	if r3 > 400 goto 5f;				\
	if r3 > 300 goto 4f;				\
	if r3 > 200 goto 3f;				\
	if r3 > 100 goto 2f;				\
	r0 = 2;						\
	exit;						\
2:	r0 = 1;						\
	exit;						\
3:	r0 = 4;						\
	goto 6f;					\
4:	r0 = 3;						\
6:	exit;						\
5:	r0 = 2;						\
	if r3 > 500 goto 7f;				\
	r0 = 1;						\
	r0 += 1;					\
7:	exit;						\
"	::: "memory");
	__builtin_unreachable();
}

char _license[] SEC("license") = "GPL";

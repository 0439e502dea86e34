// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: an exit that is not the last instruction; the body ends in a jump
 * backwards, nothing may fall through behind it.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int ends_in_goto(struct xdp_md *ctx)
{
	asm volatile ("					\
	r2 = *(u32 *)(r1 + 12);				\
	r0 = 2;						\
	if r2 != 0 goto 2f;				\
1:	exit;						\
2:	r0 = 1;						\
	goto 1b;					\
"	::: "memory");
	__builtin_unreachable();
}

char _license[] SEC("license") = "GPL";

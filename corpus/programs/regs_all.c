// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: r6 to r9 all in use across a helper call, no stack. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int regs_all(struct xdp_md *ctx)
{
	asm volatile ("					\
	r6 = *(u32 *)(r1 + 0);				\
	r7 = *(u32 *)(r1 + 4);				\
	r8 = *(u32 *)(r1 + 12);				\
	r9 = *(u32 *)(r1 + 16);				\
	call %[get_smp_processor_id];			\
	r0 = r7;					\
	r0 -= r6;					\
	r0 += r8;					\
	r0 += r9;					\
	r0 &= 1;					\
	r0 += 1;					\
	exit;						\
"	:: [get_smp_processor_id]"i"(BPF_FUNC_get_smp_processor_id)
	: "memory");
	__builtin_unreachable();
}

char _license[] SEC("license") = "GPL";

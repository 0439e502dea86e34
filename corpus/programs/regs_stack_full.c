// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: r6 to r9 all in use across a helper call and all 512 bytes of stack
 * written: no room for anything inline.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int regs_stack_full(struct xdp_md *ctx)
{
	asm volatile ("					\
	r6 = *(u32 *)(r1 + 0);				\
	r7 = *(u32 *)(r1 + 4);				\
	r8 = *(u32 *)(r1 + 12);				\
	r9 = *(u32 *)(r1 + 16);				\
	r7 -= r6;					\
	.irp at,8,16,24,32,40,48,56,64,72,80,88,96,104,112,120,128,136,144,152,160,168,176,184,192,200,208,216,224,232,240,248,256,264,272,280,288,296,304,312,320,328,336,344,352,360,368,376,384,392,400,408,416,424,432,440,448,456,464,472,480,488,496,504,512;\
	*(u64 *)(r10 - \\at) = r7;			\
	.endr;						\
	call %[get_smp_processor_id];			\
	r0 = *(u64 *)(r10 - 512);			\
	r1 = *(u64 *)(r10 - 8);				\
	r0 += r1;					\
	r0 += r7;					\
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

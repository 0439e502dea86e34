// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: all 512 bytes of stack, callee-saved registers left over. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int stack_full(struct xdp_md *ctx)
{
	asm volatile ("					\
	r2 = *(u32 *)(r1 + 0);				\
	r3 = *(u32 *)(r1 + 4);				\
	r3 -= r2;					\
	.irp at,8,16,24,32,40,48,56,64,72,80,88,96,104,112,120,128,136,144,152,160,168,176,184,192,200,208,216,224,232,240,248,256,264,272,280,288,296,304,312,320,328,336,344,352,360,368,376,384,392,400,408,416,424,432,440,448,456,464,472,480,488,496,504,512;\
	*(u64 *)(r10 - \\at) = r3;			\
	r3 += 1;					\
	.endr;						\
	r6 = *(u64 *)(r10 - 8);				\
	call %[get_smp_processor_id];			\
	r0 = *(u64 *)(r10 - 512);			\
	r0 ^= r6;					\
	r0 &= 64;					\
	r0 >>= 6;					\
	r0 += 1;					\
	exit;						\
"	:: [get_smp_processor_id]"i"(BPF_FUNC_get_smp_processor_id)
	: "memory");
	__builtin_unreachable();
}

char _license[] SEC("license") = "GPL";

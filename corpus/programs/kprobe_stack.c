// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a kprobe program with 400 bytes of stack and as much in its
 * subprogram: it loads only where the kernel gives each a private stack, and
 * any tail call takes that away.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

__u64 sum;

static __noinline int fill(__u64 value)
{
	volatile __u64 words[50];

#pragma unroll
	for (int i = 0; i < 50; i++)
		words[i] = value + i;
	return words[value & 31] & 0xff;
}

SEC("kprobe/do_nanosleep")
int kprobe_stack(void *ctx)
{
	volatile __u64 words[50];
	__u64 value = bpf_get_current_pid_tgid() & 0xff;

#pragma unroll
	for (int i = 0; i < 50; i++)
		words[i] = value + i;
	sum = fill(value) + words[value & 31];
	return 0;
}

char _license[] SEC("license") = "GPL";

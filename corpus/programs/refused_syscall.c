// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a syscall program: the kernel allows no tail call there. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("syscall")
int refused_syscall(void *ctx)
{
	return 0;
}

char _license[] SEC("license") = "GPL";

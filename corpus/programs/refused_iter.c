// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a type outside the policy's table: an iterator. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("iter/task")
int refused_iter(void *ctx)
{
	return 0;
}

char _license[] SEC("license") = "GPL";

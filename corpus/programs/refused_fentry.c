// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a type outside the policy's table: fentry. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("fentry/do_nanosleep")
int refused_fentry(unsigned long long *ctx)
{
	return 0;
}

char _license[] SEC("license") = "GPL";

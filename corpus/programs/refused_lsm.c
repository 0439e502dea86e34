// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: an LSM program that does not sleep. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("lsm/file_open")
int refused_lsm(unsigned long long *ctx)
{
	return 0;
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a sleepable LSM program: the kernel allows no tail call there. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("lsm.s/file_open")
int refused_lsm_sleepable(unsigned long long *ctx)
{
	return 0;
}

char _license[] SEC("license") = "GPL";

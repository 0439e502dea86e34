// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a .ksyms variable without a type: an address from kallsyms. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern const void schedule __ksym;

SEC("xdp")
int ksyms_var(struct xdp_md *ctx)
{
	return (__u64)&schedule ? XDP_PASS : XDP_DROP;
}

char _license[] SEC("license") = "GPL";

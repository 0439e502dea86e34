// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a .ksyms variable with a type from the kernel's BTF, a per-CPU one. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern const int bpf_prog_active __ksym;

int active;

SEC("xdp")
int ksyms_var_typed(struct xdp_md *ctx)
{
	const int *here = bpf_this_cpu_ptr(&bpf_prog_active);

	active = *here;
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";

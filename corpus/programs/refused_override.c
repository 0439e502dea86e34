// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: bpf_override_return, which no program of a PROG_ARRAY may call. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct pt_regs;

SEC("kprobe/do_nanosleep")
int refused_override(struct pt_regs *ctx)
{
	bpf_override_return(ctx, 0);
	return 0;
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: verdict by map of kprobe programs, on entry and on return. */
#include "verdict.h"

struct pt_regs;

SEC("kprobe/do_nanosleep")
int verdict_kprobe(struct pt_regs *ctx)
{
	return count_and_decide(0);
}

SEC("kretprobe/do_nanosleep")
int verdict_kretprobe(struct pt_regs *ctx)
{
	return count_and_decide(0);
}

char _license[] SEC("license") = "GPL";

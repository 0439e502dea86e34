// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: verdict by map of a kprobe program for many functions. */
#include "verdict.h"

struct pt_regs;

SEC("kprobe.multi/do_nanosleep*")
int verdict_kprobe_multi(struct pt_regs *ctx)
{
	return count_and_decide(0);
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: verdict by map of a tracepoint program, by both of its section names. */
#include "verdict.h"

SEC("tracepoint/syscalls/sys_enter_getpgid")
int verdict_tracepoint(void *ctx)
{
	return count_and_decide(0);
}

SEC("tp/syscalls/sys_exit_getpgid")
int verdict_tp(void *ctx)
{
	return count_and_decide(0);
}

char _license[] SEC("license") = "GPL";

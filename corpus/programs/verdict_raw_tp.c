// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: verdict by map of raw tracepoint programs, which nobody looks at; one
 * of them of the type that may write to its arguments.
 */
#include "verdict.h"

SEC("raw_tp/sys_enter")
int verdict_raw_tp(struct bpf_raw_tracepoint_args *ctx)
{
	return count_and_decide(0);
}

SEC("raw_tp.w/bpf_test_finish")
int verdict_raw_tp_w(struct bpf_raw_tracepoint_args *ctx)
{
	return count_and_decide(0);
}

char _license[] SEC("license") = "GPL";

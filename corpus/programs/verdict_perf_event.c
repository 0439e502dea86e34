// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: verdict by map of a perf event program. */
#include "verdict.h"

struct bpf_perf_event_data;

SEC("perf_event")
int verdict_perf_event(struct bpf_perf_event_data *ctx)
{
	return count_and_decide(1);
}

char _license[] SEC("license") = "GPL";

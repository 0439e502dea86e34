// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: records by perf event with packet bytes behind them. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, 4);
	__uint(value_size, 4);
} events SEC(".maps");

SEC("xdp")
int log_perf(struct xdp_md *ctx)
{
	__u64 length = ctx->data_end - ctx->data;
	__u64 sample = length < 64 ? length : 64;

	bpf_perf_event_output(ctx, &events, BPF_F_CURRENT_CPU | sample << 32,
			      &length, sizeof(length));
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";

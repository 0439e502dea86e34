// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Counts the frames and bytes that reach it, per CPU; everything passes. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct total {
	__u64 frames;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct total);
} totals SEC(".maps");

SEC("xdp")
int count(struct xdp_md *ctx)
{
	__u32 key = 0;
	struct total *total = bpf_map_lookup_elem(&totals, &key);

	if (total) {
		total->frames++;
		total->bytes += ctx->data_end - ctx->data;
	}
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";

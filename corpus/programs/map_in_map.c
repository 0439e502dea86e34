// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a map of maps whose `values` name another map. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct inner {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u64);
} even SEC(".maps"), odd SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 2);
	__type(key, __u32);
	__array(values, struct inner);
} outer SEC(".maps") = {
	.values = { [0] = &even, [1] = &odd },
};

SEC("xdp")
int map_in_map(struct xdp_md *ctx)
{
	__u32 which = (ctx->data_end - ctx->data) & 1, key = 1;
	void *inner = bpf_map_lookup_elem(&outer, &which);
	__u64 *count = inner ? bpf_map_lookup_elem(inner, &key) : 0;

	if (count)
		__sync_fetch_and_add(count, 1);
	return which ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* For bench/proof.py: about 100 executed instructions for each packet, of the kinds that a packet
 * program is made of: loads from the packet, arithmetic, branches, a map lookup, a counter.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

SEC("xdp")
int hundred(struct xdp_md *ctx)
{
	__u8 *at = (void *)(long)ctx->data;
	__u8 *end = (void *)(long)ctx->data_end;
	__u32 hash = 2166136261u, key;
	__u64 *count;

	if (at + 14 > end)
		return XDP_DROP;
#pragma unroll
	for (int i = 0; i < 14; i++) {
		hash ^= at[i];
		hash *= 16777619u;
		hash ^= hash >> 13;
	}
	key = hash & 15;
	count = bpf_map_lookup_elem(&seen, &key);
	if (count)
		__sync_fetch_and_add(count, 1);
	return hash & 1 ? XDP_PASS : XDP_TX;
}

char _license[] SEC("license") = "GPL";

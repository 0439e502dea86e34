// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a legacy `maps` section with the plain five-word definition. Built
 * twice, without -g (legacy_maps.o) and with it (legacy_maps_g.o).
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct bpf_map_def {
	unsigned int type;
	unsigned int key_size;
	unsigned int value_size;
	unsigned int max_entries;
	unsigned int map_flags;
};

struct bpf_map_def SEC("maps") seen = {
	.type = BPF_MAP_TYPE_HASH,
	.key_size = sizeof(__u32),
	.value_size = sizeof(__u64),
	.max_entries = 64,
	.map_flags = BPF_F_NO_PREALLOC,
};

struct bpf_map_def SEC("maps") total = {
	.type = BPF_MAP_TYPE_ARRAY,
	.key_size = sizeof(__u32),
	.value_size = sizeof(__u64),
	.max_entries = 1,
};

SEC("xdp")
int legacy_maps(struct xdp_md *ctx)
{
	__u32 key = ctx->ingress_ifindex, zero = 0;
	__u64 one = 1, *count;

	count = bpf_map_lookup_elem(&total, &zero);
	if (count)
		__sync_fetch_and_add(count, 1);
	count = bpf_map_lookup_elem(&seen, &key);
	if (count) {
		__sync_fetch_and_add(count, 1);
		return XDP_DROP;
	}
	bpf_map_update_elem(&seen, &key, &one, BPF_ANY);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";

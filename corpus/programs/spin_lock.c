// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a spin lock in a map value. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct bucket {
	struct bpf_spin_lock lock;
	__u32 tokens;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bucket);
} buckets SEC(".maps");

SEC("xdp")
int spin_lock(struct xdp_md *ctx)
{
	__u32 key = 0;
	struct bucket *bucket = bpf_map_lookup_elem(&buckets, &key);
	int ret = XDP_DROP;

	if (!bucket)
		return XDP_ABORTED;
	bpf_spin_lock(&bucket->lock);
	if (bucket->tokens) {
		bucket->tokens -= 1;
		ret = XDP_PASS;
	}
	bpf_spin_unlock(&bucket->lock);
	return ret;
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: bpf_redirect to the interface that a map names. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} out SEC(".maps");

SEC("xdp")
int xdp_redirect(struct xdp_md *ctx)
{
	__u32 key = 0, *ifindex = bpf_map_lookup_elem(&out, &key);

	if (!ifindex || !*ifindex)
		return XDP_PASS;
	return bpf_redirect(*ifindex, 0);
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Drops frames whose Ethernet type is in the map `unwanted`; the rest passes. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u16);	/* Ethernet type, host order */
	__type(value, __u8);
} unwanted SEC(".maps");

SEC("xdp")
int guard(struct xdp_md *ctx)
{
	__u8 *frame = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u16 type;

	if ((void *)(frame + 14) > end)
		return XDP_DROP;
	type = frame[12] << 8 | frame[13];
	return bpf_map_lookup_elem(&unwanted, &type) ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";

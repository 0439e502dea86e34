// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* What only fuzzing finds: a branch behind a magic number, and one behind a map's content. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u16);
	__type(value, __u8);
} ports SEC(".maps");

SEC("xdp")
int rare(struct xdp_md *ctx)
{
	__u8 *data = (__u8 *)(long)ctx->data, *end = (__u8 *)(long)ctx->data_end;
	__u16 port;

	if (data + 40 > end)
		return XDP_PASS;
	if (*(__u32 *)(data + 26) == 0x4a17c0de)
		return XDP_TX;
	port = *(__u16 *)(data + 36);
	if (bpf_map_lookup_elem(&ports, &port))
		return XDP_DROP;
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";

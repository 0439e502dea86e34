// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: the thesis's metrics. Packets and bytes per protocol in a per-CPU
 * array; every packet passes.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "packet.h"

enum kind { OTHER, ARP, IPV4, IPV6_TCP, IPV6_UDP, IPV6_OTHER, KINDS };

struct counter {
	__u64 packets;
	__u64 bytes;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, KINDS);
	__type(key, __u32);
	__type(value, struct counter);
} counters SEC(".maps");

static __always_inline enum kind kind_of(void *data, void *end)
{
	struct ip6 *ip;
	__u16 proto;
	void *at = network_header(data, end, &proto);

	if (!at)
		return OTHER;
	if (proto == PROTO_ARP)
		return ARP;
	if (proto == PROTO_IPV4)
		return IPV4;
	ip = at;
	if (proto != PROTO_IPV6 || (void *)(ip + 1) > end)
		return OTHER;
	if (ip->next == NEXT_TCP)
		return IPV6_TCP;
	if (ip->next == NEXT_UDP)
		return IPV6_UDP;
	return IPV6_OTHER;
}

SEC("xdp")
int metrics(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	__u32 key = kind_of(data, end);
	struct counter *counter = bpf_map_lookup_elem(&counters, &key);

	if (counter) {
		counter->packets++;
		counter->bytes += end - data;
	}
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: the thesis's filter. IPv6/TCP packets to a port in the map `blocked`
 * are dropped, everything else passes.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "packet.h"

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u16);	/* destination port, host order */
	__type(value, __u8);
} blocked SEC(".maps");

SEC("xdp")
int filter(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct ip6 *ip;
	struct tcp *tcp = ip6_tcp(data, end, &ip);
	__u16 port;

	if (!tcp)
		return XDP_PASS;
	port = bpf_ntohs(tcp->dst);
	if (bpf_map_lookup_elem(&blocked, &port))
		return XDP_DROP;
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";

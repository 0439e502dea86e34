// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: the thesis's log. A record of each IPv6/TCP packet in a ring buffer;
 * every packet passes.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "packet.h"

struct record {
	__be32 src[4];
	__be32 dst[4];
	__be16 src_port;
	__be16 dst_port;
	__u32 length;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} records SEC(".maps");

SEC("xdp")
int log_tcp(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	struct record record;
	struct ip6 *ip;
	struct tcp *tcp = ip6_tcp(data, end, &ip);

	if (!tcp)
		return XDP_PASS;
	__builtin_memcpy(record.src, ip->src, sizeof(record.src));
	__builtin_memcpy(record.dst, ip->dst, sizeof(record.dst));
	record.src_port = tcp->src;
	record.dst_port = tcp->dst;
	record.length = end - data;
	bpf_ringbuf_output(&records, &record, sizeof(record), 0);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";

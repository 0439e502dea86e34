/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* Packet headers as they are on the wire, without bit fields, so that one
 * definition serves both byte orders.
 */
#ifndef CORPUS_PACKET_H
#define CORPUS_PACKET_H

#include <linux/types.h>
#include <bpf/bpf_endian.h>

#define PROTO_IPV4	0x0800
#define PROTO_ARP	0x0806
#define PROTO_VLAN	0x8100
#define PROTO_QINQ	0x88a8
#define PROTO_IPV6	0x86dd

#define NEXT_HOP	0
#define NEXT_TCP	6
#define NEXT_UDP	17
#define NEXT_ROUTING	43
#define NEXT_FRAGMENT	44
#define NEXT_DEST	60

struct eth {
	__u8 dst[6];
	__u8 src[6];
	__be16 proto;
};

struct vlan {
	__be16 tci;
	__be16 proto;
};

struct ip6 {
	__be32 flow;
	__be16 payload_len;
	__u8 next;
	__u8 hop_limit;
	__be32 src[4];
	__be32 dst[4];
};

struct ip6_ext {
	__u8 next;
	__u8 len;		/* in units of 8 bytes, the first not counted */
};

struct tcp {
	__be16 src;
	__be16 dst;
	__be32 seq;
	__be32 ack;
	__u8 offset;
	__u8 flags;
	__be16 window;
	__be16 check;
	__be16 urgent;
};

/* Passes Ethernet and at most two VLAN tags; the network header, or NULL
 * where the frame is too short. The protocol goes to *proto, in host order.
 */
static __always_inline void *network_header(void *data, void *end, __u16 *proto)
{
	struct eth *eth = data;
	struct vlan *tag;
	void *at = eth + 1;

	if (at > end)
		return 0;
	*proto = bpf_ntohs(eth->proto);
#pragma unroll
	for (int i = 0; i < 2; i++) {
		if (*proto != PROTO_VLAN && *proto != PROTO_QINQ)
			break;
		tag = at;
		if ((void *)(tag + 1) > end)
			return 0;
		*proto = bpf_ntohs(tag->proto);
		at = tag + 1;
	}
	return at;
}

/* The TCP header of an IPv6 frame behind at most three extension headers, or
 * NULL; *ip is the IPv6 header.
 */
static __always_inline struct tcp *ip6_tcp(void *data, void *end, struct ip6 **ip)
{
	struct ip6_ext *ext;
	struct tcp *tcp;
	__u16 proto;
	void *at = network_header(data, end, &proto);
	__u8 next;

	if (!at || proto != PROTO_IPV6)
		return 0;
	*ip = at;
	if ((void *)(*ip + 1) > end)
		return 0;
	next = (*ip)->next;
	at = *ip + 1;
#pragma unroll
	for (int i = 0; i < 3; i++) {
		if (next != NEXT_HOP && next != NEXT_ROUTING && next != NEXT_DEST)
			break;
		ext = at;
		if ((void *)(ext + 1) > end)
			return 0;
		next = ext->next;
		at += ((__u64)ext->len + 1) * 8;
	}
	tcp = at;
	if (next != NEXT_TCP || (void *)(tcp + 1) > end)
		return 0;
	return tcp;
}

#endif

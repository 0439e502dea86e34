// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: CO-RE reads through sk_buff in a raw tracepoint program, by a flavour
 * of the type.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct sk_buff___small {
	unsigned int len;
	unsigned int data_len;
} __attribute__((preserve_access_index));

__u64 packets, bytes;

SEC("raw_tp/netif_receive_skb")
int core_raw_tp(struct bpf_raw_tracepoint_args *ctx)
{
	struct sk_buff___small *skb = (void *)ctx->args[0];

	__sync_fetch_and_add(&packets, 1);
	__sync_fetch_and_add(&bytes, BPF_CORE_READ(skb, len));
	return 0;
}

char _license[] SEC("license") = "GPL";

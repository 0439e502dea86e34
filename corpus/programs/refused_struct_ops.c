// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: struct_ops: the programs are members of a kernel structure. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct sock;

struct tcp_congestion_ops {
	__u32 (*ssthresh)(struct sock *sk);
	void (*cong_avoid)(struct sock *sk, __u32 ack, __u32 acked);
	__u32 (*undo_cwnd)(struct sock *sk);
	char name[16];
} __attribute__((preserve_access_index));

SEC("struct_ops/corpus_ssthresh")
__u32 corpus_ssthresh(unsigned long long *ctx)
{
	return 2;
}

SEC("struct_ops/corpus_cong_avoid")
void corpus_cong_avoid(unsigned long long *ctx)
{
}

SEC("struct_ops/corpus_undo_cwnd")
__u32 corpus_undo_cwnd(unsigned long long *ctx)
{
	return 2;
}

SEC(".struct_ops")
struct tcp_congestion_ops corpus = {
	.ssthresh = (void *)corpus_ssthresh,
	.cong_avoid = (void *)corpus_cong_avoid,
	.undo_cwnd = (void *)corpus_undo_cwnd,
	.name = "bpf_corpus",
};

char _license[] SEC("license") = "GPL";

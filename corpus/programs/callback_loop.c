// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a static callback of bpf_loop (its exits are not the program's). */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct sum {
	__u64 value;
	__u64 stop;
};

static int add(__u64 index, void *arg)
{
	struct sum *sum = arg;

	if (index >= sum->stop)
		return 1;
	sum->value += index;
	return 0;
}

__u64 total;

SEC("xdp")
int callback_loop(struct xdp_md *ctx)
{
	struct sum sum = { .stop = (ctx->data_end - ctx->data) & 31 };

	bpf_loop(64, add, &sum, 0);
	total = sum.value;
	return sum.value & 1 ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: static subprograms, one called by the other, several exits in each. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

__u64 calls;

static __noinline int weight(__u64 value)
{
	if (value & 0x80)
		return 3;
	calls += 1;
	return value & 1 ? 2 : 1;
}

static __noinline int both(__u64 first, __u64 second)
{
	if (first == second)
		return 0;
	return weight(first) + weight(second);
}

SEC("xdp")
int static_subprog(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	if ((void *)(data + 2) > end)
		return XDP_ABORTED;
	return both(data[0], data[1]) > 3 ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";

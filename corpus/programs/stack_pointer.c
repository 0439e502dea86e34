// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a stack pointer handed to a static subprogram, which writes through
 * it.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct pair {
	__u64 low;
	__u64 high;
};

static __noinline int split(__u64 value, struct pair *pair)
{
	pair->low = value & 0xf;
	pair->high = value >> 4;
	return 0;
}

SEC("xdp")
int stack_pointer(struct xdp_md *ctx)
{
	struct pair pair = {};

	split(ctx->data_end - ctx->data, &pair);
	return pair.low > pair.high ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: eight frames (the program and seven nested subprograms), as many as
 * the kernel allows.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

__u64 depth;

static __noinline int frame8(__u64 value)
{
	depth = 8;
	return value & 1;
}

#define FRAME(n, next)					\
	static __noinline int frame##n(__u64 value)	\
	{						\
		int got = frame##next(value + n);	\
							\
		return depth == 8 ? got : n;		\
	}

FRAME(7, 8)
FRAME(6, 7)
FRAME(5, 6)
FRAME(4, 5)
FRAME(3, 4)
FRAME(2, 3)

SEC("xdp")
int frames8(struct xdp_md *ctx)
{
	return frame2(ctx->data_end - ctx->data) ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";

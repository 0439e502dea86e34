// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Link number LINK of bench/nanoseconds.py: the packet's byte at LINK is what it
 * returns, so nothing about its code is known before it runs, and little else is
 * done. With CHAINED the tail call is written by hand (chained.h).
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "chained.h"

SEC("xdp")
int byte(struct xdp_md *ctx)
{
	unsigned char *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	if ((void *)(data + LINK + 1) > end)
		return XDP_ABORTED;
	return next(ctx, data[LINK]);
}

char _license[] SEC("license") = "GPL";

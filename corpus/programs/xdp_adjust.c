// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a program that moves the packet's head and writes to the packet. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int xdp_adjust(struct xdp_md *ctx)
{
	__u8 *data;
	void *end;

	if (bpf_xdp_adjust_head(ctx, -4))
		return XDP_ABORTED;
	data = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if ((void *)(data + 18) > end)
		return XDP_DROP;
	__builtin_memmove(data, data + 4, 12);
	data[12] = 0x81;
	data[13] = 0;
	data[14] = 0;
	data[15] = 5;
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";

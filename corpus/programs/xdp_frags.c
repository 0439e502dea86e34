// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: XDP with fragments, read by a helper into a buffer on the stack. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp.frags")
int xdp_frags(struct xdp_md *ctx)
{
	__u8 bytes[14] = {};

	if (bpf_xdp_load_bytes(ctx, 0, bytes, sizeof(bytes)))
		return XDP_ABORTED;
	return bpf_xdp_get_buff_len(ctx) > 1500 || bytes[12] == 8 ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";

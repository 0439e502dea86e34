// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: own tail calls into an own PROG_ARRAY that user space fills: to a
 * constant key and to one from the packet.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 4);
	__uint(key_size, 4);
	__uint(value_size, 4);
} jumps SEC(".maps");

SEC("xdp")
int tailcall_own(struct xdp_md *ctx)
{
	__u32 length = ctx->data_end - ctx->data;

	if (length > 512)
		bpf_tail_call(ctx, &jumps, 0);
	bpf_tail_call(ctx, &jumps, 1 + (length & 1));
	return length & 2 ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";

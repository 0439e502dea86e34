// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: an own PROG_ARRAY whose `values` name the entry itself: as a link, it
 * would run the chain once for every turn.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

int tailcall_self(struct xdp_md *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, 4);
	__array(values, int (struct xdp_md *));
} jumps SEC(".maps") = {
	.values = { [0] = (void *)&tailcall_self },
};

__u32 turns;

SEC("xdp")
int tailcall_self(struct xdp_md *ctx)
{
	if (turns++ < 3)
		bpf_tail_call(ctx, &jumps, 0);
	turns = 0;
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";

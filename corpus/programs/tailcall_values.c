// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: an own PROG_ARRAY whose `values` name another program of the object.
 * The entry may become a link; the target may not, since the map refers to it.
 * It stands behind the entry, so that it moves when the entry grows.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct jumps {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__uint(key_size, 4);
	__array(values, int (struct xdp_md *));
};

extern struct jumps jumps SEC(".maps");

SEC("xdp")
int entry(struct xdp_md *ctx)
{
	if (ctx->data_end - ctx->data > 100)
		bpf_tail_call(ctx, &jumps, 1);
	return XDP_PASS;
}

SEC("xdp")
int target(struct xdp_md *ctx)
{
	return XDP_DROP;
}

struct jumps jumps SEC(".maps") = {
	.values = { [1] = (void *)&target },
};

char _license[] SEC("license") = "GPL";

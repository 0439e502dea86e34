// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: an own tail call in a static subprogram. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, 4);
	__uint(value_size, 4);
} jumps SEC(".maps");

static __noinline int maybe(struct xdp_md *ctx)
{
	bpf_tail_call(ctx, &jumps, 0);
	return 3;
}

SEC("xdp")
int tailcall_subprog(struct xdp_md *ctx)
{
	int got = maybe(ctx);

	return got == 3 ? XDP_PASS : XDP_DROP;
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: atomic operations that fetch (-mcpu=v3), compare-and-exchange too. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

__u64 tickets, holder;

SEC("xdp")
int atomics(struct xdp_md *ctx)
{
	__u64 mine = __sync_fetch_and_add(&tickets, 1);

	__sync_fetch_and_xor(&tickets, mine & 4);
	if (__sync_val_compare_and_swap(&holder, 0, mine + 1) == 0)
		return XDP_PASS;
	return mine & 1 ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";

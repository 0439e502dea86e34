/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* How a link chained by hand ends: XDP_PASS goes on to link LINK + 1.
 *   CHAINED undefined   nothing is chained: the program as the transformer gets it
 *   CHAINED 1           as one writes it
 *   CHAINED 2           one call site for two indexes, which the JIT makes an indirect
 *                       jump: what slots would cost if they were done so
 */
#ifndef BENCH_CHAINED_H
#define BENCH_CHAINED_H

#ifdef CHAINED
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 264);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} bpfchain_slots SEC(".maps");
#endif

static __always_inline int next(struct xdp_md *ctx, int code)
{
#if CHAINED == 1
	if (code == XDP_PASS)
		bpf_tail_call(ctx, &bpfchain_slots, LINK + 1);
#elif CHAINED == 2
	__u64 slot = code == XDP_REDIRECT ? 5 * 33 + LINK + 1 : LINK + 1;

	barrier_var(slot); /* or clang makes two call sites of it */
	if (code == XDP_PASS || code == XDP_REDIRECT)
		bpf_tail_call(ctx, &bpfchain_slots, slot);
#endif
	return code;
}

#endif

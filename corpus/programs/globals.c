// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: .rodata, .data and .bss globals, one of each in a section of its own
 * name.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

const volatile __u32 limit = 3;
const volatile __u32 table[4] SEC(".rodata.table") = { 2, 1, 2, 2 };
__u64 budget = 100;
__u32 step SEC(".data.step") = 2;
__u64 seen;
static __u64 dropped;

SEC("xdp")
int globals(struct xdp_md *ctx)
{
	__u32 kind = (ctx->data_end - ctx->data) & limit;

	seen += 1;
	if (budget < step) {
		dropped += 1;
		return XDP_DROP;
	}
	budget -= step;
	return table[kind & 3];
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: no BTF (built without -g) and a static subprogram. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

static __noinline int fold(__u64 value)
{
	value ^= value >> 8;
	value ^= value >> 4;
	return value & 1;
}

SEC("xdp")
int nobtf_subprog(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;

	if ((void *)(data + 2) > end)
		return XDP_ABORTED;
	return fold(data[0] << 8 | data[1]) ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";

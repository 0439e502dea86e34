// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: bpf_redirect_map into a devmap, XDP_PASS where it has no entry. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(max_entries, 8);
	__uint(key_size, 4);
	__uint(value_size, 4);
} ports SEC(".maps");

SEC("xdp")
int xdp_redirect_map(struct xdp_md *ctx)
{
	return bpf_redirect_map(&ports, (ctx->data_end - ctx->data) & 7, XDP_PASS);
}

char _license[] SEC("license") = "GPL";

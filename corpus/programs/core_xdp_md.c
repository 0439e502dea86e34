// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: CO-RE relocation of the context's own fields (a program that took
 * its types from a vmlinux.h).
 */
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
} __attribute__((preserve_access_index));

SEC("xdp")
int core_xdp_md(struct xdp_md *ctx)
{
	return ctx->ingress_ifindex & 1 ? 2 : 1;
}

char _license[] SEC("license") = "GPL";

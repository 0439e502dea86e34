// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a kfunc that binds the program to one device, which such a program's
 * tail calls cannot leave.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern int bpf_xdp_metadata_rx_timestamp(const struct xdp_md *ctx, __u64 *timestamp) __ksym;

SEC("xdp")
int refused_metadata(struct xdp_md *ctx)
{
	__u64 when = 0;

	return bpf_xdp_metadata_rx_timestamp(ctx, &when) ? XDP_PASS : XDP_DROP;
}

char _license[] SEC("license") = "GPL";

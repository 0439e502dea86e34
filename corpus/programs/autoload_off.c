// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a section name with a question mark in front: libbpf does not load
 * the program unless it is asked to.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("?xdp")
int autoload_off(struct xdp_md *ctx)
{
	return ctx->ingress_ifindex ? XDP_PASS : XDP_DROP;
}

char _license[] SEC("license") = "GPL";

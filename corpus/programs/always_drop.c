// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a program that always returns a code outside S: nothing of an
 * epilogue is reached.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int always_drop(struct xdp_md *ctx)
{
	return XDP_DROP;
}

char _license[] SEC("license") = "GPL";

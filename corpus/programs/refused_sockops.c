// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: socket operations: what such a program returns is a reply, not a
 * verdict.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("sockops")
int refused_sockops(struct bpf_sock_ops *ctx)
{
	ctx->reply = -1;
	return 1;
}

char _license[] SEC("license") = "GPL";

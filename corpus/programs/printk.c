// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: bpf_printk (a static format string in .rodata). */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
int printk(struct xdp_md *ctx)
{
	bpf_printk("corpus: %d bytes", ctx->data_end - ctx->data);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: an exit code whose upper half is not zero, known: the kernel sees
 * only the low 32 bits, which say XDP_PASS.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("xdp")
__u64 dirty_upper(struct xdp_md *ctx)
{
	return 0x100000002ULL;
}

char _license[] SEC("license") = "GPL";

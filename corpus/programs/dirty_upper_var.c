// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: an exit code of 64 bits from a global variable, unknown; as built it
 * has a dirty upper half and says XDP_PASS.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

__u64 code = 0x100000002ULL;

SEC("xdp")
__u64 dirty_upper_var(struct xdp_md *ctx)
{
	return code;
}

char _license[] SEC("license") = "GPL";

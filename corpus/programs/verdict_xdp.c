// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: verdict by map at XDP. */
#include "verdict.h"

SEC("xdp")
int verdict_xdp(struct xdp_md *ctx)
{
	return count_and_decide(XDP_PASS);
}

char _license[] SEC("license") = "GPL";

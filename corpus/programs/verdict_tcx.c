// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: verdict by map at tcx, ingress and egress. */
#include "verdict.h"

SEC("tcx/ingress")
int verdict_tcx_in(struct __sk_buff *skb)
{
	return count_and_decide(-1);
}

SEC("tcx/egress")
int verdict_tcx_out(struct __sk_buff *skb)
{
	return count_and_decide(-1);
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Link number LINK of bench/nanoseconds.py: the corpus's verdict_xdp, which looks
 * into two maps. With CHAINED the tail call is written by hand (chained.h).
 */
#include "verdict.h"
#include "chained.h"

SEC("xdp")
int verdict_xdp(struct xdp_md *ctx)
{
	return next(ctx, count_and_decide(XDP_PASS));
}

char _license[] SEC("license") = "GPL";

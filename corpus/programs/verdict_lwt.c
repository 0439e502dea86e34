// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: verdict by map at lightweight tunnels. */
#include "verdict.h"

SEC("lwt_in")
int verdict_lwt_in(struct __sk_buff *skb)
{
	return count_and_decide(BPF_OK);
}

SEC("lwt_out")
int verdict_lwt_out(struct __sk_buff *skb)
{
	return count_and_decide(BPF_OK);
}

SEC("lwt_xmit")
int verdict_lwt_xmit(struct __sk_buff *skb)
{
	return count_and_decide(BPF_OK);
}

SEC("lwt_seg6local")
int verdict_lwt_seg6local(struct __sk_buff *skb)
{
	return count_and_decide(BPF_OK);
}

char _license[] SEC("license") = "GPL";

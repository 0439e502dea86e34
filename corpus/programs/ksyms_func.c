// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: .ksyms functions (kfuncs), called. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern void bpf_rcu_read_lock(void) __ksym;
extern void bpf_rcu_read_unlock(void) __ksym;

__u64 sections;

SEC("tc")
int ksyms_func(struct __sk_buff *skb)
{
	bpf_rcu_read_lock();
	sections += skb->len;
	bpf_rcu_read_unlock();
	return 0;
}

char _license[] SEC("license") = "GPL";

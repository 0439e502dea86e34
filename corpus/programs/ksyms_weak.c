// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: weak .ksyms that no kernel has, with a type and without; and a
 * weak function that one has, called.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

extern const int no_such_variable __ksym __weak;
extern const void no_such_address __ksym __weak;
extern void bpf_rcu_read_lock(void) __ksym __weak;
extern void bpf_rcu_read_unlock(void) __ksym __weak;

SEC("xdp")
int ksyms_weak(struct xdp_md *ctx)
{
	if (&no_such_address)
		return XDP_ABORTED;
	if (&no_such_variable)
		return XDP_DROP;
	bpf_rcu_read_lock();
	bpf_rcu_read_unlock();
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";

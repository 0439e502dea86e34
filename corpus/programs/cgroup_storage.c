// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: per-cgroup storage, which the kernel ties to the owner of a
 * PROG_ARRAY.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_STORAGE);
	__type(key, struct bpf_cgroup_storage_key);
	__type(value, __u64);
} per_cgroup SEC(".maps");

SEC("cgroup_skb/ingress")
int cgroup_storage(struct __sk_buff *skb)
{
	__u64 *count = bpf_get_local_storage(&per_cgroup, 0);

	__sync_fetch_and_add(count, 1);
	return *count < 1000;
}

char _license[] SEC("license") = "GPL";

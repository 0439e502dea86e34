// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: three programs in one section, the middle one to be patched; all have
 * map, CO-RE and data relocations that must move with them.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct task_struct {
	int pid;
	int tgid;
} __attribute__((preserve_access_index));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, __u64);
} runs SEC(".maps");

__u64 offsets[3];

static __always_inline void note(__u32 which)
{
	__u32 key = which;
	struct task_struct *task = 0;
	__u64 *count = bpf_map_lookup_elem(&runs, &key);

	if (count)
		__sync_fetch_and_add(count, 1);
	offsets[which] = __builtin_preserve_field_info(task->tgid, BPF_FIELD_BYTE_OFFSET);
}

SEC("xdp")
int before(struct xdp_md *ctx)
{
	note(0);
	return XDP_PASS;
}

SEC("xdp")
int middle(struct xdp_md *ctx)
{
	note(1);
	return ctx->ingress_ifindex == 0 ? XDP_DROP : XDP_PASS;
}

SEC("xdp")
int after(struct xdp_md *ctx)
{
	note(2);
	return XDP_DROP;
}

char _license[] SEC("license") = "GPL";

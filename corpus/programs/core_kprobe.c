// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: CO-RE reads through task_struct, in a kprobe program and its static
 * subprogram (records for two sections).
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct task_struct {
	int pid;
	int tgid;
	struct task_struct *real_parent;
} __attribute__((preserve_access_index));

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, __u32);
} parent_of SEC(".maps");

static __noinline int parent(struct task_struct *task)
{
	return BPF_CORE_READ(task, real_parent, tgid);
}

SEC("kprobe/do_nanosleep")
int core_kprobe(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u32 pid = BPF_CORE_READ(task, tgid), up = parent(task);

	bpf_map_update_elem(&parent_of, &pid, &up, BPF_ANY);
	return 0;
}

char _license[] SEC("license") = "GPL";

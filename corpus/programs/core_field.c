// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: CO-RE relocations of every kind in an XDP program (field offset,
 * size, existence, signedness, type size and existence, enum value).
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct list_head {
	struct list_head *next, *prev;
} __attribute__((preserve_access_index));

struct task_struct {
	int pid;
	int tgid;
	struct list_head tasks;
} __attribute__((preserve_access_index));

struct task_struct___gone {
	int no_such_field;
} __attribute__((preserve_access_index));

enum bpf_map_type___own {
	BPF_MAP_TYPE_ARRAY___own = 2,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 9);
	__type(key, __u32);
	__type(value, __u64);
} facts SEC(".maps");

static __always_inline void put(__u32 key, __u64 value)
{
	__u64 *fact = bpf_map_lookup_elem(&facts, &key);

	if (fact)
		*fact = value;
}

SEC("xdp")
int core_field(struct xdp_md *ctx)
{
	struct task_struct *task = 0;
	struct task_struct___gone *gone = 0;

	put(0, __builtin_preserve_field_info(task->tgid, BPF_FIELD_BYTE_OFFSET));
	put(1, bpf_core_field_size(task->tasks));
	put(2, bpf_core_field_exists(task->pid));
	put(3, bpf_core_field_exists(gone->no_such_field));
	put(4, __builtin_preserve_field_info(task->pid, BPF_FIELD_SIGNED));
	put(5, bpf_core_type_size(struct list_head));
	put(6, bpf_core_type_exists(struct task_struct));
	put(7, bpf_core_enum_value(enum bpf_map_type___own, BPF_MAP_TYPE_ARRAY___own));
	put(8, bpf_core_type_id_local(struct list_head));
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";

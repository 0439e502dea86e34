// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* CO-RE relocations of every kind and on every form of place that the kernel's types have:
 * bit fields, arrays, elements, anonymous members, flexible arrays, flavours, enumerators,
 * numbers of another size, what is not there.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#define ON_KERNEL __attribute__((preserve_access_index))

struct sk_buff {
	unsigned int len;
	unsigned char pkt_type : 3;
	unsigned char ignore_df : 1;
	char cb[48];
	union {
		struct {
			int mac_len;
		};
	};
	unsigned short mac_header;
} ON_KERNEL;

struct task_struct {
	char comm[16];
	int prio;
	unsigned int sched_reset_on_fork : 1;
	unsigned int in_execve : 1;
	struct task_struct *real_parent;
} ON_KERNEL;

struct task_struct___narrow {
	unsigned short flags; /* is an unsigned int */
	unsigned int start_time; /* is a u64 */
	short prio; /* signed: cannot be resized */
} ON_KERNEL;

struct bpf_prog {
	unsigned int jited : 1;
	unsigned int len;
	struct {
		unsigned char insnsi[0];
	};
} ON_KERNEL;

struct xdp_buff {
	void *data;
	void *data_end;
} ON_KERNEL;

struct no_such_struct {
	int a;
} ON_KERNEL;

struct list_head {
	struct list_head *next, *prev;
};

struct list_head___other {
	struct list_head *next;
	int prev;
};

union bpf_attr___part {
	struct {
		unsigned int map_type;
		unsigned int key_size;
	};
} ON_KERNEL;

typedef int pid_t;
typedef int (*no_such_function)(int);
typedef int irqreturn_t;

enum bpf_map_type___kernel {
	BPF_MAP_TYPE_QUEUE___kernel = 3,
	BPF_MAP_TYPE_NEVER___kernel = 4,
};

enum tc_link_layer {
	TC_LINKLAYER_ATM = 7,
};

__u64 sum;

#define ADD(value) (sum = sum * 31 + (__u64)(value))
#define FIELD(place, kind) ADD(__builtin_preserve_field_info(place, BPF_FIELD_##kind))
#define PART(place)                                                                                \
	do {                                                                                       \
		FIELD(place, BYTE_OFFSET);                                                         \
		FIELD(place, BYTE_SIZE);                                                           \
		FIELD(place, EXISTS);                                                              \
	} while (0)
#define ALL(place)                                                                                 \
	do {                                                                                       \
		PART(place);                                                                       \
		FIELD(place, SIGNED);                                                              \
		FIELD(place, LSHIFT_U64);                                                          \
		FIELD(place, RSHIFT_U64);                                                          \
	} while (0)

SEC("raw_tp/sched_switch")
int places(void *ctx)
{
	struct sk_buff *skb = 0;
	struct task_struct *task = 0;
	struct task_struct___narrow *narrow = 0;
	struct bpf_prog *prog = 0;
	struct xdp_buff *xdp = 0;
	union bpf_attr___part *attr = 0;

	ALL(skb->len);
	ALL(skb->pkt_type);
	ALL(skb->ignore_df);
	ALL(skb->mac_len);
	ALL(skb->mac_header);
	PART(task->comm);
	ALL(task->prio);
	ALL(task->sched_reset_on_fork);
	ALL(task->in_execve);
	PART(task->real_parent);
	ALL(narrow->flags);
	ALL(prog->jited);
	ALL(prog->len);
	PART(xdp->data_end);
	ALL(attr->key_size);
	FIELD(task->comm[3], BYTE_OFFSET);
	FIELD(task->comm[3], BYTE_SIZE);
	FIELD(task->comm[3], EXISTS);
	FIELD(skb->cb[40], BYTE_OFFSET);
	FIELD(prog->insnsi[5], EXISTS);
	FIELD(skb[2].len, BYTE_OFFSET);
	return 0;
}

SEC("raw_tp/sched_switch")
int loads(void **ctx)
{
	struct task_struct___narrow *narrow = ctx[1];
	struct sk_buff *skb = ctx[2];

	/* loads whose size changes, or must not: the kernel refuses them, libbpf adjusts them */
	ADD(narrow->flags);
	ADD(narrow->start_time);
	ADD(narrow->prio);
	ADD(skb->mac_header);
	return 0;
}

SEC("raw_tp/sched_switch")
int gone(void *ctx)
{
	struct no_such_struct *none = 0;

	FIELD(none->a, EXISTS);
	if (sum == 1) /* never: an instruction that must not run */
		FIELD(none->a, BYTE_OFFSET);
	if (sum == 2)
		ADD(bpf_core_enum_value(enum bpf_map_type___kernel, BPF_MAP_TYPE_NEVER___kernel));
	return 0;
}

SEC("raw_tp/sched_switch")
int whole_types(void *ctx)
{
	ADD(bpf_core_type_exists(struct list_head));
	ADD(bpf_core_type_exists(struct list_head___other));
	ADD(bpf_core_type_exists(struct no_such_struct));
	ADD(bpf_core_type_exists(struct xdp_buff));
	ADD(bpf_core_type_exists(union bpf_attr___part));
	ADD(bpf_core_type_exists(pid_t));
	ADD(bpf_core_type_exists(irqreturn_t));
	ADD(bpf_core_type_exists(no_such_function));
	ADD(bpf_core_type_exists(enum bpf_map_type___kernel));
	ADD(bpf_core_type_exists(enum tc_link_layer));
	return 0;
}

SEC("raw_tp/sched_switch")
int other_numbers(void *ctx)
{
	ADD(bpf_core_type_size(struct list_head));
	ADD(bpf_core_type_size(struct task_struct));
	ADD(bpf_core_type_size(struct no_such_struct));
	ADD(bpf_core_type_id_kernel(struct task_struct));
	ADD(bpf_core_type_id_local(struct task_struct));
	ADD(bpf_core_enum_value_exists(enum bpf_map_type___kernel, BPF_MAP_TYPE_QUEUE___kernel));
	ADD(bpf_core_enum_value_exists(enum bpf_map_type___kernel, BPF_MAP_TYPE_NEVER___kernel));
	ADD(bpf_core_enum_value(enum bpf_map_type___kernel, BPF_MAP_TYPE_QUEUE___kernel));
	ADD(bpf_core_enum_value(enum tc_link_layer, TC_LINKLAYER_ATM));
	return 0;
}

char _license[] SEC("license") = "GPL";

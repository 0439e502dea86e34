// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a callback of bpf_for_each_map_elem that is a global symbol with
 * hidden visibility, behind another function in .text.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} numbers SEC(".maps");

struct sum {
	__u64 value;
};

static __noinline int half(__u64 value)
{
	return (value >> 1) & 0xff;
}

__hidden int add_element(void *map, __u32 *key, __u64 *value, struct sum *sum)
{
	sum->value += half(*value);
	return 0;
}

SEC("xdp")
int callback_map(struct xdp_md *ctx)
{
	struct sum sum = {};

	bpf_for_each_map_elem(&numbers, add_element, &sum, 0);
	return sum.value & 1 ? XDP_DROP : XDP_PASS;
}

char _license[] SEC("license") = "GPL";

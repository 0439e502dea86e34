// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a timer callback, which must return 0. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define CLOCK_MONOTONIC 1

struct element {
	struct bpf_timer timer;
	__u64 fired;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct element);
} elements SEC(".maps");

static int fire(void *map, __u32 *key, struct element *element)
{
	element->fired += 1;
	return 0;
}

SEC("tc")
int callback_timer(struct __sk_buff *skb)
{
	__u32 key = 0;
	struct element *element = bpf_map_lookup_elem(&elements, &key);

	if (!element)
		return 2;
	bpf_timer_init(&element->timer, &elements, CLOCK_MONOTONIC);
	bpf_timer_set_callback(&element->timer, fire);
	bpf_timer_start(&element->timer, 1000000, 0);
	return 0;
}

char _license[] SEC("license") = "GPL";

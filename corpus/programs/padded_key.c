// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Feature: a map key with padding that the program never writes: it goes into
 * the hash as the stack had it, so the lookup depends on what ran before.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct key {
	__u32 a;
	__u8 b;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, struct key);
	__type(value, __u32);
} codes SEC(".maps");

SEC("xdp")
int padded_key(struct xdp_md *ctx)
{
	struct key key;
	__u32 *code;

	key.a = 1;
	key.b = 2;
	code = bpf_map_lookup_elem(&codes, &key);
	return code ? *code : XDP_DROP;
}

char _license[] SEC("license") = "GPL";

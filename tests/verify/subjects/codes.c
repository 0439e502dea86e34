// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* What the sabotage tests damage: any verdict by the packet, two maps, a constant, a buffer on the
 * stack, a subprogram and a CO-RE access, so that every kind of reference can be wrong.
 */
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define BPF_MAP_TYPE_ARRAY 2

struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
} __attribute__((preserve_access_index));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, __u64);
} bytes SEC(".maps");

const volatile __u32 mask = 7;

static __attribute__((noinline)) int fold(__u32 a, __u32 b)
{
	return a ^ (b << 1);
}

SEC("xdp")
int codes(struct xdp_md *ctx)
{
	__u8 *data = (__u8 *)(long)ctx->data, *end = (__u8 *)(long)ctx->data_end;
	__u32 key[4] = {0, 0, 0, 0};
	__u64 *count, *size;
	__u32 code;

	if (data + 14 > end)
		return 1;
	key[0] = fold(data[12], data[13]) & 15;
	key[1] = key[0] ^ data[5];
	count = bpf_map_lookup_elem(&seen, key);
	if (count)
		*count += 1;
	size = bpf_map_lookup_elem(&bytes, key);
	if (size)
		*size += end - data;
	code = (data[0] ^ data[5] ^ data[11] ^ data[12] ^ data[13] ^ (end - data)) & mask;
	if (code > 4)
		return 2;
	return code;
}

char _license[] SEC("license") = "GPL";

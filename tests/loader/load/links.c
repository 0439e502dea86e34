// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/* Links of the chains under load. Each writes its mark (MARK) at its own place (INDEX) into the frame
 * and counts the frame by its kind, so that a frame tells which links it met, and of which
 * generation. Link 0 takes SPIN ns for each frame: while the head is swapped and the old generation
 * freed, some frame is in it.
 *
 * Kinds: 0 passes; 1 is dropped by the last link; 2 is dropped by the last link if its mark is 2;
 * 3 is dropped by link 1. (The includes are put in front: support/bpfcode.py.)
 */
#include <bpf/bpf_endian.h>

#ifdef XDP
#define CONTEXT xdp_md
#define DROP XDP_DROP
#else
#define CONTEXT __sk_buff
#define DROP 2 /* TC_ACT_SHOT */
#endif

struct frame {
	__u8 to[6], from[6];
	__be16 type;
	__u64 number;
	__u8 kind;
	__u8 marks[3];
} __attribute__((packed));

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __u64);
} runs SEC(".maps");

#if SPIN > 0
static long wait(__u32 i, void *begin)
{
	return bpf_ktime_get_ns() - *(__u64 *)begin >= SPIN;
}
#endif

SEC(SECTION)
int on_frame(struct CONTEXT *ctx)
{
	struct frame *frame = (void *)(long)ctx->data;
	__u32 kind;
	__u64 *count;

	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return PASS;
	if (frame->type != bpf_htons(0x88b5))
		return PASS;
	frame->marks[INDEX] = MARK;
	kind = frame->kind & 3;
	count = bpf_map_lookup_elem(&runs, &kind);
	if (count)
		__sync_fetch_and_add(count, 1);
#if SPIN > 0
	__u64 begin = bpf_ktime_get_ns();

	bpf_loop(1 << 20, wait, &begin, 0);
#endif
	if (INDEX == 1 && kind == 3)
		return DROP;
	if (INDEX == 2 && (kind == 1 || (kind == 2 && MARK == 2)))
		return DROP;
	return PASS;
}

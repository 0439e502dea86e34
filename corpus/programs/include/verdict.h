/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause) */
/* The maps of the programs that return what a map says: `verdict` key 0 is what
 * to return, `runs` key 0 counts the runs.
 */
#ifndef CORPUS_VERDICT_H
#define CORPUS_VERDICT_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __s32);
} verdict SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} runs SEC(".maps");

/* Counts a run; what the map says, or `miss` (a lookup in an array cannot
 * fail here, the verifier does not know that).
 */
static __always_inline int count_and_decide(int miss)
{
	__u32 key = 0;
	__u64 *count = bpf_map_lookup_elem(&runs, &key);
	__s32 *code = bpf_map_lookup_elem(&verdict, &key);

	if (count)
		__sync_fetch_and_add(count, 1);
	return code ? *code : miss;
}

#endif

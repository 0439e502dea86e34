"""C programs that do what a map tells them: one helper call after the other, with any arguments.

Each writes what every call returned and what the context then looked like into a ring buffer record,
which the test run of the kernel shows as well as the emulator.
"""

from __future__ import annotations

HEAD = """
#include <bpf/bpf_endian.h>
#define OPS 10
struct op { __u32 kind, a, b, c; __u64 d; };
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, OPS); __type(key, __u32);
         __type(value, struct op); } ops SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 1 << 16); } told SEC(".maps");
struct seen { __s64 result, word[8]; };
struct { __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); __uint(max_entries, 1); __type(key, __u32);
         __type(value, struct seen[OPS]); } room SEC(".maps");
static __always_inline __u64 fold(const __u8 *bytes, int count)
{
    __u64 sum = 14695981039346656037ull;
    for (int i = 0; i < count; i++)
        sum = (sum ^ bytes[i]) * 1099511628211ull;
    return sum;
}
"""

# ctx is CTX: what is passed to the callback
LOOP = """
struct pass { CTX *ctx; struct seen *seen; };
static long step(__u32 i, struct pass *pass)
{
    CTX *ctx = pass->ctx;
    __u8 buf[64] = {};
    __u32 key = i;
    struct op *op = bpf_map_lookup_elem(&ops, &key);
    struct seen *seen;
    __s64 result = 0x5555;
    if (!op || i >= OPS)
        return 1;
    seen = &pass->seen[i];
    __u32 a = op->a, b = op->b, c = op->c;
    __u64 d = op->d;
    __u32 len = (b & 63) + 1;
    for (int at = 0; at < 64; at += 8)
        *(__u64 *)(buf + at) = d + at * 0x0101010101010101ull;
    switch (op->kind) {
CASES
    case 60: {
        __u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
        __u32 offset = a & 0x7f;
        if (data + offset + 1 > end) { result = -1; break; }
        result = data[offset];
        WRITE
        break;
    }
    case 61:
        result = bpf_csum_diff((void *)buf, a & 60, (void *)buf, b & 60, c);
        break;
    }
    seen->result = result;
SEEN
    return 0;
}
SEC(SECTION) int prog(CTX *ctx)
{
    __u32 zero = 0;
    struct pass pass = { ctx, bpf_map_lookup_elem(&room, &zero) };
    if (!pass.seen)
        return 0;
    __builtin_memset(pass.seen, 0, sizeof(struct seen) * OPS);
    bpf_loop(OPS, step, &pass, 0);
    bpf_ringbuf_output(&told, pass.seen, sizeof(struct seen) * OPS, 0);
    return VERDICT;
}
"""

XDP_CASES = """
    case 0: result = bpf_xdp_adjust_head(ctx, (int)a); break;
    case 1: result = bpf_xdp_adjust_meta(ctx, (int)a); break;
    case 2: result = bpf_xdp_adjust_tail(ctx, (int)a); break;
    case 3: result = bpf_xdp_load_bytes(ctx, a, buf, len); break;
    case 4: result = bpf_xdp_store_bytes(ctx, a, buf, len); break;
    case 5: result = bpf_xdp_get_buff_len(ctx); break;
    case 6: {
        __u8 *meta = (void *)(long)ctx->data_meta, *data = (void *)(long)ctx->data;
        __u32 offset = a & 31;
        if (meta + offset + 1 > data) { result = -1; break; }
        result = meta[offset];
        meta[offset] = b;
        break;
    }
"""
XDP_SEEN = """
    seen->word[0] = ctx->data_end - ctx->data;
    seen->word[1] = ctx->data - ctx->data_meta;
    seen->word[2] = fold(buf, 64);
    seen->word[3] = ctx->ingress_ifindex;
    seen->word[4] = ctx->rx_queue_index;
"""
LOADS = """
    case 0: result = bpf_skb_load_bytes(ctx, a, buf, len); break;
    case 1: result = bpf_skb_load_bytes_relative(ctx, a, buf, len, c); break;
"""
L3_SEEN = """
    seen->word[0] = ctx->len;
    seen->word[1] = ctx->data_end - ctx->data;
    seen->word[2] = fold(buf, 64);
    seen->word[3] = ctx->protocol | (__u64)ctx->vlan_proto << 32;
    seen->word[4] = ctx->vlan_tci | (__u64)ctx->vlan_present << 32;
    seen->word[5] = ctx->pkt_type | (__u64)ctx->mark << 32;
    seen->word[6] = ctx->priority | (__u64)ctx->queue_mapping << 32;
    seen->word[7] = ctx->cb[0] | (__u64)ctx->cb[4] << 32;
"""
NO_DATA_SEEN = L3_SEEN.replace("ctx->data_end - ctx->data", "ctx->ifindex")
PULL = """
    case 2: result = bpf_skb_pull_data(ctx, a); break;
"""
XMIT = """
    case 3: result = bpf_skb_store_bytes(ctx, a, buf, len, c); break;
    case 4: result = bpf_skb_change_tail(ctx, a, c); break;
    case 5: result = bpf_skb_change_head(ctx, a, c); break;
    case 6: result = bpf_l3_csum_replace(ctx, a, b, d, c); break;
    case 7: result = bpf_l4_csum_replace(ctx, a, b, d, c); break;
    case 8: result = bpf_csum_update(ctx, a); break;
    case 9: result = bpf_csum_level(ctx, a & 7); break;
    case 10: bpf_set_hash_invalid(ctx); result = ctx->hash; break;
"""
TC = """
    case 11: result = bpf_skb_change_type(ctx, a); break;
    case 12: result = bpf_skb_change_proto(ctx, a, c); break;
    case 13: result = bpf_skb_adjust_room(ctx, (int)a, c, d); break;
    case 14: result = bpf_skb_vlan_push(ctx, a, b); break;
    case 15: result = bpf_skb_vlan_pop(ctx); break;
    case 16: result = bpf_skb_ecn_set_ce(ctx); break;
    case 17: result = bpf_set_hash(ctx, a); result ^= ctx->hash; break;
    case 18: result = bpf_skb_set_tstamp(ctx, d, c); result ^= ctx->tstamp; break;
    case 19:
        ctx->mark = a; ctx->priority = b; ctx->cb[0] = c; ctx->tc_index = d;
        result = ctx->tc_index;
        break;
    case 20: ctx->tstamp = d; result = ctx->tstamp; break;
    case 21: ctx->tc_classid = a; result = ctx->tc_classid; break;
    case 22: ctx->queue_mapping = a & 0xff; result = ctx->queue_mapping; break;
    case 23: result = ctx->wire_len * 5 + ctx->gso_segs; break;
    case 24: result = ctx->gso_size | (__u64)ctx->ingress_ifindex << 32; break;
    case 25: result = ctx->hash | (__u64)ctx->napi_id << 32; break;
    case 26: result = ctx->data - ctx->data_meta; break;
    case 27: result = ctx->tstamp_type; break;
"""
L3_FIELDS = """
    case 19: ctx->mark = a; ctx->cb[0] = c; ctx->cb[4] = d; break;
"""
FIELDS = """
    case 25: result = ctx->hash | (__u64)ctx->napi_id << 32; break;
    case 28: result = ctx->tc_index; break;
"""
CB = """
    case 19: ctx->cb[0] = c; ctx->cb[4] = d; break;
"""
WRITE = "data[offset] = b;"
NO_DATA = ("    case 60: {", "    case 61:")
"""What of ``LOOP`` is left out where a program has no data pointers."""


def source(section: str) -> str:
    """The program for a hook's section."""
    ctx = "struct xdp_md" if section == "xdp" else "struct __sk_buff"
    cases, seen, write, verdict = {
        "xdp": (XDP_CASES, XDP_SEEN, WRITE, "2"),
        "tc": (LOADS + PULL + XMIT + TC, L3_SEEN, WRITE, "ctx->mark & 3"),
        "cgroup_skb/ingress": (LOADS + L3_FIELDS + FIELDS, L3_SEEN, "", "1"),
        "cgroup_skb/egress": (LOADS + L3_FIELDS + FIELDS, L3_SEEN, "", "1"),
        "socket": (LOADS + CB + FIELDS, NO_DATA_SEEN, "", "ctx->len"),
        "lwt_in": (LOADS[: LOADS.index("    case 1")] + PULL + L3_FIELDS + FIELDS, L3_SEEN, "", "0"),
        "lwt_out": (LOADS[: LOADS.index("    case 1")] + PULL + L3_FIELDS + FIELDS, L3_SEEN, "", "0"),
        "lwt_xmit": (
            LOADS[: LOADS.index("    case 1")] + PULL + XMIT + L3_FIELDS, L3_SEEN, WRITE, "0",
        ),
    }[section]  # fmt: skip
    body = LOOP
    if section == "socket":
        body = body[: body.index(NO_DATA[0])] + body[body.index(NO_DATA[1]) :]
        body = body[: body.index(NO_DATA[1])] + body[body.index("    }\n    seen->result") :]
    if section.startswith("cgroup_skb"):
        body = body[: body.index(NO_DATA[1])] + body[body.index("    }\n    seen->result") :]
    for name, text in (
        ("CTX", ctx), ("CASES", cases), ("SEEN", seen), ("WRITE", write), ("VERDICT", verdict),
        ("SECTION", f'"{section}"'),
    ):  # fmt: skip
        body = body.replace(name, text)
    return HEAD + body

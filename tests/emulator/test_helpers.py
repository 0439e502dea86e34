"""Helpers give what the kernel gives: the same program on the same packets in both."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from bpfchain.emulator import _ubpf
from emulator.twins import HEAD, Emulated, Twins
from support.bpfcode import compile_bpf

IPV4 = bytes.fromhex(
    "ffffffffffff 020000000001 0800"
    "4500003c 1c464000 4006b1e6 ac100a63 ac100a0c"
    "0050 1f90 00000001 00000002 5010 2000 0000 0000"
) + bytes(range(20))  # fmt: skip
IPV6 = (
    bytes.fromhex("ffffffffffff 020000000001 86dd 60000000 0014 1140")
    + bytes(range(32))
    + bytes.fromhex("0035 0035 0014 abcd")
    + bytes(12)
)


def test_xdp_head(kernel: None, tmp_path: Path) -> None:
    source = """
    SEC("xdp") int prog(struct xdp_md *ctx) {
        int moves[] = {-14, 6, 8, -200, -300, -20, -9, 1000, 50};
        #pragma unroll
        for (int i = 0; i < 9; i++) {
            OUT(3 * i, bpf_xdp_adjust_head(ctx, moves[i]));
            OUT(3 * i + 1, ctx->data_end - ctx->data);
            OUT(3 * i + 2, ctx->data - ctx->data_meta);
        }
        return XDP_TX;
    }"""
    with Twins(tmp_path, source) as twins:
        result = twins.same(IPV4)
        assert result.out(0) == 0
        assert result.out(12) == -22
        twins.same(bytes(14))
        twins.same(bytes(range(250)) * 8)


def test_xdp_metadata(kernel: None, tmp_path: Path) -> None:
    source = """
    SEC("xdp") int prog(struct xdp_md *ctx) {
        int moves[] = {-4, -28, -4, -3, 4, -240, -212, -4, 1000, 200};
        #pragma unroll
        for (int i = 0; i < 10; i++) {
            OUT(3 * i, bpf_xdp_adjust_meta(ctx, moves[i]));
            OUT(3 * i + 1, ctx->data - ctx->data_meta);
        }
        void *meta = (void *)(long)ctx->data_meta, *data = (void *)(long)ctx->data;
        if (meta + 8 > data)
            return XDP_DROP;
        *(__u64 *)meta = 0x1122334455667788;
        OUT(40, bpf_xdp_adjust_head(ctx, 4));
        OUT(41, bpf_xdp_adjust_head(ctx, -100));
        OUT(42, ctx->data - ctx->data_meta);
        return XDP_PASS;
    }"""
    with Twins(tmp_path, source) as twins:
        twins.same(IPV4)


def test_xdp_tail(kernel: None, tmp_path: Path) -> None:
    source = """
    SEC("xdp") int prog(struct xdp_md *ctx) {
        int moves[] = {-20, 30, 3600, -5000, 100, -30, 5};
        OUT(60, bpf_xdp_get_buff_len(ctx));
        #pragma unroll
        for (int i = 0; i < 7; i++) {
            OUT(2 * i, bpf_xdp_adjust_tail(ctx, moves[i]));
            OUT(2 * i + 1, ctx->data_end - ctx->data);
        }
        return XDP_PASS;
    }"""
    with Twins(tmp_path, source) as twins:
        for packet in (IPV4, b"\xaa" * 14, b"\xaa" * 35, b"\xaa" * 3500, b"\xaa" * 3520):
            twins.same(packet)


def test_xdp_bytes(kernel: None, tmp_path: Path) -> None:
    source = """
    SEC("xdp") int prog(struct xdp_md *ctx) {
        __u8 buf[16] = {};
        OUT(0, bpf_xdp_load_bytes(ctx, 2, buf, 16));
        OUT(1, *(__u64 *)buf); OUT(2, *(__u64 *)(buf + 8));
        OUT(3, bpf_xdp_store_bytes(ctx, 20, buf, 8));
        OUT(4, bpf_xdp_load_bytes(ctx, 60, buf, 16));
        OUT(5, *(__u64 *)buf);
        OUT(6, bpf_xdp_store_bytes(ctx, 70000, buf, 8));
        OUT(7, bpf_xdp_load_bytes(ctx, 48, buf, 16));
        OUT(8, bpf_xdp_load_bytes(ctx, 0xffffffff, buf, 4));
        return XDP_PASS;
    }"""
    with Twins(tmp_path, source) as twins:
        twins.same(bytes(range(64)))
        twins.same(bytes(range(63)))


def test_redirect_of_xdp(kernel: None, tmp_path: Path) -> None:
    source = """
    MAP(devs, DEVMAP, 4, __u32, __u32); MAP(hash, DEVMAP_HASH, 4, __u32, __u32);
    MAP(cpus, CPUMAP, 4, __u32, __u32); MAP(socks, XSKMAP, 4, __u32, __u32);
    SEC("xdp") int prog(struct xdp_md *ctx) {
        OUT(0, bpf_redirect(1, 0)); OUT(1, bpf_redirect(1, 1));
        OUT(2, bpf_redirect_map(&devs, 0, 1)); OUT(3, bpf_redirect_map(&devs, 1, 2));
        OUT(4, bpf_redirect_map(&devs, 9, 3)); OUT(5, bpf_redirect_map(&devs, 0, 4));
        OUT(6, bpf_redirect_map(&devs, 1, BPF_F_BROADCAST | BPF_F_EXCLUDE_INGRESS));
        OUT(7, bpf_redirect_map(&hash, 7, 1)); OUT(8, bpf_redirect_map(&hash, 8, 1));
        OUT(9, bpf_redirect_map(&cpus, 0, 2)); OUT(10, bpf_redirect_map(&cpus, 1, 2));
        OUT(11, bpf_redirect_map(&cpus, 0, BPF_F_BROADCAST)); OUT(12, bpf_redirect_map(&socks, 0, 2));
        __u32 key = 0, *dev = bpf_map_lookup_elem(&devs, &key);
        OUT(13, dev ? *dev : -1);
        key = 1; dev = bpf_map_lookup_elem(&devs, &key);
        OUT(14, dev ? *dev : -1);
        return XDP_PASS;
    }"""
    with Twins(tmp_path, source) as twins:
        one = struct.pack("=I", 1)
        assert twins.update("devs", bytes(4), one) == 0
        assert twins.update("hash", struct.pack("=I", 7), one) == 0
        assert twins.update("cpus", bytes(4), struct.pack("=I", 64)) == 0
        assert twins.update("devs", bytes(4), one, 1) == 17
        assert twins.update("devs", struct.pack("=I", 4), one) == 7
        assert twins.update("hash", struct.pack("=I", 7), one, 1) == 17
        result = twins.same(IPV4)
        assert [result.out(i) for i in (0, 1, 2, 3)] == [4, 0, 4, 2]


def test_skb_bytes(kernel: None, tmp_path: Path) -> None:
    source = """
    SEC("tc") int prog(struct __sk_buff *skb) {
        __u8 buf[16] = {1, 2, 3, 4, 5, 6, 7, 8};
        OUT(0, bpf_skb_store_bytes(skb, 6, buf, 6, 0));
        OUT(1, bpf_skb_store_bytes(skb, 60, buf, 16, 0));
        OUT(2, bpf_skb_store_bytes(skb, 30, buf, 4, BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH));
        OUT(3, bpf_skb_store_bytes(skb, 30, buf, 4, 4));
        OUT(4, bpf_skb_load_bytes(skb, 14, buf, 16)); OUT(5, *(__u64 *)buf);
        OUT(6, bpf_skb_load_bytes(skb, 64, buf, 16)); OUT(7, *(__u64 *)buf);
        OUT(8, bpf_skb_load_bytes_relative(skb, 9, buf, 1, BPF_HDR_START_NET)); OUT(9, *(__u64 *)buf);
        OUT(10, bpf_skb_load_bytes_relative(skb, 9, buf, 4, BPF_HDR_START_MAC)); OUT(11, *(__u64 *)buf);
        OUT(12, bpf_skb_load_bytes_relative(skb, 60, buf, 16, BPF_HDR_START_NET));
        OUT(13, *(__u64 *)buf);
        OUT(14, bpf_skb_load_bytes_relative(skb, 0, buf, 4, 2));
        OUT(15, bpf_skb_pull_data(skb, 0)); OUT(16, bpf_skb_pull_data(skb, 40));
        OUT(17, bpf_skb_pull_data(skb, 4000)); OUT(18, skb->len);
        OUT(19, bpf_skb_change_type(skb, 0)); OUT(20, skb->pkt_type);
        OUT(21, bpf_skb_change_type(skb, 7)); OUT(22, skb->protocol);
        return TC_ACT_OK;
    }"""
    with Twins(tmp_path, source) as twins:
        for packet in (IPV4, IPV6, bytes(64)):
            twins.same(packet)


def test_skb_length(kernel: None, tmp_path: Path) -> None:
    source = """
    SEC("tc") int prog(struct __sk_buff *skb) {
        OUT(0, bpf_skb_change_tail(skb, 40, 0)); OUT(1, skb->len);
        OUT(2, bpf_skb_change_tail(skb, 300, 0)); OUT(3, skb->data_end - skb->data);
        OUT(4, bpf_skb_change_tail(skb, 13, 0)); OUT(5, bpf_skb_change_tail(skb, 20000, 0));
        OUT(6, bpf_skb_change_tail(skb, 14, 1)); OUT(7, bpf_skb_change_tail(skb, 60, 0));
        OUT(8, bpf_skb_change_head(skb, 18, 0)); OUT(9, skb->len);
        OUT(10, bpf_skb_change_head(skb, 10, 1)); OUT(11, bpf_skb_change_head(skb, 17000, 0));
        OUT(12, bpf_skb_change_head(skb, 200, 0)); OUT(13, skb->data_end - skb->data);
        __u8 buf[4];
        OUT(14, bpf_skb_load_bytes_relative(skb, 0, buf, 4, BPF_HDR_START_NET));
        OUT(15, *(__u32 *)buf);
        return TC_ACT_OK;
    }"""
    with Twins(tmp_path, source) as twins:
        for packet in (IPV4, IPV6, b"\x55" * 1000):
            twins.same(packet)


def test_checksums(kernel: None, tmp_path: Path) -> None:
    source = """
    SEC("tc") int prog(struct __sk_buff *skb) {
        __be32 from[4] = {0x01020304, 0xfffefdfc, 7, 0}, to[4] = {0xdeadbeef, 1, 2, 0xffffffff};
        OUT(0, bpf_csum_diff(from, 16, to, 16, 0)); OUT(1, bpf_csum_diff(0, 0, to, 16, 0xffff));
        OUT(2, bpf_csum_diff(from, 8, 0, 0, 0x12345678)); OUT(3, bpf_csum_diff(0, 0, 0, 0, 0x12345678));
        OUT(4, bpf_csum_diff(from, 3, to, 4, 0)); OUT(5, bpf_csum_diff(from, 4, to, 12, 0x80000001));
        __u32 diff = bpf_csum_diff(from, 4, to, 4, 0);
        OUT(10, bpf_l3_csum_replace(skb, 24, 0x0640, 0x0440, 2));
        OUT(11, bpf_l3_csum_replace(skb, 24, from[0], to[0], 4));
        OUT(12, bpf_l3_csum_replace(skb, 24, 0, diff, 0)); OUT(13, bpf_l3_csum_replace(skb, 24, 1, diff, 0));
        OUT(14, bpf_l3_csum_replace(skb, 24, 1, 2, 3)); OUT(15, bpf_l3_csum_replace(skb, 25, 1, 2, 2));
        OUT(16, bpf_l3_csum_replace(skb, 24, 1, 2, 2 | BPF_F_PSEUDO_HDR));
        OUT(20, bpf_l4_csum_replace(skb, 50, from[1], to[1], 4 | BPF_F_PSEUDO_HDR));
        OUT(21, bpf_l4_csum_replace(skb, 50, 0x1234, 0x4321, 2));
        OUT(22, bpf_l4_csum_replace(skb, 50, 0, diff, BPF_F_PSEUDO_HDR));
        OUT(23, bpf_l4_csum_replace(skb, 52, 5, 6, 2 | BPF_F_MARK_MANGLED_0));
        OUT(24, bpf_l4_csum_replace(skb, 54, 5, 6, 2 | BPF_F_MARK_MANGLED_0 | BPF_F_MARK_ENFORCE));
        OUT(25, bpf_l4_csum_replace(skb, 56, 0, 0xffff, 2 | BPF_F_MARK_MANGLED_0 | BPF_F_MARK_ENFORCE));
        OUT(26, bpf_l4_csum_replace(skb, 1000, 5, 6, 2)); OUT(27, bpf_l4_csum_replace(skb, 50, 5, 6, 1));
        OUT(28, bpf_l4_csum_replace(skb, 50, 5, 6, 2 | 1 << 9));
        OUT(30, bpf_csum_update(skb, 5));
        OUT(31, bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY)); OUT(32, bpf_csum_level(skb, BPF_CSUM_LEVEL_INC));
        OUT(33, bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY)); OUT(34, bpf_csum_level(skb, BPF_CSUM_LEVEL_INC));
        OUT(35, bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY)); OUT(36, bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC));
        OUT(37, bpf_csum_level(skb, BPF_CSUM_LEVEL_RESET)); OUT(38, bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY));
        OUT(39, bpf_csum_level(skb, 9));
        return TC_ACT_OK;
    }"""
    with Twins(tmp_path, source) as twins:
        for packet in (IPV4, IPV6, bytes(64), b"\xff" * 64):
            twins.same(packet)


ROOM = """
struct args { __s64 difference, mode, flags; };
MAP(args, ARRAY, 1, __u32, struct args);
SEC("tc") int prog(struct __sk_buff *skb) {
    __u32 key = 0;
    struct args *in = bpf_map_lookup_elem(&args, &key);
    if (!in) return 0;
    OUT(0, bpf_skb_adjust_room(skb, in->difference, in->mode, in->flags));
    OUT(1, skb->len); OUT(2, skb->protocol);
    OUT(3, bpf_skb_adjust_room(skb, -in->difference, in->mode, 0));
    OUT(4, skb->data_end - skb->data);
    OUT(5, bpf_skb_adjust_room(skb, 12, BPF_ADJ_ROOM_NET, 0));
    OUT(6, bpf_skb_adjust_room(skb, 8, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4));
    __u8 buf[4] = {};
    OUT(7, bpf_skb_load_bytes_relative(skb, 0, buf, 4, BPF_HDR_START_NET)); OUT(8, *(__u32 *)buf);
    OUT(9, bpf_skb_change_tail(skb, 40, 0));
    return TC_ACT_OK;
}"""


def test_room(kernel: None, tmp_path: Path) -> None:
    flags = (0, 1, 2, 4, 6, 2 | 8, 4 | 16, 2 | 8 | 16, 2 | 64 | 14 << 56, 2 | 64 | 4 << 56,
             2 | 90 << 56, 32, 128, 256, 384, 512, 1 << 40)  # fmt: skip
    with Twins(tmp_path, ROOM) as twins:
        for difference in (8, 20, 40, -8, -20, -40, -60, 5000):
            for mode in (0, 1, 2):
                for flag in flags:
                    given = struct.pack("=qqQ", difference, mode, flag)
                    assert twins.update("args", bytes(4), given) == 0
                    for packet in (IPV4, IPV6, bytes(64)):
                        twins.same(packet)


@pytest.mark.parametrize("to", ["ETH_P_IPV6", "ETH_P_IP", "ETH_P_ARP"])
def test_change_proto(kernel: None, tmp_path: Path, to: str) -> None:
    source = """
    SEC("tc") int prog(struct __sk_buff *skb) {
        OUT(0, bpf_skb_change_proto(skb, bpf_htons(TO), 1));
        OUT(1, bpf_skb_change_proto(skb, bpf_htons(TO), 0)); OUT(2, skb->len); OUT(3, skb->protocol);
        OUT(4, bpf_skb_change_proto(skb, bpf_htons(ETH_P_IP), 0)); OUT(5, skb->len);
        return TC_ACT_OK;
    }""".replace("TO", to)
    with Twins(tmp_path, source) as twins:
        for packet in (IPV4, IPV6, bytes(64)):
            twins.same(packet)


@pytest.mark.parametrize(
    "tags", [b"", b"\x81\x00\x20\x05", b"\x88\xa8\x60\x07\x81\x00\x00\x09",
             b"\x88\xa8\x60\x07\x88\xa8\x00\x09\x81\x00\x00\x0a"],
)  # fmt: skip
def test_vlan(kernel: None, tmp_path: Path, tags: bytes) -> None:
    source = """
    #define SHOW(i, call) OUT(i, call); OUT(i + 1, skb->vlan_present); OUT(i + 2, skb->vlan_tci); \\
        OUT(i + 3, skb->vlan_proto); OUT(i + 4, skb->protocol); OUT(i + 5, skb->len);
    SEC("tc") int prog(struct __sk_buff *skb) {
        if (skb->mark == 0) {
            SHOW(0, bpf_skb_vlan_pop(skb)); SHOW(6, bpf_skb_vlan_pop(skb));
            SHOW(12, bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), 0x123));
            SHOW(18, bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021AD), 0x456));
            SHOW(24, bpf_skb_vlan_push(skb, 0x1234, 0xf789));
            SHOW(30, bpf_skb_vlan_pop(skb)); SHOW(36, bpf_skb_vlan_pop(skb));
            OUT(50, bpf_skb_adjust_room(skb, 8, BPF_ADJ_ROOM_MAC, 0));
        }
        return TC_ACT_OK;
    }"""
    with Twins(tmp_path, source) as twins:
        for packet in (IPV4, IPV6):
            twins.same(packet[:12] + tags + packet[12:])


def test_ecn(kernel: None, tmp_path: Path) -> None:
    source = """
    SEC("cgroup_skb/ingress") int prog(struct __sk_buff *skb) {
        OUT(0, bpf_skb_ecn_set_ce(skb)); OUT(1, skb->len);
        __u8 buf[4] = {};
        OUT(2, bpf_skb_load_bytes(skb, 0, buf, 4)); OUT(3, *(__u32 *)buf);
        OUT(4, bpf_skb_load_bytes(skb, 8, buf, 4)); OUT(5, *(__u32 *)buf);
        OUT(6, bpf_skb_load_bytes_relative(skb, 4, buf, 4, BPF_HDR_START_MAC)); OUT(7, *(__u32 *)buf);
        return 1;
    }"""
    with Twins(tmp_path, source) as twins:
        for ecn in range(4):
            twins.same(IPV4[:15] + bytes([ecn]) + IPV4[16:])
            twins.same(IPV6[:15] + bytes([ecn << 4]) + IPV6[16:])
        twins.same(bytes(64))


def test_text(kernel: None, tmp_path: Path) -> None:
    source = """
    SEC("xdp") int prog(struct xdp_md *ctx) {
        char buf[40] = "unchanged";
        __u64 d[3] = {-5LL, 1234567, 0xabcdef0123};
    #define S(format) bpf_snprintf(buf, sizeof buf, format, d, sizeof d)
    #define P(i, format) OUT(i, S(format)); OUT(i + 1, *(__u64 *)buf); OUT(i + 2, *(__u64 *)(buf + 8)); \\
        OUT(i + 3, *(__u64 *)(buf + 16))
        { static const char f[] = "%d %u %x"; P(0, f); }
        { static const char f[] = "%5d|%-9d|%012d"; P(4, f); }
        { static const char f[] = "%lx %llu %li"; P(8, f); }
        { static const char f[] = "%c%%%X %+d"; P(12, f); }
        { static const char f[] = "% d and some more text to be cut"; P(16, f); }
        { static const char f[] = "%s|"; d[0] = 0; P(20, f); }
        long number = 7; unsigned long positive = 8;
        OUT(30, bpf_strtol(" -0x1fz", 7, 0, &number)); OUT(31, number);
        OUT(32, bpf_strtol("9223372036854775808", 19, 10, &number)); OUT(33, number);
        OUT(34, bpf_strtoul("017", 3, 0, &positive)); OUT(35, positive);
        OUT(36, bpf_strtoul("-1", 2, 0, &positive)); OUT(37, bpf_strtoul("1", 1, 3, &positive));
        OUT(38, bpf_strtol("0x", 2, 0, &number)); OUT(39, bpf_strtol("0x", 2, 16, &number));
        static const char word[] = "hello";
        char same[6] = "hello", less[6] = "help";
        OUT(40, bpf_strncmp(same, 6, word)); OUT(41, bpf_strncmp(less, 4, word));
        OUT(42, bpf_strncmp(same, 3, word));
        return XDP_PASS;
    }"""
    with Twins(tmp_path, source) as twins:
        twins.same()


def test_loops(kernel: None, tmp_path: Path) -> None:
    source = """
    MAP(many, HASH, 16, __u32, __u64); MAP(few, ARRAY, 5, __u32, __u64);
    static int step(__u32 i, void *ctx) { *(__u64 *)ctx += i; return i == 20; }
    static int visit(void *map, __u32 *key, __u64 *value, __u64 *sum) {
        *sum += *key * 100 + *value; *value += 1; return *key == 3;
    }
    static int all(void *map, __u32 *key, __u64 *value, __u64 *sum) {
        *sum += *key * 100 + *value; *value += 1; return 0;
    }
    SEC("xdp") int prog(struct xdp_md *ctx) {
        __u64 sum = 0;
    #define PUT(i) { __u32 k = i; __u64 v = i; bpf_map_update_elem(&many, &k, &v, 0); }
        PUT(0); PUT(1); PUT(2); PUT(3); PUT(9); PUT(5); PUT(6);
        OUT(0, bpf_loop(10, step, &sum, 0)); OUT(1, sum);
        OUT(2, bpf_loop(100, step, &sum, 0)); OUT(3, sum);
        OUT(4, bpf_loop(0, step, &sum, 0)); OUT(5, bpf_loop(1, step, &sum, 1));
        OUT(6, bpf_loop(1 << 24, step, &sum, 0));
        sum = 0; OUT(7, bpf_for_each_map_elem(&many, all, &sum, 0)); OUT(8, sum);
        sum = 0; OUT(9, bpf_for_each_map_elem(&few, visit, &sum, 0)); OUT(10, sum);
        OUT(11, bpf_for_each_map_elem(&few, visit, &sum, 1));
        return XDP_PASS;
    }"""
    with Twins(tmp_path, source) as twins:
        twins.same()


def test_records(kernel: None, tmp_path: Path) -> None:
    source = """
    struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } ring SEC(".maps");
    struct { __uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY); __uint(key_size, 4); __uint(value_size, 4);
             __uint(max_entries, 1); } perf SEC(".maps");
    SEC("xdp") int prog(struct xdp_md *ctx) {
        __u64 data[2] = {0x11, 0x22};
        OUT(0, bpf_ringbuf_output(&ring, data, 16, 0)); OUT(1, bpf_ringbuf_output(&ring, data, 9, 4));
        __u64 *a = bpf_ringbuf_reserve(&ring, 8, 0);
        if (!a) return 0;
        __u32 *b = bpf_ringbuf_reserve(&ring, 4, 0);
        if (!b) { bpf_ringbuf_discard(a, 0); return 0; }
        *a = 1; *b = 2;
        bpf_ringbuf_submit(b, 0); bpf_ringbuf_submit(a, BPF_RB_NO_WAKEUP);
        void *c = bpf_ringbuf_reserve(&ring, 100, 0);
        if (c) bpf_ringbuf_discard(c, 0);
        OUT(2, bpf_ringbuf_query(&ring, BPF_RB_AVAIL_DATA)); OUT(3, bpf_ringbuf_query(&ring, BPF_RB_RING_SIZE));
        OUT(4, bpf_ringbuf_query(&ring, BPF_RB_CONS_POS)); OUT(5, bpf_ringbuf_query(&ring, BPF_RB_PROD_POS));
        c = bpf_ringbuf_reserve(&ring, 3904, 0); OUT(6, c != 0);
        if (c) bpf_ringbuf_discard(c, 0);
        c = bpf_ringbuf_reserve(&ring, 3896, 0); OUT(7, c != 0);
        if (c) bpf_ringbuf_discard(c, 0);
        c = bpf_ringbuf_reserve(&ring, 1, 0); OUT(8, c != 0);
        if (c) bpf_ringbuf_discard(c, 0);
        OUT(9, bpf_ringbuf_output(&ring, data, 16, 0)); OUT(10, bpf_ringbuf_query(&ring, 9));
        return XDP_PASS;
    }"""
    with Twins(tmp_path, source) as twins:
        twins.same()
        batch = twins.emulated.batch([bytes(64)])
        words = [(kind, name, payload) for kind, name, payload in batch.events(0)]
        sixteen = struct.pack("=QQ", 0x11, 0x22)
        assert words == [
            ("ringbuf", "ring", sixteen),
            ("ringbuf", "ring", struct.pack("=Q", 1)),
            ("ringbuf", "ring", struct.pack("=I", 2)),
        ]


def emulated(folder: Path, source: str) -> Emulated:
    return Emulated(compile_bpf(folder, HEAD + source))


def test_events(tmp_path: Path) -> None:
    source = """
    struct { __uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY); __uint(key_size, 4); __uint(value_size, 4);
             __uint(max_entries, 2); } perf SEC(".maps");
    SEC("tc") int prog(struct __sk_buff *skb) {
        __u32 data = 0x01020304;
        OUT(0, bpf_perf_event_output(skb, &perf, BPF_F_CURRENT_CPU | 6ULL << 32, &data, 4));
        OUT(1, bpf_perf_event_output(skb, &perf, 1, &data, 4));
        OUT(2, bpf_perf_event_output(skb, &perf, 2, &data, 4));
        OUT(3, bpf_perf_event_output(skb, &perf, 9999ULL << 32, &data, 4));
        OUT(4, bpf_perf_event_output(skb, &perf, 1ULL << 60, &data, 4));
        bpf_printk("len %d at %x", skb->len, 255);
        OUT(5, bpf_redirect(3, BPF_F_INGRESS)); OUT(6, bpf_redirect(3, 2));
        OUT(7, bpf_redirect_peer(4, 0)); OUT(8, bpf_redirect_neigh(5, 0, 0, 0));
        OUT(9, bpf_clone_redirect(skb, 6, 0)); OUT(10, bpf_clone_redirect(skb, 6, 8));
        return 0;
    }"""
    side = emulated(tmp_path, source)
    batch = side.batch([IPV4])
    assert not batch.faults
    number = struct.Struct("<IQ").pack
    assert batch.events(0) == [
        ("perf", "perf", struct.pack("<II", 0, 0x01020304) + IPV4[:6]),
        ("printk", "", b"len %d at ff" % len(IPV4)),
        ("redirect", "", number(3, 1)),
        ("redirect_peer", "", number(4, 0)),
        ("redirect_neigh", "", number(5, 0)),
        ("clone_redirect", "", number(6, 0) + IPV4),
    ]
    result = [struct.unpack("=q", value)[0] for value in _out(side, 11)]
    assert result == [0, -95, -7, -14, -22, 7, 2, 7, 7, 0, -22]


def _out(side: Emulated, count: int) -> list[bytes]:
    found = (
        side.world.map_lookup(side.numbers["out"], struct.pack("=I", index))
        for index in range(count)
    )
    return [value for value in found if value is not None]


def test_time_and_chance(tmp_path: Path) -> None:
    source = """
    SEC("xdp") int prog(struct xdp_md *ctx) {
        OUT(0, bpf_ktime_get_ns()); OUT(1, bpf_ktime_get_boot_ns()); OUT(2, bpf_get_prandom_u32());
        OUT(3, bpf_get_prandom_u32()); OUT(4, bpf_get_smp_processor_id()); OUT(5, bpf_jiffies64());
        return 0;
    }"""
    side = emulated(tmp_path, source)
    values = []
    for _ in range(2):
        packets = _ubpf.Packets([bytes(64), bytes(64)], times=[10**9, 8 * 10**9])
        side.world.run_batch(side.program, packets.select([1]))
        values.append([struct.unpack("=Q", value)[0] for value in _out(side, 6)])
    assert values[0] == values[1], "the same packet has the same time and chance"
    assert values[0][:2] == [8 * 10**9, 8 * 10**9 + 100]
    assert values[0][2] != values[0][3]
    assert values[0][4:] == [0, 2000]
    side.world.answers(
        {"get_smp_processor_id": 3, "ktime_step_ns": 7, "get_prandom_u32": [b"\1\0\0\0"]}
    )
    batch = side.batch([bytes(64)])
    assert [(fault.kind, fault.what) for fault in batch.faults] == [
        ("unmodelled", "bpf_get_prandom_u32: the recorded answers are used up")
    ]


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ("bpf_sk_lookup_tcp(ctx, 0, 0, 0, 0) != 0", "bpf_sk_lookup_tcp"),
        ("bpf_get_stackid(ctx, &stacks, 0)", "bpf_get_stackid (stack trace map)"),
        ("bpf_get_socket_cookie(ctx)", "bpf_get_socket_cookie"),
        ("bpf_get_current_pid_tgid()", "bpf_get_current_pid_tgid"),
        ("bpf_map_lookup_elem(&stacks, &key) != 0", "bpf_map_lookup_elem (stack trace map)"),
        ("bpf_fib_lookup(ctx, fib, 64, 0)", "bpf_fib_lookup"),
    ],
)
def test_what_is_not_modelled_is_named(tmp_path: Path, call: str, what: str) -> None:
    source = f"""
    struct {{ __uint(type, BPF_MAP_TYPE_STACK_TRACE); __uint(max_entries, 8); __uint(key_size, 4);
              __uint(value_size, 8 * 127); }} stacks SEC(".maps");
    SEC("xdp") int prog(struct xdp_md *ctx) {{
        struct bpf_fib_lookup fib[1] = {{}}; __u32 key = 0; key += stacks.type != 0 ? 0 : 0;
        OUT(0, {call}); OUT(1, fib[0].tot_len + key);
        return 0;
    }}"""
    if "stacks" not in call:
        source = source.replace("key += stacks.type != 0 ? 0 : 0;", "")
    source = source.replace("key += stacks.type != 0 ? 0 : 0;", "")
    batch = emulated(tmp_path, source).batch([bytes(64)])
    assert [(fault.kind, fault.what) for fault in batch.faults] == [("unmodelled", what)]


def test_recorded_answers(tmp_path: Path) -> None:
    source = """
    SEC("xdp") int prog(struct xdp_md *ctx) {
        struct bpf_fib_lookup fib = {}; char name[16] = "unset unset unse";
        OUT(0, bpf_get_current_pid_tgid()); OUT(1, bpf_get_current_comm(name, 16));
        OUT(2, *(__u64 *)name); OUT(3, *(__u64 *)(name + 8));
        OUT(4, bpf_fib_lookup(ctx, &fib, sizeof fib, 0)); OUT(5, fib.family);
        return 0;
    }"""
    side = emulated(tmp_path, source)
    side.world.answers({
        "get_current_pid_tgid": 77, "get_current_comm": b"bash",
        "fib_lookup": struct.pack("<q", 4) + b"\x0a",
    })  # fmt: skip
    side.run(bytes(64))
    result = [struct.unpack("=q", value)[0] for value in _out(side, 6)]
    assert result == [77, 0, int.from_bytes(b"bash", "little"), 0, 4, 10]
    with pytest.raises(ValueError, match="sk_lookup_tcp"):
        side.world.answers({"sk_lookup_tcp": 1})


def test_memory_is_read_where_it_is_modelled(tmp_path: Path) -> None:
    source = """
    SEC("tc") int prog(struct __sk_buff *skb) {
        __u64 v = 5; char s[8] = "zzzzzzz"; void *at = (void *)0xffff800000001000;
        OUT(0, bpf_probe_read_kernel(&v, 8, at)); OUT(1, v);
        OUT(2, bpf_probe_read_kernel(&v, 8, at + 9)); OUT(3, v);
        OUT(4, bpf_probe_read_kernel_str(s, 8, at + 8)); OUT(5, *(__u64 *)s);
        OUT(6, bpf_probe_read_kernel_str(s, 3, at)); OUT(7, *(__u64 *)s);
        OUT(8, bpf_probe_read_user(&v, 8, 0)); OUT(9, bpf_probe_read_kernel_str(s, 8, at + 13));
        return 0;
    }"""
    side = emulated(tmp_path, source)
    side.world.add_memory(0xFFFF800000001000, b"abcdefghij\0klm")
    side.run(bytes(64))
    result = [struct.unpack("=q", value)[0] for value in _out(side, 10)]
    little = int.from_bytes
    assert result == [
        0, little(b"abcdefgh", "little"), -14, 0, 3, little(b"ij\0zzzz\0", "little"),
        3, little(b"ab\0zzzz\0", "little"), -14, -14,
    ]  # fmt: skip


def test_a_bad_pointer_is_a_fault(tmp_path: Path) -> None:
    # r1 = 1; r2 = 16; r3 = 0; call bpf_trace_printk
    code = bytes.fromhex(
        "b701000001000000 b702000010000000 b703000000000000 8500000006000000 9500000000000000"
    )
    world = _ubpf.World()
    program = world.add_program("p", "xdp", code, [], [0])
    (fault,) = world.run_batch(program, _ubpf.Packets([bytes(64)])).faults
    assert (fault.kind, fault.address, fault.size, fault.pc) == ("read", 1, 16, 3)


def test_pointers_of_arguments_are_checked(tmp_path: Path) -> None:
    """A key on the stack, in the packet and in a map; and each of them cut short."""
    source = """
    MAP(m, HASH, 4, __u64, __u64); MAP(a, ARRAY, 1, __u32, __u64);
    SEC("xdp") int prog(struct xdp_md *ctx) {
        __u64 key = 0; __u32 zero = 0;
        void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
        bpf_map_update_elem(&m, &key, &key, 0);
        void *value = bpf_map_lookup_elem(&a, &zero);
        if (!value) return 9;
        int found = (bpf_map_lookup_elem(&m, &key) != 0) + (bpf_map_lookup_elem(&m, value) != 0)
            + (bpf_map_lookup_elem(&m, data) != 0);
        switch (end - data) {
        case 65: return bpf_map_lookup_elem(&m, end - 7) != 0;
        case 66: return bpf_map_lookup_elem(&m, value + 1) != 0;
        case 67: return bpf_map_lookup_elem(&m, (void *)(long)(&key + 600)) != 0;
        case 68: return bpf_map_lookup_elem(&m, ctx) != 0;
        case 69: return bpf_map_lookup_elem(&m, 0) != 0;
        }
        return found;
    }"""
    side = emulated(tmp_path, source)
    batch = side.batch([bytes(n) for n in range(64, 70)])
    assert struct.unpack_from("<Q", batch.verdicts) == (3,)
    found = [(fault.packet, fault.kind, fault.size) for fault in batch.faults]
    assert found == [(n, "read", 8) for n in range(1, 6)]
    assert batch.faults[-1].address == 0


def test_hash_and_time_of_an_skb(tmp_path: Path) -> None:
    source = """
    SEC("tc") int prog(struct __sk_buff *skb) {
        OUT(0, bpf_get_hash_recalc(skb)); OUT(1, skb->hash);
        char other = 9; bpf_skb_store_bytes(skb, 30, &other, 1, 0);
        OUT(2, bpf_get_hash_recalc(skb)); bpf_set_hash_invalid(skb); OUT(3, skb->hash);
        OUT(4, bpf_get_hash_recalc(skb)); bpf_set_hash(skb, 5); OUT(5, bpf_get_hash_recalc(skb));
        return 0;
    }"""
    side = emulated(tmp_path, source)
    side.run(IPV4)
    first, shown, cached, cleared, second, given = (
        struct.unpack("=q", value)[0] for value in _out(side, 6)
    )
    assert first == shown == cached != 0
    assert (cleared, given) == (0, 5)
    assert second not in (0, first)


def test_tstamp(kernel: None, tmp_path: Path) -> None:
    source = """
    SEC("tc") int prog(struct __sk_buff *skb) {
        OUT(0, bpf_skb_set_tstamp(skb, 77, BPF_SKB_TSTAMP_DELIVERY_MONO)); OUT(1, skb->tstamp);
        OUT(2, bpf_skb_set_tstamp(skb, 0, BPF_SKB_TSTAMP_DELIVERY_MONO));
        OUT(3, bpf_skb_set_tstamp(skb, 5, BPF_SKB_TSTAMP_UNSPEC));
        OUT(4, bpf_skb_set_tstamp(skb, 0, BPF_SKB_TSTAMP_UNSPEC)); OUT(5, skb->tstamp);
        OUT(6, bpf_skb_set_tstamp(skb, 5, 9));
        return 0;
    }"""
    with Twins(tmp_path, source) as twins:
        for packet in (IPV4, IPV6, bytes(64)):
            twins.same(packet)


def test_locks(kernel: None, tmp_path: Path) -> None:
    source = """
    struct locked { __u32 before; struct bpf_spin_lock lock; __u64 after; };
    MAP(h, HASH, 4, __u32, struct locked); MAP(a, ARRAY, 4, __u32, struct locked);
    #define TRY(map, base) { __u32 k = 1; struct locked v = { .before = 1, .after = 2 }; \\
        OUT(base, bpf_map_update_elem(&map, &k, &v, 0)); \\
        struct locked *in = bpf_map_lookup_elem(&map, &k); if (!in) return 0; \\
        bpf_spin_lock(&in->lock); in->after += 5; bpf_spin_unlock(&in->lock); \\
        OUT(base + 1, in->after); v.after = 9; \\
        OUT(base + 2, bpf_map_update_elem(&map, &k, &v, BPF_F_LOCK)); OUT(base + 3, in->after); \\
        OUT(base + 4, bpf_map_update_elem(&map, &k, &v, BPF_F_LOCK | BPF_NOEXIST)); \\
        k = 2; OUT(base + 5, bpf_map_update_elem(&map, &k, &v, BPF_F_LOCK)); }
    SEC("tc") int prog(struct __sk_buff *skb) { TRY(h, 0); TRY(a, 10); return 0; }"""
    with Twins(tmp_path, source) as twins:
        twins.same()


def test_results_of_printing_and_probing(kernel: None, tmp_path: Path) -> None:
    source = """
    SEC("tc") int prog(struct __sk_buff *skb) {
        char f[] = "len %d %lx %s", bad[] = "%f", none[] = "no end %d", many[] = "%d %d %d %d";
        char text[8] = "zzzzzzz"; __u64 v = 5, d[4] = {1, 2, 3, 4};
        OUT(0, bpf_trace_printk(f, sizeof f, 14, ~0ULL, f)); OUT(1, bpf_trace_printk(bad, sizeof bad, 1));
        OUT(2, bpf_trace_printk(none, sizeof none - 1, 1)); OUT(3, bpf_trace_printk(many, sizeof many, 1));
        OUT(4, bpf_trace_vprintk(many, sizeof many, d, 32)); OUT(5, bpf_trace_vprintk(many, sizeof many, d, 24));
        OUT(6, bpf_trace_vprintk(many, sizeof many, d, 31)); OUT(7, bpf_snprintf(text, 8, "%d%%", d, 32));
        OUT(8, bpf_snprintf(text, 8, "%ld!", d + 3, 8)); OUT(9, *(__u64 *)text);
        OUT(10, bpf_probe_read_kernel(&v, 8, 0)); OUT(11, v);
        OUT(12, bpf_probe_read_kernel_str(text, 8, (void *)8)); OUT(13, *(__u64 *)text);
        OUT(14, bpf_probe_read_kernel(&v, 8, d + 1)); OUT(15, v);
        OUT(16, bpf_probe_read_kernel_str(text, 8, f)); OUT(17, *(__u64 *)text);
        OUT(18, bpf_probe_read_kernel_str(text, 4, many + 9)); OUT(19, *(__u64 *)text);
        OUT(20, bpf_probe_read_user(&v, 8, 0)); OUT(21, v);
        return 0;
    }"""
    with Twins(tmp_path, source) as twins:
        twins.same()


def test_redirect_of_an_skb(kernel: None, tmp_path: Path) -> None:
    source = """
    SEC("tc") int prog(struct __sk_buff *skb) {
        struct bpf_redir_neigh neigh = { .nh_family = 2 };
        OUT(0, bpf_redirect(1, 0)); OUT(1, bpf_redirect(1, BPF_F_INGRESS)); OUT(2, bpf_redirect(1, 2));
        OUT(3, bpf_redirect_peer(1, 0)); OUT(4, bpf_redirect_peer(1, 1));
        OUT(5, bpf_redirect_neigh(1, 0, 0, 0)); OUT(6, bpf_redirect_neigh(1, 0, 0, 1));
        OUT(7, bpf_redirect_neigh(1, &neigh, sizeof neigh, 0)); OUT(8, bpf_redirect_neigh(1, &neigh, 8, 0));
        OUT(9, bpf_clone_redirect(skb, 1, 2));
        return TC_ACT_OK;
    }"""
    with Twins(tmp_path, source) as twins:
        twins.same()


def _calls(helper: int) -> bytes:
    """r1..r5 = the first five values of map 0 (a value of 40 bytes); call; r0 = 0; exit."""
    loads = b"".join(
        bytes([0x79, 6 << 4 | register, 8 * (register - 1), 0]) + bytes(4)
        for register in range(1, 6)
    )
    return (
        bytes.fromhex("1826000000000000 0000000000000000") + loads
        + bytes([0x85, 0, 0, 0]) + struct.pack("<I", helper)
        + bytes.fromhex("b700000000000000 9500000000000000")
    )  # fmt: skip


@pytest.mark.parametrize("context", ["xdp", "skb", "skb-l3", "plain"])
def test_no_arguments_break_a_helper(context: str) -> None:
    """Whatever a program passes, a helper gives a result or a fault that is no crash."""
    chance = random.Random(context)
    world = _ubpf.World(seed=1)
    world.add_map("args", 2, 4, 40, 1)
    for kind, key, value, entries, flags in (
        (1, 8, 8, 4, 0), (2, 4, 64, 4, 0), (5, 4, 12, 4, 0), (6, 4, 12, 4, 0), (9, 4, 8, 3, 0),
        (11, 8, 8, 4, 1), (14, 4, 4, 4, 0), (16, 4, 4, 4, 0), (17, 4, 4, 4, 0), (22, 0, 8, 2, 0),
        (23, 0, 8, 2, 0), (25, 4, 8, 4, 0), (27, 0, 0, 4096, 0), (4, 4, 4, 1, 0), (3, 4, 4, 2, 0),
        (7, 4, 8, 2, 0),
    ):  # fmt: skip
        world.add_map(f"map{kind}", kind, key, value, entries, flags)
    low, high = 0xE000_0000, 0x10_0000_0000
    regions = [
        low + 0x4_0000 - 64,
        low + 0x4_1000,
        low + 0x5_0000 + 256,
        low + 0x5_1000,
        high,
        high + 4096,
    ]
    packets = _ubpf.Packets(
        [IPV4, IPV6, bytes(range(14)), b"\xff" * 300], bytes(64) if context == "plain" else b""
    )
    crashes = []
    for helper in range(1, 212):
        if helper in (12, 164, 181, 209):  # tail calls and callbacks: the engine's own tests
            continue
        program = world.add_program("p", context, _calls(helper), [0], [0])
        for _ in range(60):
            values = [
                chance.choice([
                    low + 0x4_1000,
                    0x4D41_5000_0000_0000 + chance.randrange(18),
                    chance.choice(regions) + chance.randrange(-8, 80),
                    chance.randrange(100), chance.randrange(100),
                    1 << chance.randrange(64), -1 - (1 << chance.randrange(40)),
                    chance.getrandbits(64),
                ])
                for _ in range(5)
            ]  # fmt: skip
            args = b"".join(struct.pack("<Q", value % (1 << 64)) for value in values)
            world.map_update(0, bytes(4), args)
            batch = world.run_batch(program, packets)
            crashes += [
                (helper, fault.what, [hex(v % (1 << 64)) for v in values])
                for fault in batch.faults if fault.kind not in ("read", "write", "unmodelled")
            ]  # fmt: skip
    assert not crashes, crashes[:5]

"""Programs written for what the corpus does not have, in the kernel and in the emulator.

Where they must differ (eviction from LRU maps, order of hash maps, time, chance, what is not
modelled) ``differences.toml`` says so by name. Perf event records are read from the kernel's buffers.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpfchain.transform.policy import hook_named
from bpfchain.verify.engines.protocol import Inputs
from bpfchain.verify.inputs import inputs_of
from emulator.differential import compare, expect, setup_of, unknown
from emulator.twins import HEAD, Emulated, Real
from support.bpfcode import compile_bpf
from support.proofs import builtin, compiled

pytestmark = pytest.mark.usefixtures("kernel")

MAP = """
#define MAP(name, kind, n, k, v, ...) struct { __uint(type, BPF_MAP_TYPE_##kind); \\
    __uint(max_entries, n); __type(key, k); __type(value, v); __VA_ARGS__; } name SEC(".maps")
MAP(out, ARRAY, 64, __u32, __u64);
static __always_inline void OUT(__u32 i, __u64 v) { bpf_map_update_elem(&out, &i, &v, 0); }
#define XDP SEC("xdp") int prog(struct xdp_md *ctx)
#define TC SEC("tc") int prog(struct __sk_buff *ctx)
"""
LEGACY = """
unsigned long long load_byte(void *skb, unsigned long long off) asm("llvm.bpf.load.byte");
unsigned long long load_half(void *skb, unsigned long long off) asm("llvm.bpf.load.half");
unsigned long long load_word(void *skb, unsigned long long off) asm("llvm.bpf.load.word");
int turn;
static const int at[] = { 0, 1, 12, 13, 14, 20, 23, 33, 34, 53, 60, 63, 64, 100, 1500, 70000, -1, -4,
    -0x1000, -0x1000 + 4, -0x100000, -0x100000 + 9, -0x100000 + 60, -0x200000, -0x200000 + 12,
    -0x200000 + 70, 0x7fffffff, 62, 61, 2, -2, -0x100000 + 64 };
SEC(SECTION) int prog(struct __sk_buff *ctx)
{
    __u32 n = turn++;
    int offset = at[n / 3 & 31];
    OUT(0, n);
    switch (n % 3) {
    case 0: OUT(1, load_byte(ctx, offset)); break;
    case 1: OUT(2, load_half(ctx, offset)); break;
    default: OUT(3, load_word(ctx, offset)); break;
    }
    OUT(4, load_word(ctx, 12));
    return 1;
}
"""
SUBJECTS = {
    "ld_abs": ("socket", LEGACY.replace("SECTION", '"socket"')),
    "ld_abs_tc": ("tc", LEGACY.replace("SECTION", '"tc"')),
    "lru_eviction": ("xdp", """
        MAP(lru, LRU_HASH, 64, __u32, __u64);
        __u32 next;
        XDP { __u32 key; __u64 value = 7;
              for (int i = 0; i < 16; i++) { key = next++; bpf_map_update_elem(&lru, &key, &value, 0);
                                             key = 3; bpf_map_lookup_elem(&lru, &key); }
              return 2; }"""),
    "hash_order": ("xdp", """
        MAP(table, HASH, 64, __u32, __u64);
        static long each(void *map, __u32 *key, __u64 *value, __u64 *sum)
        { *sum = *sum * 31 + *key; return 0; }
        XDP { __u64 sum = 0, one = 1;
              for (__u32 key = 0; key < 40; key++) bpf_map_update_elem(&table, &key, &one, 0);
              bpf_for_each_map_elem(&table, each, &sum, 0); OUT(0, sum); return 2; }"""),
    "array_order": ("xdp", """
        MAP(table, ARRAY, 40, __u32, __u64);
        static long each(void *map, __u32 *key, __u64 *value, __u64 *sum)
        { *sum = *sum * 31 + *key + *value; *value += 1; return *key == 33; }
        XDP { __u64 sum = 0; OUT(1, bpf_for_each_map_elem(&table, each, &sum, 0));
              OUT(0, sum); OUT(2, bpf_for_each_map_elem(&table, each, &sum, 4)); return 2; }"""),
    "time": ("xdp", "XDP { OUT(0, bpf_ktime_get_ns()); return 2; }"),
    "chance": ("xdp", "XDP { OUT(0, bpf_get_prandom_u32()); return 2; }"),
    "flow_hash": ("tc", "TC { OUT(0, bpf_get_hash_recalc(ctx)); return 0; }"),
    "cpu": ("xdp", "XDP { OUT(0, bpf_get_smp_processor_id()); OUT(1, bpf_get_numa_node_id());"
                   " return 2; }"),
    "devmap_lookup": ("xdp", """
        MAP(devices, DEVMAP, 4, __u32, __u32);
        XDP { __u32 key = 1; OUT(0, !bpf_map_lookup_elem(&devices, &key));
              OUT(1, bpf_redirect_map(&devices, 1, 1)); OUT(2, bpf_redirect_map(&devices, 9, 2));
              OUT(3, bpf_redirect_map(&devices, 0, 3)); OUT(4, bpf_redirect_map(&devices, 0, 64));
              return 2; }"""),
    "cpumap": ("xdp", """
        MAP(cpus, CPUMAP, 1, __u32, __u32);
        XDP { OUT(0, bpf_redirect_map(&cpus, 0, 1)); OUT(1, bpf_redirect_map(&cpus, 5, 2));
              OUT(2, bpf_redirect_map(&cpus, 0, 8)); return 2; }"""),
    "xskmap": ("xdp", """
        MAP(sockets, XSKMAP, 4, __u32, __u32);
        XDP { OUT(0, bpf_redirect_map(&sockets, 0, 1)); OUT(1, bpf_redirect_map(&sockets, 9, 2));
              OUT(2, bpf_redirect_map(&sockets, 0, 16)); return 2; }"""),
    "xskmap_lookup": ("xdp", """
        MAP(sockets, XSKMAP, 4, __u32, __u32);
        XDP { __u32 key = 1; return bpf_map_lookup_elem(&sockets, &key) ? 1 : 2; }"""),
    "devmap_hash": ("xdp", """
        MAP(devices, DEVMAP_HASH, 4, __u32, __u32);
        XDP { OUT(0, bpf_redirect_map(&devices, 77, 1)); OUT(1, bpf_redirect_map(&devices, 77, 32));
              return 2; }"""),
    "queue_and_stack": ("xdp", """
        struct { __uint(type, BPF_MAP_TYPE_QUEUE); __uint(max_entries, 5); __uint(value_size, 8);
        } queue SEC(".maps");
        struct { __uint(type, BPF_MAP_TYPE_STACK); __uint(max_entries, 5); __uint(value_size, 8);
        } stack SEC(".maps");
        __u64 turn;
        XDP { __u64 value = ++turn, got = 0; long flags[] = {0, 2, 1, 4};
              OUT(0, bpf_map_push_elem(&queue, &value, flags[turn % 4]));
              OUT(1, bpf_map_push_elem(&stack, &value, flags[turn % 4]));
              OUT(2, bpf_map_peek_elem(&queue, &got)); OUT(3, got);
              OUT(4, bpf_map_peek_elem(&stack, &got)); OUT(5, got);
              if (turn % 3 == 0) { OUT(6, bpf_map_pop_elem(&queue, &got)); OUT(7, got);
                                   OUT(8, bpf_map_pop_elem(&stack, &got)); OUT(9, got); }
              return 2; }"""),
    "atomics": ("xdp", """
        MAP(cells, HASH, 8, __u32, __u64);
        __u64 shared; __u32 narrow = 0xfffffff0;
        XDP { __u32 key = ctx->data_end - ctx->data & 3; __u64 *cell, start = 5;
              bpf_map_update_elem(&cells, &key, &start, 1);
              cell = bpf_map_lookup_elem(&cells, &key); if (!cell) return 1;
              OUT(0, __sync_fetch_and_add(cell, 1ull << 40)); OUT(1, __sync_fetch_and_or(cell, 6));
              OUT(2, __sync_fetch_and_and(cell, ~4ull)); OUT(3, __sync_fetch_and_xor(cell, -1));
              OUT(4, __sync_lock_test_and_set(cell, shared));
              OUT(5, __sync_val_compare_and_swap(cell, shared, 99));
              OUT(6, __sync_val_compare_and_swap(cell, 1, 2));
              OUT(7, __sync_fetch_and_add(&narrow, 7)); OUT(8, __sync_fetch_and_xor(&narrow, 3));
              OUT(9, __sync_val_compare_and_swap(&narrow, 4, 5));
              OUT(10, __sync_lock_test_and_set(&narrow, narrow + 1));
              __sync_fetch_and_add(&shared, *cell); return 2; }"""),
    "loops": ("xdp", """
        struct sums { __u64 outer, inner; };
        static long inner(__u32 i, struct sums *s) { s->inner += i ^ s->outer; return i == 5; }
        static long outer(__u32 i, struct sums *s)
        { s->outer += bpf_loop(i, inner, s, 0); return s->outer > 60; }
        XDP { struct sums s = {}; OUT(0, bpf_loop(50, outer, &s, 0)); OUT(1, s.outer);
              OUT(2, s.inner); OUT(3, bpf_loop(0, outer, &s, 0));
              OUT(4, bpf_loop((8 << 20) + 1, outer, &s, 0)); OUT(5, bpf_loop(3, outer, &s, 1));
              return 2; }"""),
    "tail_limit": ("xdp", """
        struct { __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 2); __type(key, __u32);
                 __array(values, int(struct xdp_md *)); } jumps SEC(".maps");
        int depth, after;
        static __attribute__((noinline)) int go(struct xdp_md *ctx)
        { bpf_tail_call(ctx, &jumps, 0); after++; return 5; }
        SEC("xdp") int again(struct xdp_md *ctx) { depth++; return go(ctx) + 1; }
        struct { __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 2); __type(key, __u32);
                 __array(values, int(struct xdp_md *)); } start SEC(".maps") = {
            .values = { [1] = (void *)&again } };
        XDP { depth = 0; after = 0; OUT(0, go(ctx)); bpf_tail_call(ctx, &start, 0);
              bpf_tail_call(ctx, &start, 1); return 1; }"""),
    "tail_33": ("xdp", """
        int prog(struct xdp_md *ctx);
        struct { __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 2); __type(key, __u32);
                 __array(values, int(struct xdp_md *)); } jumps SEC(".maps") = {
            .values = { [1] = (void *)&prog } };
        __u64 runs;
        static __attribute__((noinline)) int sub(struct xdp_md *ctx, int which)
        { bpf_tail_call(ctx, &jumps, which); runs += 1000; return 1; }
        XDP { runs++; if (ctx->data_end - ctx->data & 1) return sub(ctx, 1) + 1;
              bpf_tail_call(ctx, &jumps, 1); OUT(0, runs); return 2; }"""),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_cpu() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.parametrize("name", SUBJECTS)
def test_kinds(name: str) -> None:
    section, source = SUBJECTS[name]
    hook = hook_named(section)
    whole = inputs_of(builtin(), hook)[0]
    inputs = Inputs(whole.packets[:200], whole.contexts[:200])
    data = compiled(MAP + source, ("-mcpu=v3",))
    expect(f"kinds/{name}", compare(setup_of(data, hook, "prog"), inputs))


def test_the_list_names_what_is_there() -> None:
    assert not unknown((f"kinds/{name}" for name in SUBJECTS), "kinds/")


PERF = """
MAP(events, PERF_EVENT_ARRAY, 4, __u32, __u32);
SEC("SECTION") int prog(CTX *ctx) {
    char text[24] = "what a program has to say";
    __u64 flags[] = { BPF_F_CURRENT_CPU, 0, BPF_F_CURRENT_CPU | 20ull << 32, 0 | 64ull << 32,
                      BPF_F_CURRENT_CPU | 5000ull << 32, 1, 9, 1ull << 60 };
    #pragma unroll
    for (int i = 0; i < 8; i++)
        OUT(i, bpf_perf_event_output(ctx, &events, flags[i], text, 3 * i + 1));
    return 1;
}
"""
_SAMPLE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint32)


@contextmanager
def perf_buffer(descriptor: int, into: list[bytes]) -> Iterator[ctypes.CDLL]:
    """libbpf's reader of a perf event array, which appends to ``into`` when it consumes."""
    lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    lib.perf_buffer__new.restype = ctypes.c_void_p
    lib.perf_buffer__new.argtypes = (
        ctypes.c_int, ctypes.c_size_t, _SAMPLE, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
    )  # fmt: skip
    for call in (lib.perf_buffer__consume, lib.perf_buffer__free):
        call.argtypes = (ctypes.c_void_p,)
    sample = _SAMPLE(lambda _, __, data, size: into.append(ctypes.string_at(data, size)))
    buffer = lib.perf_buffer__new(descriptor, 8, sample, None, None, None)
    assert buffer, os.strerror(ctypes.get_errno())
    try:
        yield lambda: lib.perf_buffer__consume(buffer)  # type: ignore[misc]
    finally:
        lib.perf_buffer__free(buffer)


@pytest.mark.parametrize(
    ("section", "ctx"),
    [("xdp", "struct xdp_md"), ("tc", "struct __sk_buff"),
     ("cgroup_skb/ingress", "struct __sk_buff")],
)  # fmt: skip
def test_perf_records(tmp_path: Path, section: str, ctx: str) -> None:
    """The kernel's records are padded to 8 bytes less 4 with what lies there: the length tells."""
    source = HEAD + PERF.replace("SECTION", section).replace("CTX", ctx)
    data = compile_bpf(tmp_path, source)
    emulated, real = Emulated(data), Real(data)
    records: list[bytes] = []
    packets = [bytes(range(64)), bytes(range(14, 114)), b"\1" * 200]
    try:
        with perf_buffer(real.map["events"].fileno(), records) as consume:
            for packet in packets:
                records.clear()
                theirs = real.run(packet)
                consume()  # type: ignore[operator]
                batch = emulated.batch([packet])
                assert not batch.faults
                ours = [event[2][4:] for event in batch.events(0) if event[0] == "perf"]
                assert {k: v for k, v in emulated.maps().items() if k == "out"} == {
                    "out": theirs.maps["out"]
                }
                assert len(ours) == len(records) >= 3
                for mine, other in zip(ours, records, strict=True):
                    assert other[: len(mine)] == mine
                    assert len(mine) <= len(other) < len(mine) + 8
    finally:
        real.close()


def test_the_note_of_a_perf_record_names_the_cpu(tmp_path: Path) -> None:
    data = compile_bpf(
        tmp_path, HEAD + PERF.replace("SECTION", "xdp").replace("CTX", "struct xdp_md")
    )
    events = Emulated(data).batch([bytes(64)]).events(0)
    assert {struct.unpack("<I", event[2][:4])[0] for event in events} == {0}

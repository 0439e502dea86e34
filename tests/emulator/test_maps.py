"""Maps hold what the kernel's hold, and say what its say: the same operations in both."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpfchain.emulator import _ubpf
from emulator.twins import HEAD, Emulated, Twins
from support.bpfcode import compile_bpf

U32 = struct.Struct("=I").pack
EPERM = 1
HASH, ARRAY, PROG_ARRAY, PERCPU_ARRAY = 1, 2, 3, 6
LRU_HASH, LPM_TRIE, ARRAY_OF_MAPS, QUEUE = 9, 11, 12, 22
NO_PREALLOC = 1

OPERATIONS = """
struct op { __u32 what, key; __u64 value, flags; };
MAP(ops, ARRAY, 16, __u32, struct op); MAP(m, KIND, 5, KEY, __u64, EXTRA);
SEC("xdp") int prog(struct xdp_md *ctx) {
    #pragma unroll
    for (__u32 i = 0; i < 16; i++) {
        __u32 at = i;
        struct op *op = bpf_map_lookup_elem(&ops, &at);
        if (!op) return 0;
        KEY key = KEY_OF(op->key);
        __u64 *value;
        if (op->what == 0) { OUT(i, bpf_map_update_elem(&m, &key, &op->value, op->flags)); }
        else if (op->what == 1) { OUT(i, bpf_map_delete_elem(&m, &key)); }
        else {
            value = bpf_map_lookup_elem(&m, &key);
            if (value && op->what == 2) *value += op->value;
            OUT(i, value ? *value : -1);
        }
    }
    return XDP_PASS;
}
"""
PLAIN = ("__u32", "(x)", "")
KINDS = {
    "HASH": PLAIN, "ARRAY": PLAIN, "PERCPU_HASH": PLAIN, "PERCPU_ARRAY": PLAIN,
    "LRU_HASH": PLAIN, "LRU_PERCPU_HASH": PLAIN, "HASH NO_PREALLOC": ("__u32", "(x)", "__uint(map_flags, 1)"),
    "LPM_TRIE": ("struct prefix", "{ (x) >> 3, (x) << 24 | (x) << 5 }", "__uint(map_flags, 1)"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_random_operations(kernel: None, tmp_path: Path, kind: str) -> None:
    key, of, extra = KINDS[kind]
    number, *_ = kind.split()
    if kind == "LPM_TRIE":
        source = "struct prefix { __u32 bits, data; };\n"
        keys = st.integers(0, 33 << 3 | 7)
    else:
        source, keys = "", st.integers(0, 7)
    source += (
        f"#define KIND {kind.split(maxsplit=1)[0]}\n#define KEY {key}\n#define KEY_OF(x) {of}\n"
    )
    source += f"#define EXTRA {extra}\n" + OPERATIONS
    flags = (
        [0, 0, 0, 1, 2, 3, 8]
        if kind.split(maxsplit=1)[0] in ("HASH", "ARRAY")
        else [0, 0, 1, 2, 3, 4]
    )
    operation = st.tuples(st.integers(0, 3), keys, st.integers(1, 9), st.sampled_from(flags))
    # An LRU map of a few entries drops some of them early in the kernel: this one never does.
    entries = 1000 if "LRU" in kind else 5
    with Twins(tmp_path, source.replace("KIND, 5", f"{number}, {entries}")) as twins:

        @settings(
            max_examples=60,
            database=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        )
        @given(st.lists(operation, min_size=16, max_size=16))
        def run(operations: list[tuple[int, int, int, int]]) -> None:
            for index, (what, key, value, flags) in enumerate(operations):
                op = struct.pack("=IIQQ", what, key, value, flags)
                assert twins.update("ops", U32(index), op) == 0
            twins.same()
            what, key, value, flags = operations[0]
            if kind == "LPM_TRIE":
                bytes_ = struct.pack("=II", key >> 3, (key << 24 | key << 5) & 0xFFFFFFFF)
            else:
                bytes_ = U32(key)
            twins.update("m", bytes_, struct.pack("=Q", value), flags)
            twins.delete("m", bytes_)
            twins.same()

        run()


def test_queue_and_stack(kernel: None, tmp_path: Path) -> None:
    source = """
    struct { __uint(type, BPF_MAP_TYPE_QUEUE); __uint(max_entries, 3); __type(value, __u64); } q SEC(".maps");
    struct { __uint(type, BPF_MAP_TYPE_STACK); __uint(max_entries, 3); __type(value, __u64); } s SEC(".maps");
    #define ALL(base, M) { __u64 v = 99; \\
        OUT(base, bpf_map_pop_elem(&M, &v)); OUT(base + 1, v); OUT(base + 2, bpf_map_peek_elem(&M, &v)); \\
        v = 1; OUT(base + 3, bpf_map_push_elem(&M, &v, 0)); v = 2; bpf_map_push_elem(&M, &v, 0); \\
        OUT(base + 4, bpf_map_peek_elem(&M, &v)); OUT(base + 5, v); \\
        v = 3; OUT(base + 6, bpf_map_push_elem(&M, &v, 0)); \\
        v = 4; OUT(base + 7, bpf_map_push_elem(&M, &v, 0)); \\
        OUT(base + 8, bpf_map_push_elem(&M, &v, BPF_EXIST)); OUT(base + 9, bpf_map_push_elem(&M, &v, 1)); \\
        OUT(base + 10, bpf_map_pop_elem(&M, &v)); OUT(base + 11, v); \\
        OUT(base + 12, bpf_map_pop_elem(&M, &v)); OUT(base + 13, v); \\
        OUT(base + 14, bpf_map_push_elem(&M, &v, 3)); }
    SEC("xdp") int prog(struct xdp_md *ctx) { ALL(0, q); ALL(20, s); return XDP_PASS; }
    """
    with Twins(tmp_path, source) as twins:
        twins.same()
        side = twins.emulated
        assert side.world.map_items(side.numbers["q"]) == [(U32(0), struct.pack("=Q", 4))]
        assert side.world.map_items(side.numbers["s"]) == [(U32(0), struct.pack("=Q", 2))]
        side.world.map_update(side.numbers["q"], b"", bytes(8))
        assert len(side.world.map_items(side.numbers["q"])) == 2


def test_an_updated_element_leaves_its_old_value(kernel: None, tmp_path: Path) -> None:
    """As the kernel's preallocated hash map: the new value gets another element's memory."""
    source = """
    MAP(m, HASH, 4, __u32, __u64); MAP(a, ARRAY, 4, __u32, __u64); MAP(p, PERCPU_HASH, 4, __u32, __u64);
    #define TRY(map, base) { __u32 k = 1; __u64 v = 5; bpf_map_update_elem(&map, &k, &v, 0); \\
        __u64 *old = bpf_map_lookup_elem(&map, &k); if (!old) return 0; \\
        v = 6; bpf_map_update_elem(&map, &k, &v, 0); OUT(base, *old); *old = 77; \\
        __u64 *new = bpf_map_lookup_elem(&map, &k); if (!new) return 0; \\
        OUT(base + 1, *new); OUT(base + 2, old == new); \\
        bpf_map_delete_elem(&map, &k); OUT(base + 3, *new); }
    SEC("xdp") int prog(struct xdp_md *ctx) { TRY(m, 0); TRY(a, 10); TRY(p, 20); return XDP_PASS; }
    """
    with Twins(tmp_path, source) as twins:
        result = twins.same()
        assert [result.out(i) for i in (0, 1, 2, 10)] == [5, 6, 0, 6]


def test_percpu_values(tmp_path: Path) -> None:
    source = """
    MAP(a, PERCPU_ARRAY, 2, __u32, __u32); MAP(h, PERCPU_HASH, 2, __u32, __u32);
    SEC("xdp") int prog(struct xdp_md *ctx) {
        __u32 k = 1, v = 7, *x, cpu = 0;
        bpf_map_update_elem(&a, &k, &v, 0); bpf_map_update_elem(&h, &k, &v, 0);
        static long (*percpu)(void *, const void *, __u32) = (void *)195;
        x = (__u32 *)percpu(&a, &k, 1); OUT(0, x ? *x : -1); x = (__u32 *)percpu(&h, &k, 2); OUT(1, x ? *x : -1);
        OUT(2, percpu(&a, &k, 3)); OUT(3, bpf_get_smp_processor_id());
        x = bpf_map_lookup_elem(&a, &k); OUT(4, x ? *x : -1);
        return XDP_PASS;
    }"""
    side = Emulated(compile_bpf(tmp_path, HEAD + source), cpus=3)
    world, a, h = side.world, side.numbers["a"], side.numbers["h"]
    world.map_update(a, U32(0), U32(9))
    world.map_update(a, U32(1), b"".join(U32(n) + bytes(4) for n in (1, 2, 3)))
    world.answers({"get_smp_processor_id": 2})
    side.run(bytes(64))
    word = struct.Struct("=I4x").pack
    assert world.map_items(a) == [(U32(0), word(9) * 3), (U32(1), word(1) + word(2) + word(7))]
    assert world.map_items(h) == [(U32(1), bytes(16) + word(7))]
    out = [world.map_lookup(side.numbers["out"], U32(i)) for i in range(5)]
    assert [struct.unpack("=q", value or b"")[0] for value in out] == [2, 7, 0, 2, 7]
    with pytest.raises(OSError, match="Invalid argument"):
        world.map_update(a, U32(1), bytes(16))


def test_lru_drops_the_least_recently_used(tmp_path: Path) -> None:
    source = """
    MAP(m, LRU_HASH, 3, __u32, __u64);
    SEC("xdp") int prog(struct xdp_md *ctx) {
        __u32 k = 1; __u64 v = 9, *x = bpf_map_lookup_elem(&m, &k);
        k = 4; OUT(0, bpf_map_update_elem(&m, &k, &v, 0));
        k = 2; OUT(1, bpf_map_lookup_elem(&m, &k) != 0); k = 1; OUT(2, bpf_map_lookup_elem(&m, &k) != 0);
        return XDP_PASS;
    }"""
    side = Emulated(compile_bpf(tmp_path, HEAD + source))
    for key in (1, 2, 3):
        side.world.map_update(side.numbers["m"], U32(key), bytes(8))
    side.world.map_lookup(side.numbers["m"], U32(2))  # from user space: no use
    side.run(bytes(64))
    items = side.world.map_items(side.numbers["m"])
    assert [key for key, _ in items] == [U32(1), U32(3), U32(4)]


def test_maps_of_maps(tmp_path: Path, kernel: None) -> None:
    source = """
    struct inner { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 2); __type(key, __u32);
                   __type(value, __u64); } one SEC(".maps");
    struct { __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS); __uint(max_entries, 4); __type(key, __u32);
             __array(values, struct inner); } arrays SEC(".maps");
    struct { __uint(type, BPF_MAP_TYPE_HASH_OF_MAPS); __uint(max_entries, 4); __type(key, __u32);
             __array(values, struct inner); } hashes SEC(".maps");
    #define TRY(outer, k, base) { __u32 key = k; void *in = bpf_map_lookup_elem(&outer, &key); \\
        OUT(base, in != 0); if (in) { key = 1; __u64 *v = bpf_map_lookup_elem(in, &key); \\
        if (v) OUT(base + 1, *v += 3); } }
    SEC("xdp") int prog(struct xdp_md *ctx) {
        TRY(arrays, 1, 0); TRY(arrays, 2, 2); TRY(arrays, 9, 4); TRY(hashes, 7, 6); TRY(hashes, 8, 8);
        OUT(20, (long)&one == 0);
        return XDP_PASS;
    }"""
    with Twins(tmp_path, source) as twins:
        one = twins.emulated.numbers["one"]
        for name, key in (("arrays", 1), ("hashes", 7)):
            twins.real.map[name].set_fd(key, twins.real.map["one"].fileno())
            twins.emulated.world.set_inner(twins.emulated.numbers[name], U32(key), one)
        result = twins.same()
        assert [result.out(i) for i in (0, 1, 2, 6, 7, 8)] == [1, 3, 0, 1, 6, 0]
        world = twins.emulated.world
        assert world.map_items(twins.emulated.numbers["hashes"]) == [(U32(7), U32(one))]
        with pytest.raises(OSError, match="Invalid argument"):
            world.set_inner(
                twins.emulated.numbers["arrays"], bytes(4), twins.emulated.numbers["out"]
            )


def world_with(*maps: tuple[int, int, int, int]) -> _ubpf.World:
    world = _ubpf.World()
    for kind, key, value, entries in maps:
        world.add_map(
            f"map{kind}", kind, key, value, entries, NO_PREALLOC if kind == LPM_TRIE else 0
        )
    return world


def test_save_and_restore(tmp_path: Path) -> None:
    def fresh() -> _ubpf.World:
        return world_with((HASH, 4, 8, 100), (ARRAY, 4, 8, 100_000), (LRU_HASH, 4, 8, 4),
                          (LPM_TRIE, 8, 4, 10), (QUEUE, 0, 4, 5), (PROG_ARRAY, 4, 4, 3))  # fmt: skip

    world, other = fresh(), fresh()
    maps = range(6)

    def fill(world: _ubpf.World, start: int) -> None:
        for n in range(start, start + 4):
            world.map_update(0, U32(n), struct.pack("=Q", n))
            world.map_update(1, U32(n * 9000), struct.pack("=Q", n + 1))
            world.map_update(2, U32(n), struct.pack("=Q", n))
            world.map_update(3, struct.pack("=II", n % 32, n), U32(n))
        world.map_update(4, b"", U32(start))
        world.set_marker(5, start % 3, start)

    fill(world, 0)
    first = [world.map_items(m) for m in maps]
    handle = world.save()
    fill(world, 4)
    world.map_delete(0, U32(1))
    second = [world.map_items(m) for m in maps]
    assert all(a != b for a, b in zip(first, second, strict=True))
    for _ in range(2):
        world.restore(handle)
        assert [world.map_items(m) for m in maps] == first
        fill(world, 4)
        world.map_delete(0, U32(1))
        assert [world.map_items(m) for m in maps] == second
    fill(other, 0)
    differ = [world.map_differs(m, other, m) for m in maps]
    assert differ == [True] * 6
    world.restore(handle)
    assert [world.map_differs(m, other, m) for m in maps] == [False] * 6
    assert [other.map_differs(m, world, m) for m in maps] == [False] * 6
    other.map_update(1, U32(99_999), struct.pack("=Q", 1))
    assert world.map_differs(1, other, 1)
    assert other.map_differs(1, world, 1)
    other.map_update(1, U32(99_999), bytes(8))
    assert not world.map_differs(1, other, 1)
    assert world.map_differs(0, other, 1)


def test_what_the_kernel_refuses_to_make() -> None:
    world = _ubpf.World()
    for kind, key, value, entries in (
        (HASH, 0, 8, 1), (HASH, 4, 0, 1), (HASH, 4, 8, 0), (ARRAY, 8, 8, 1), (PROG_ARRAY, 4, 8, 1),
        (QUEUE, 4, 4, 1), (27, 0, 0, 5000), (14, 4, 16, 1), (LPM_TRIE, 8, 4, 1),
        (ARRAY_OF_MAPS, 4, 4, 1), (PERCPU_ARRAY, 4, 40000, 1),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="map m:"):
            world.add_map("m", kind, key, value, entries)
    with pytest.raises(MemoryError, match="1 GiB"):
        world.add_map("m", ARRAY, 4, 1 << 20, 5000)
    assert world.add_map("m", 7, 4, 1016, 10) == 0


def test_accesses_past_a_value(tmp_path: Path) -> None:
    """Reads and writes past a value, and writes to read-only values, are faults."""
    source = """
    MAP(m, ARRAY, 4, __u32, __u32); MAP(r, ARRAY, 4, __u32, __u64, __uint(map_flags, BPF_F_RDONLY_PROG));
    SEC("xdp") int prog(struct xdp_md *ctx) {
        __u32 k = 1; __u64 v = 3;
        OUT(0, bpf_map_update_elem(&r, &k, &v, 0));
        __u8 *x = bpf_map_lookup_elem(&m, &k), *y = bpf_map_lookup_elem(&r, &k);
        if (!x || !y) return 0;
        long at = ctx->data_end - ctx->data;
        if (at == 64) x[3] = 1;
        if (at == 65) x[at - 61] = 1;
        if (at == 66) return *(__u32 *)(x + 2);
        if (at == 67) y[0] = 1;
        if (at == 68) x[-(at - 67)] = 1;
        return y[1];
    }"""
    side = Emulated(compile_bpf(tmp_path, HEAD + source))
    batch = side.batch([bytes(n) for n in range(64, 70)])
    assert [(fault.packet, fault.kind, fault.size) for fault in batch.faults] == [
        (1, "write", 1), (2, "read", 4), (3, "write", 1), (4, "write", 1),
    ]  # fmt: skip
    out = side.world.map_lookup(side.numbers["out"], bytes(4))
    assert struct.unpack("=q", out or b"") == (-EPERM,)
    items = side.world.map_items(side.numbers["m"])
    assert items == [(U32(1), b"\0\0\0\1")]


def test_a_record_is_out_of_reach_once_submitted(tmp_path: Path) -> None:
    source = """
    struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } ring SEC(".maps");
    SEC("xdp") int prog(struct xdp_md *ctx) {
        volatile __u64 *a = bpf_ringbuf_reserve(&ring, 16, 0);
        if (!a) return 0;
        long at = ctx->data_end - ctx->data;
        a[at - 64] = 5;
        bpf_ringbuf_submit((void *)a, 0);
        return at == 70 ? a[0] : 1;
    }"""
    side = Emulated(compile_bpf(tmp_path, HEAD + source))
    batch = side.batch([bytes(n) for n in (64, 65, 66, 70)])
    assert [(fault.packet, fault.kind) for fault in batch.faults] == [(2, "write"), (3, "write")]
    code = compile_bpf(tmp_path, HEAD + source.replace("a[at - 64] = 5", "a[0] = 5"))
    batch = Emulated(code).batch([bytes(64), bytes(70)])
    assert [(fault.packet, fault.kind) for fault in batch.faults] == [(1, "read")]

"""Attacks on the static checker: programs whose patch would be wrong, which it must not call equal.

Most are refused by the patcher, so its refusals are switched off here: the checker must find them by
itself. Others ask what the checker believes of a program's exits where memory changes behind its back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from struct import Struct
from typing import Any

import pytest

from bpfchain.transform import transform as patcher
from bpfchain.transform.elf_edit import change_section
from bpfchain.transform.elf_read import read_object as read_for_edit
from bpfchain.transform.elf_write import write_object
from bpfchain.transform.request import Request
from bpfchain.verify.result import Outcome
from bpfchain.verify.static.check import check_link
from bpfchain.verify.static.facts import analyse
from bpfchain.verify.static.model import Function, Obj, Unreadable
from bpfchain.verify.static.read import read_object
from support.bpfcode import compile_bpf
from support.proofs import corpus

Compile = Callable[[str], bytes]


@pytest.fixture(name="compiled")
def _compiled(tmp_path: Path) -> Compile:
    return lambda source: compile_bpf(tmp_path, source)


@pytest.fixture(name="reckless")
def _reckless(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bytes]:
    """The patcher without what it refuses."""
    monkeypatch.setattr(patcher, "check_program", lambda *args: None)

    def patch(data: bytes, **wanted: Any) -> bytes:
        return patcher.transform_object(data, Request(**wanted)).data

    return patch


def body(text: str) -> str:
    """A program that runs the assembly and returns its r0."""
    return (
        'SEC("xdp") int p(struct xdp_md *ctx) { long r; asm volatile("' + text + '%0 = r0"'
        ' : "=r"(r) :: "r0","r1","r2","r3","r4","r5","r6","r7","memory"); return r; }'
    )


def known_codes(data: bytes) -> set[object]:
    """What the checker takes the program ``p`` to return."""
    obj = read_object(data)
    return {state.registers[0] for state in analyse(obj, program_of(obj)).exits.values()}


def program_of(obj: Obj, name: str = "p") -> Function:
    found = obj.function(name)
    assert found is not None
    return found


# what is known at an exit


def test_a_helper_that_writes_as_much_as_it_likes_leaves_nothing_known(compiled: Compile) -> None:
    # xdp_load_bytes(ctx, 0, r10 - 16, whatever the packet says): 2 is not what lies at r10 - 8
    data = compiled(body(
        "r6 = r1; r1 = 2; *(u64*)(r10 - 8) = r1; *(u64*)(r10 - 16) = r1; r4 = *(u32*)(r6 + 8);"
        "r1 = r6; r2 = 0; r3 = r10; r3 += -16; call 189; r0 = *(u64*)(r10 - 8);"
    ))  # fmt: skip
    assert known_codes(data) == {None}


def test_a_helper_that_writes_little_leaves_the_rest_known(compiled: Compile) -> None:
    data = compiled(body(
        "r6 = r1; r1 = 2; *(u64*)(r10 - 8) = r1; *(u64*)(r10 - 16) = r1; r4 = 8;"
        "r1 = r6; r2 = 0; r3 = r10; r3 += -16; call 189; r0 = *(u64*)(r10 - 8);"
    ))  # fmt: skip
    assert known_codes(data) == {(2, 2)}


def test_a_helper_that_is_not_known_may_write_anything(compiled: Compile) -> None:
    data = compiled(body(
        "r6 = r1; r1 = 2; *(u64*)(r10 - 8) = r1; r3 = r10; r3 += -8; r1 = r6; r2 = 0;"
        "call 4095; r0 = *(u64*)(r10 - 8);"
    ))  # fmt: skip
    assert known_codes(data) == {None}


def test_a_callback_that_moves_numbers_along_leaves_none_known(compiled: Compile) -> None:
    # after n rounds the n-th number is another: twelve places outlast every guess at "no change"
    moves = "".join(f"c[{n}] = c[{n + 1}];" for n in range(11))
    data = compiled(
        "static long step(__u32 i, volatile __u64 *c) {" + moves + " c[11] = i; return 0; }"
        'SEC("xdp") int p(struct xdp_md *ctx) { volatile __u64 c[12];'
        "for (int i = 0; i < 12; i++) c[i] = 2;"
        "bpf_loop(20, step, (void *)c, 0); return c[0]; }"
    )
    assert not any(isinstance(code, tuple) and code[0] == code[1] for code in known_codes(data))


def test_a_jump_through_a_register_is_not_guessed_at() -> None:
    data = bytearray(corpus("verdict_xdp"))
    obj = read_object(bytes(data))
    section = obj.named("xdp")
    assert section is not None
    data[section.offset : section.offset + 8] = bytes.fromhex("0d00000000000000")
    spoilt = read_object(bytes(data))
    with pytest.raises(Unreadable, match="jumps to where a register says"):
        analyse(spoilt, spoilt.functions[section.index][0])


# who else runs the program


THROWS = """
extern void bpf_throw(__u64 cookie) __ksym;
static __noinline int hurl(int size) { if (size > 100) bpf_throw(1); return size & 1; }
SEC("xdp") int p(struct xdp_md *ctx) { return hurl(ctx->data_end - ctx->data) ? 2 : 1; }
"""


@pytest.mark.parametrize("strategy", ["inline", "subprog"])
def test_a_throw_in_a_function_leaves_the_link_unpatched(
    compiled: Compile, reckless: Callable[..., bytes], strategy: str
) -> None:
    data = compiled(THROWS)
    _, static = check_link(data, reckless(data, index=0, strategy=strategy))
    assert static.outcome is Outcome.NOT_EQUAL
    assert {f.rule for f in static.findings} == {"exit-unpatched"}


ITSELF = """
int p(struct xdp_md *ctx);
struct { __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 2); __uint(key_size, 4);
 __array(values, int (void *)); } mine SEC(".maps") = { .values = { [1] = (void *)&p } };
int n;
SEC("xdp") int p(struct xdp_md *ctx) { if (n++ == 0) bpf_tail_call(ctx, &mine, 1); return 2; }
"""
CALLED = """
SEC("xdp") __noinline int p(struct xdp_md *ctx) { return ctx->data_end - ctx->data > 64 ? 2 : 1; }
SEC("xdp/other") int other(struct xdp_md *ctx) { return p(ctx) == 2 ? 1 : 2; }
"""


@pytest.mark.parametrize("source", [ITSELF, CALLED])
def test_a_program_that_the_object_refers_to_is_no_link(
    compiled: Compile, reckless: Callable[..., bytes], source: str
) -> None:
    data = compiled(source)
    _, static = check_link(data, reckless(data, index=0, program="p", strategy="subprog"))
    assert static.outcome is Outcome.NOT_EQUAL
    assert "reference" in {f.rule for f in static.findings}


# maps


def test_words_of_a_legacy_map_that_have_no_place_in_btf_are_missed() -> None:
    # the patcher sees five words, the checker iproute2's nine: the pinning is not in OUT
    long = corpus("legacy_maps_long")
    obj = read_for_edit(long)
    maps = obj.section("maps")
    assert maps is not None
    obj = change_section(obj, maps.id, maps.data[:20])
    symbols = tuple(replace(s, size=20) if s.name == "total" else s for s in obj.symbols)
    short = write_object(replace(obj, symbols=symbols, _decoded={}))
    patched = patcher.transform_object(short, Request(index=0)).data
    assert check_link(short, patched)[1].outcome is Outcome.EQUAL
    _, static = check_link(long, patched.replace(_sha(short), _sha(long)))
    assert [f.message for f in static.findings] == [
        "map total: its definition says more than five words"
    ]


def _sha(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def test_a_map_that_btf_does_not_list_is_missed() -> None:
    plain = corpus("metrics")
    patched = patcher.transform_object(plain, Request(index=0)).data
    obj = read_for_edit(patched)
    types = obj.section(".BTF")
    assert types is not None
    was, now = (read_object(data) for data in (plain, patched))
    old, new = (one.named(".BTF") for one in (was, now))
    assert old is not None
    assert new is not None
    data = _unlisted(bytearray(types.data))
    _, static = check_link(plain, write_object(change_section(obj, types.id, data)))
    assert static.outcome is Outcome.NOT_EQUAL
    assert any("tells of" in f.message and "maps" in f.message for f in static.findings)


def _unlisted(data: bytearray) -> bytes:
    """A .BTF section without the last variable of its ``.maps``."""
    word = Struct("<I")
    header, start, length, strings = (word.unpack_from(data, at)[0] for at in (4, 8, 12, 16))
    at, found = header + start, -1
    sizes = {1: 4, 3: 12, 14: 4, 17: 4}
    members = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
    while at < header + start + length:
        name, info, _ = Struct("<III").unpack_from(data, at)
        kind, count = info >> 24 & 0x1F, info & 0xFFFF
        text = bytes(data[header + strings + name :]).split(b"\0", 1)[0]
        if kind == 15 and text == b".maps":
            found = at
            word.pack_into(data, at + 4, info - 1)
            end = at + 12 + 12 * count
            del data[end - 12 : end]
            break
        at += 12 + sizes.get(kind, 0) + members.get(kind, 0) * count
    assert found >= 0
    word.pack_into(data, 12, length - 12)
    word.pack_into(data, 16, strings - 12)
    return bytes(data)


# programs that are made to keep the checker busy


def test_functions_that_call_each_other_without_end_are_given_up(compiled: Compile) -> None:
    calls = "".join("*p += 1; f{0}(p); " for _ in range(12))
    levels = [
        f"__noinline int f{n}(volatile long *p) {{ {calls.format(n + 1)} return *p; }}"
        for n in range(1, 7)
    ]
    last = "__noinline int f7(volatile long *p) { *p += 1; return *p; }\n"
    data = compiled(
        last + "\n".join(reversed(levels)) + 'SEC("xdp") int p(struct xdp_md *ctx) '
        "{ volatile long x = 0; f1(&x); return x & 1 ? 1 : 2; }"
    )  # 12 ** 6 runs of the last: the verifier gives up too
    _, static = check_link(data, patcher.transform_object(data, Request(index=0)).data)
    assert static.outcome is Outcome.INCONCLUSIVE
    assert "too many ways" in static.findings[0].message

"""BTF and BTF.ext: given back byte for byte, added to behind what is there, refused where broken."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfchain.transform.btf import Kind, read_btf, write_btf
from bpfchain.transform.btf_ext import CORE_RELO, FUNC_INFO, LINE_INFO, read_btf_ext, write_btf_ext
from bpfchain.transform.elf_read import read_object
from bpfchain.transform.errors import RefusedError
from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object
from support.mutate import CORPUS
from support.objbuild import btf, btf_ext

OBJECTS = sorted(CORPUS.glob("e[lb]/*.o"))


def _parts(data: bytes) -> list[tuple[str, bytes, str]]:
    obj = read_object(data)
    return [(s.name, s.data, obj.order) for s in obj.sections if s.name in {".BTF", ".BTF.ext"}]


def _check_lossless(data: bytes) -> int:
    parts = _parts(data)
    for name, body, order in parts:
        if name == ".BTF":
            assert write_btf(read_btf(body, order)) == body
        else:
            assert write_btf_ext(read_btf_ext(body, order)) == body
    return len(parts)


def test_corpus() -> None:
    assert sum(_check_lossless(path.read_bytes()) for path in OBJECTS) > 300


@pytest.mark.real
def test_real_objects() -> None:
    from support.real import real_objects

    assert sum(_check_lossless(real.data) for real in real_objects()) > 100


# the words behind a type record: how many, by kind (Documentation/bpf/btf.rst)
_WORDS = {1: 1, 2: 0, 3: 3, 7: 0, 8: 0, 9: 0, 10: 0, 11: 0, 12: 0, 14: 1, 16: 0, 17: 1, 18: 0}
_EACH = {4: 3, 5: 3, 6: 2, 13: 2, 15: 3, 19: 3}
_u32 = st.integers(0, (1 << 32) - 1)


@st.composite
def types(draw: st.DrawFn) -> tuple[str, int, int, int, Sequence[int]]:
    kind = draw(st.integers(1, 19))
    vlen = draw(st.integers(0, 4)) if kind in _EACH else draw(st.integers(0, 2))
    count = _EACH[kind] * vlen if kind in _EACH else _WORDS[kind]
    words = draw(st.lists(_u32, min_size=count, max_size=count))
    return draw(st.sampled_from(("", "int", "a", "xdp_md", "ä"))), kind, vlen, draw(_u32), words


@settings(max_examples=300, deadline=None)
@given(st.lists(types(), max_size=12), st.sampled_from("<>"), st.booleans())
def test_generated_types(
    made: list[tuple[str, int, int, int, Sequence[int]]], order: str, flag: bool
) -> None:
    data, offsets = btf(made, order)
    if made and flag:  # kind_flag of the first type
        at = 24 + 4 + (0 if order == ">" else 3)
        data = data[:at] + bytes([data[at] | 0x80]) + data[at + 1 :]
    read = read_btf(data, order)
    assert write_btf(read) == data
    for mine, (name, kind, vlen, size, words) in zip(read.types, made, strict=True):
        assert (mine.kind, mine.vlen, mine.size_or_type) == (kind, vlen, size)
        assert mine.name_offset == offsets[name]
        assert read.name(mine.name_offset) == name
        assert mine.tail == struct.pack(f"{order}{len(words)}I", *words)
    if made:
        assert read.types[0].kind_flag == flag


@pytest.mark.parametrize("order", ["<", ">"])
def test_types_are_added_behind_and_strings_reused(order: str) -> None:
    data, offsets = btf([("int", 1, 0, 4, [32]), ("xint", 8, 0, 1, [])], order)
    old = read_btf(data, order)
    grown, number = old.with_type(Kind.PTR, size_or_type=1)
    assert number == 3
    assert grown.strings == old.strings
    grown, number = grown.with_type(Kind.TYPEDEF, "int", 1)
    assert grown.type(number).name_offset == offsets["int"], "an equal string is reused"
    grown, number = grown.with_type(Kind.TYPEDEF, "new", 1)
    assert grown.name(grown.type(number).name_offset) == "new"
    assert grown.types[:2] == old.types
    assert read_btf(write_btf(grown), order) == grown
    assert old.find(Kind.INT, "int") == (1,)
    # the tail of another string is a spelling of the name too
    assert old.offsets_of("int") == {offsets["int"], offsets["xint"] + 1}
    for bad in (0, 3, -1):
        with pytest.raises(RefusedError, match="does not exist"):
            old.type(bad)
    with pytest.raises(RefusedError, match="outside the strings"):
        old.name(1000)


@pytest.mark.parametrize("order", ["<", ">"])
def test_broken_btf_is_refused(order: str) -> None:
    data, _ = btf([("int", 1, 0, 4, [32]), ("s", 4, 1, 4, [0, 1, 0])], order)
    for end in range(len(data)):
        with pytest.raises(RefusedError):
            read_btf(data[:end], order)
    for at, form, value in (
        (0, "H", 0x9FEB), (2, "B", 2), (4, "I", 32), (8, "I", 4), (12, "I", 5), (12, "I", 1 << 31),
        (16, "I", 0), (20, "I", 1 << 31), (24 + 4, "I", 31 << 24), (24 + 4, "I", 0), (24 + 4, "I", 20 << 24),
        (24 + 4, "I", 4 << 24 | 0xFFFF), (24 + 4, "I", 1 << 24 | 1 << 30),
    ):  # fmt: skip
        broken = bytearray(data)
        struct.pack_into(order + form, broken, at, value)
        with pytest.raises(RefusedError, match=r"section \.BTF"):
            read_btf(bytes(broken), order)
    other = ">" if order == "<" else "<"
    with pytest.raises(RefusedError):
        read_btf(data, other)


# -- BTF.ext -----------------------------------------------------------------------------------

_sizes = st.sampled_from((0, 4, 16, 200))


@st.composite
def extras(draw: st.DrawFn) -> tuple[bytes, str, list[object]]:
    order = draw(st.sampled_from("<>"))
    header = draw(st.sampled_from((24, 32)))
    parts: list[tuple[int, list[tuple[int, list[list[int]]]]] | None] = []
    for least in (8, 16, 16):
        if draw(st.integers(0, 3)) == 0:
            parts.append(None)
            continue
        size = least + draw(_sizes)
        record = st.lists(_u32, min_size=size // 4, max_size=size // 4)
        block = st.tuples(_u32, st.lists(record, max_size=3))
        parts.append((size, draw(st.lists(block, max_size=3))))
    return btf_ext(parts, order, header=header), order, [header, parts]


@settings(max_examples=300, deadline=None)
@given(extras())
def test_generated_records(made: tuple[bytes, str, list[object]]) -> None:
    data, order, (header, parts) = made
    read = read_btf_ext(data, order)
    assert write_btf_ext(read) == data
    assert read.header_size == header
    assert isinstance(parts, list)
    for mine, part in zip(read.parts, parts[: 2 if header == 24 else 3], strict=False):
        if part is None:
            assert mine.blocks == ()
            continue
        size, blocks = part
        assert mine.record_size == size
        assert [(name, [rec.offset for rec in recs]) for name, recs in mine.blocks] == [
            (name, [words[0] for words in records]) for name, records in blocks
        ]


def test_split_and_unsorted_blocks_become_one() -> None:
    """libbpf uses the first block of a section, cilium/ebpf the last: one sorted block serves both."""
    data = btf_ext([(8, [(1, [[16, 2]]), (9, [[0, 3]]), (1, [[0, 1]])]), None, None])
    part = read_btf_ext(data, "<").parts[FUNC_INFO]
    records = part.of(frozenset({1}))
    assert [(r.offset, r.rest) for r in records] == [(0, b"\1\0\0\0"), (16, b"\2\0\0\0")]
    joined = part.with_records(frozenset({1}), 1, records)
    assert [(name, len(block)) for name, block in joined.blocks] == [(1, 2), (9, 1)]
    emptied = part.with_records(frozenset({1}), 1, [])
    assert [name for name, _ in emptied.blocks] == [9]
    added = part.with_records(frozenset({5}), 5, records)
    assert [name for name, _ in added.blocks] == [1, 9, 1, 5]


def test_an_edit_gives_a_header_of_32_bytes() -> None:
    """cilium/ebpf misreads one of 24; an empty core_relo that has but a record size fails in libbpf."""
    old = read_btf_ext(btf_ext([(8, [(1, [[0, 2]])]), (16, [(1, [[0, 1, 1, 1]])])], header=24), "<")
    new = old.with_part(LINE_INFO, old.parts[LINE_INFO])
    written = write_btf_ext(new)
    assert struct.unpack_from("<I", written, 4) == (32,)
    assert struct.unpack_from("<I", written, 28) == (0,), "core_relo has length 0"
    empty = read_btf_ext(btf_ext([(8, [(1, [[0, 2]])]), None, (16, [])]), "<")
    emptied = empty.with_part(CORE_RELO, empty.parts[CORE_RELO])
    assert struct.unpack_from("<I", write_btf_ext(emptied), 28) == (0,)


@pytest.mark.parametrize("order", ["<", ">"])
def test_broken_records_are_refused(order: str) -> None:
    data = btf_ext([(8, [(1, [[0, 2]])]), (16, [(1, [[0, 1, 1, 1]])]), None], order)
    for end in range(len(data)):
        with pytest.raises(RefusedError, match=r"section \.BTF\.ext"):
            read_btf_ext(data[:end], order)
    for at, value in (
        (4, 16), (4, 40), (8, 4), (12, 1 << 31), (12, 3), (16, 0), (20, 1 << 31), (32, 4), (32, 0),
        (32, 10), (32, 256), (40, 1 << 28), (40, 0),
    ):  # fmt: skip
        broken = bytearray(data)
        struct.pack_into(order + "I", broken, at, value)
        with pytest.raises(RefusedError, match=r"section \.BTF\.ext"):
            read_btf_ext(bytes(broken), order)
    with pytest.raises(RefusedError):
        read_btf_ext(data + b"\0", order)


# -- beside bpftool ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["filter", "core_field", "decl_tag", "three_progs", "globals"])
@pytest.mark.parametrize("strategy", ["inline", "subprog"])
def test_bpftool_sees_the_old_types_and_the_new(name: str, strategy: str, tmp_path: Path) -> None:
    """Old types keep ids, names and kinds; what is added is FUNCs and the map's."""
    path = CORPUS / "el" / f"{name}.o"
    program = {"three_progs": "first", "globals": None}.get(name)
    if name == "three_progs":
        obj = read_object(path.read_bytes())
        program = next(
            s.name for section in obj.sections if section.executable and section.name != ".text"
            for s in obj.functions(section.id)
        )  # fmt: skip
    patched = transform_object(
        path.read_bytes(), Request(index=1, program=program, strategy=strategy, redirect="4", saved="4")
        if name == "filter" else Request(index=1, program=program, strategy=strategy),
    )  # fmt: skip
    out = tmp_path / "out.o"
    out.write_bytes(patched.data)
    before, after = _bpftool_types(path), _bpftool_types(out)
    assert len(after) > len(before) > 3
    for old, new in zip(before, after, strict=False):
        if (old["kind"], old["name"]) == ("DATASEC", ".maps"):
            assert new["vars"][: len(old["vars"])] == old["vars"]
            continue
        assert old == new
    added = after[len(before) :]
    assert {"VAR", "STRUCT"} <= {item["kind"] for item in added}
    assert [item["name"] for item in added if item["kind"] == "VAR"] == ["bpfchain_slots"]


def _bpftool_types(path: Path) -> list[dict[str, Any]]:
    tool = shutil.which("bpftool") or "/usr/sbin/bpftool"
    done = subprocess.run(
        [tool, "-j", "btf", "dump", "file", path], capture_output=True, text=True, check=True
    )
    types: list[dict[str, Any]] = json.loads(done.stdout)["types"]
    return types

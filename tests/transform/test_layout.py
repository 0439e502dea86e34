"""Code laid out anew: whatever named an instruction before names the same instruction after.

In generated objects every instruction has an immediate of its own, so "the same" can be seen.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfchain.transform import isa
from bpfchain.transform.btf import read_btf
from bpfchain.transform.btf_ext import BtfExt, read_btf_ext
from bpfchain.transform.elf import Object, SectionId, SymbolId
from bpfchain.transform.elf_read import read_object
from bpfchain.transform.elf_write import write_object
from bpfchain.transform.errors import BpfchainError, RefusedError
from bpfchain.transform.isa import Insn
from bpfchain.transform.layout import (
    Copy,
    Fresh,
    Layout,
    OffsetMap,
    apply_layouts,
    relayout_btf_ext,
)
from bpfchain.transform.program import programs_of
from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object
from support.mutate import CORPUS
from support.objbuild import (
    ALLOC_EXEC,
    ALLOC_WRITE,
    GLOBAL,
    LOCAL,
    OBJECT,
    R_64_32,
    R_64_64,
    R_64_ABS64,
    SECTION,
    Obj,
    Rel,
    Sec,
    Sym,
    btf,
    btf_ext,
    build,
    insn,
)  # fmt: skip

OBJECTS = sorted(CORPUS.glob("e[lb]/*.o"))
CODE, TEXT, DATA = SectionId(1), SectionId(2), SectionId(3)
_SLOTS = 24
_NEW = 90_000
"""Immediates of added instructions start here."""


def _object(order: str, targets: list[int], marks: list[int]) -> Obj:
    """A section of marked instructions; ``.text`` calls into it and takes addresses, ``.data`` holds
    addresses; ``marks`` are slots at which symbols, relocations and records stand."""
    code = b"".join(insn(0xB7, 1, imm=100 + slot, order=order) for slot in range(_SLOTS))
    text, places = b"", []
    for target in targets:
        places.append(Rel(len(text), 0, R_64_32))
        text += insn(0x85, 0, 1, 0, target - 1, order=order)
        places.append(Rel(len(text), 0, R_64_64))
        text += insn(0x18, 2, 4, 0, 8 * target, order=order) + insn(0, order=order)
    data = b"".join((8 * t).to_bytes(8, "little" if order == "<" else "big") for t in targets)
    strings, names = btf([("int", 1, 0, 4, [32])], order, strings=["code", ".text"])
    records = btf_ext(
        [(8, [(names["code"], [[8 * m, 1] for m in marks])]),
         (16, [(names["code"], [[8 * m, 0, 0, m] for m in marks]), (names[".text"], [[0, 0, 0, 999]])]),
         (16, [(names["code"], [[8 * m, 1, 0, m] for m in marks])])],
        order,
    )  # fmt: skip
    return Obj(
        (Sec("code", code, flags=ALLOC_EXEC, align=8), Sec(".text", text, flags=ALLOC_EXEC, align=8),
         Sec(".data", data, flags=ALLOC_WRITE, align=8), Sec(".BTF", strings, align=4),
         Sec(".BTF.ext", records, align=4)),
        (Sym("", 1, 0, 0, LOCAL, SECTION), *(Sym(f"at{m}", 1, 8 * m, 8, GLOBAL) for m in marks),
         Sym("outside", 3, 0, 8, GLOBAL, OBJECT)),
        ((1, tuple(Rel(8 * m, 1 + i, 77) for i, m in enumerate(marks))), (2, tuple(places)),
         (3, tuple(Rel(8 * i, 0, R_64_ABS64) for i in range(len(targets))))),
        order=order,
    )  # fmt: skip


@st.composite
def layouts(draw: st.DrawFn) -> tuple[str, list[int], list[int], tuple[Layout, ...]]:
    order = draw(st.sampled_from("<>"))
    slots = st.integers(0, _SLOTS - 1)
    targets = draw(st.lists(slots, min_size=1, max_size=4))
    marks = sorted(draw(st.sets(slots, max_size=5)))
    cuts = sorted({0, _SLOTS, *draw(st.lists(slots, max_size=5))})
    pieces: list[Copy | Fresh] = []
    added = iter(range(_NEW, _NEW + 1000))
    for start, end in pairwise(cuts):
        if draw(st.booleans()):
            count = draw(st.integers(1, 3))
            pieces.append(
                Fresh(tuple(Insn(0xB7, 3, imm=next(added)) for _ in range(count)), line="new")
            )
        pieces.append(Copy(CODE, 8 * start, 8 * end))
        if draw(st.integers(0, 3)) == 0:  # another state's entry: a second copy of the same code
            pieces.append(Copy(CODE, 8 * start, 8 * end, primary=False, carry_functions=False))
    return order, targets, marks, (Layout(CODE, tuple(pieces)),)


def _imm(obj: Object, section: SectionId, offset: int) -> int:
    return isa.decode(obj.by_id[section].data[offset : offset + 8], obj.order)[0].imm


def _ext(obj: Object) -> BtfExt:
    section = obj.section(".BTF.ext")
    assert section is not None
    return read_btf_ext(section.data, obj.order)


@settings(max_examples=400, deadline=None)
@given(layouts())
def test_every_reference_follows_its_instruction(
    made: tuple[str, list[int], list[int], tuple[Layout, ...]],
) -> None:
    order, targets, marks, wanted = made
    before = read_object(build(_object(order, targets, marks)).data)
    after = read_object(write_object(apply_layouts(before, wanted)))
    moves = OffsetMap(wanted)
    places = [moves.new(CODE, 8 * slot) for slot in range(_SLOTS)]
    assert all(section == CODE for section, _ in places)
    offsets = [offset for _, offset in places]
    assert offsets == sorted(set(offsets)), "the map is not monotone"
    for slot, offset in enumerate(offsets):
        assert _imm(after, CODE, offset) == 100 + slot
    by_name = {symbol.name: symbol for symbol in after.symbols}
    for slot in marks:
        assert _imm(after, CODE, by_name[f"at{slot}"].value) == 100 + slot
    assert by_name["outside"].value == 0
    # relocations of the code itself, once for each copy
    copies = [p for _, p in wanted[0].placed() if isinstance(p, Copy)]
    expected = sorted(
        (100 + slot, f"at{slot}") for slot in marks for p in copies if p.start <= 8 * slot < p.end
    )
    found = sorted(
        (_imm(after, CODE, item.offset), after.symbol_by_id[item.symbol].name)
        for item in after.relocations(CODE)
    )
    assert found == expected
    assert all(item.type == 77 for item in after.relocations(CODE))
    # addends of what refers to the code from elsewhere
    text = isa.decode(after.by_id[TEXT].data, order)
    for number, target in enumerate(targets):
        call, address = text[3 * number], text[3 * number + 1]
        assert _imm(after, CODE, 8 * (call.imm + 1)) == 100 + target
        assert _imm(after, CODE, address.imm) == 100 + target
        word = after.by_id[DATA].data[8 * number : 8 * number + 8]
        held = int.from_bytes(word, "little" if order == "<" else "big")
        assert _imm(after, CODE, held) == 100 + target
    _check_records(before, after, wanted, marks)


def _check_records(
    before: Object, after: Object, wanted: tuple[Layout, ...], marks: list[int]
) -> None:
    section = before.section(".BTF")
    assert section is not None
    types = read_btf(section.data, before.order)
    ext = relayout_btf_ext(_ext(before), types, before, wanted, {"new": (5, 6)})
    names = types.offsets_of("code")
    for number in (0, 1, 2):
        records = ext.parts[number].of(names)
        offsets = [record.offset for record in records]
        assert offsets == sorted(offsets)
        if number != 0:
            assert len(set(offsets)) == len(offsets), "two records for one instruction"
        old = [r for r in records if _imm(after, CODE, r.offset) < _NEW]
        last = [
            int.from_bytes(r.rest[-4:], "little" if before.order == "<" else "big") for r in old
        ]
        slots = [_imm(after, CODE, r.offset) - 100 for r in old]
        assert set(slots) == set(marks), "records were lost, or tell of another instruction"
        if number != 0:
            assert last == slots
    kept = ext.parts[1].of(types.offsets_of(".text"))
    assert [record.offset for record in kept] == [0], "records of a section that does not move"


def test_code_that_moves_to_another_section_takes_everything_along() -> None:
    """What strategy subprog does: the middle of one section goes to the end of another."""
    marks = [8, 9, 12, 15]
    before = read_object(build(_object("<", [2, 20], marks)).data)
    size = len(before.by_id[TEXT].data)
    wrapper = Fresh((Insn(0xB7, 3, imm=_NEW), Insn(0xB7, 3, imm=_NEW + 1)), line="new")
    wanted = (
        Layout(CODE, (Copy(CODE, 0, 64), wrapper, Copy(CODE, 128, 8 * _SLOTS)), ((64, 1),)),
        Layout(
            TEXT, (Copy(TEXT, 0, size), Copy(CODE, 64, 128, carry_functions=False)), ((size, 2),)
        ),
    )
    after = apply_layouts(before, wanted)
    for slot in marks:
        symbol = next(s for s in after.symbols if s.name == f"at{slot}")
        assert symbol.place == TEXT
        assert _imm(after, TEXT, symbol.value) == 100 + slot
    moved = [item for item in after.relocations(TEXT) if item.type == 77]
    assert [_imm(after, TEXT, item.offset) - 100 for item in moved] == marks
    section = before.section(".BTF")
    assert section is not None
    types = read_btf(section.data, "<")
    ext = relayout_btf_ext(_ext(before), types, before, wanted, {"new": (5, 6)})
    for number in (1, 2):
        records = [r for r in ext.parts[number].of(types.offsets_of(".text")) if r.offset >= size]
        assert [_imm(after, TEXT, r.offset) - 100 for r in records] == marks
        assert [int.from_bytes(r.rest[-4:], "little") for r in records] == marks
    functions = ext.parts[0]
    assert [r.offset for r in functions.of(types.offsets_of("code"))] == [64]
    assert [r.offset for r in functions.of(types.offsets_of(".text"))] == [size]


def test_a_reference_into_code_that_moves_away_is_refused() -> None:
    before = read_object(build(_object("<", [9], [])).data)
    size = len(before.by_id[TEXT].data)
    wanted = (
        Layout(CODE, (Copy(CODE, 0, 64), Copy(CODE, 128, 8 * _SLOTS))),
        Layout(TEXT, (Copy(TEXT, 0, size), Copy(CODE, 64, 128))),
    )
    with pytest.raises(RefusedError, match="refers to code that moves"):
        apply_layouts(before, wanted)


def test_a_reference_to_code_that_is_gone_is_refused() -> None:
    before = read_object(build(_object("<", [9], [])).data)
    with pytest.raises(RefusedError, match="offset 72 has no place in the patched object"):
        apply_layouts(before, (Layout(CODE, (Copy(CODE, 0, 64), Copy(CODE, 128, 8 * _SLOTS))),))


def test_exchanged_instructions() -> None:
    before = read_object(build(_object("<", [1], [])).data)
    other = Insn(0x05, offset=7, imm=4242)
    piece = Copy(CODE, 64, 8 * _SLOTS, ((72, other),))
    fresh = Fresh((Insn(0xB7, 3, imm=_NEW), Insn(0x18, 1), Insn(0)), ((8, R_64_64, SymbolId(1)),))
    after = apply_layouts(before, (Layout(CODE, (Copy(CODE, 0, 64), fresh, piece)),))
    code = isa.decode(after.by_id[CODE].data, "<")
    assert code[8].imm == _NEW
    assert code[11].imm == 108
    assert code[12] == other
    assert [(item.offset, item.symbol) for item in after.relocations(CODE)] == [(72, 1)]


# -- the corpus --------------------------------------------------------------------------------


def _records(obj: Object, section: str, start: int, end: int) -> list[tuple[int, int, bytes]]:
    """(part, slot in the function, rest) of the line and CO-RE records of a function."""
    types, extra = obj.section(".BTF"), obj.section(".BTF.ext")
    if types is None or extra is None or not extra.data:
        return []
    names = read_btf(types.data, obj.order).offsets_of(section)
    ext = read_btf_ext(extra.data, obj.order)
    return [
        (number, (record.offset - start) // 8, record.rest)
        for number in (1, 2)
        for record in ext.parts[number].of(names)
        if start <= record.offset < end
    ]


def _functions(obj: Object) -> dict[str, tuple[str, int, int]]:
    return {
        symbol.name: (section.name, symbol.value, symbol.end)
        for section in obj.sections if section.executable
        for symbol in obj.functions(section.id)
    }  # fmt: skip


@pytest.mark.parametrize("strategy", ["inline", "subprog"])
def test_corpus_records_follow(strategy: str) -> None:
    """Line info and CO-RE relocations of every function, patched or not, at the same instructions."""
    checked = adjusted = 0
    for path in OBJECTS:
        data = path.read_bytes()
        before = read_object(data)
        for program in programs_of(before):
            try:
                patched = transform_object(
                    data, Request(index=1, program=program.name, strategy=strategy)
                )
            except BpfchainError:
                continue
            if patched.strategy != strategy:
                continue
            checked += 1
            adjusted += _check_object(
                path, before, read_object(patched.data), program.name, strategy
            )
    assert checked > 150
    assert adjusted >= 20, "no CO-RE relocation was compared"


def _check_object(path: Path, before: Object, after: Object, patched: str, strategy: str) -> int:
    old, new = _functions(before), _functions(after)
    adjusted = 0
    for name, (section, start, end) in old.items():
        body = name
        if name == patched and strategy == "subprog":
            body = f"{name}__body"
        place = new[body]
        shift = 0
        if name == patched and strategy == "inline":
            shift = _preamble(before, after, old[name], place)
        wanted = [(n, slot, rest) for n, slot, rest in _records(before, section, start, end)]
        have = [(n, slot - shift, rest) for n, slot, rest in _records(after, *place)]
        if (
            name == patched
        ):  # the added code has lines of its own; none of its records is the body's
            count = (end - start) // 8
            have = [item for item in have if 0 <= item[1] < count]
        assert have == wanted, f"{path.parent.name}/{path.name}: {name}: records differ"
        adjusted += sum(n == 2 for n, _, _ in wanted)
    return adjusted


def _preamble(
    before: Object, after: Object, old: tuple[str, int, int], new: tuple[str, int, int]
) -> int:
    """How many instructions were put in front of the body."""
    mine, theirs = before.section(old[0]), after.section(new[0])
    assert mine is not None
    assert theirs is not None
    body = isa.decode(mine.data[old[1] : old[2]], before.order)
    found = isa.decode(theirs.data[new[1] : new[2]], after.order)
    for shift in (0, 1):
        part = found[shift : shift + len(body)]
        if all(
            a[:4] == b[:4] or (a.opcode == isa.EXIT and b.opcode == isa.JA)
            for a, b in zip(body, part, strict=True)
        ):
            return shift
    raise AssertionError("the body is not where inline leaves it")

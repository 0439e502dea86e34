"""Objects are given back byte for byte, and other readers see in what is written what the model says."""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import lief
import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfchain.transform.elf import Object
from bpfchain.transform.elf_edit import add_section, add_symbol, change_section, drop_sections
from bpfchain.transform.elf_read import read_object
from bpfchain.transform.elf_write import write_object
from bpfchain.transform.errors import BpfchainError, RefusedError, UsageError
from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object
from support.mutate import CORPUS
from support.objbuild import (
    ALLOC_EXEC,
    ALLOC_WRITE,
    GLOBAL,
    LOCAL,
    NOBITS,
    OBJECT,
    SECTION,
    WEAK,
    Obj,
    Rel,
    Sec,
    Sym,
    build,
    insn,
    lddw,
)  # fmt: skip

OBJECTS = sorted(CORPUS.glob("e[lb]/*.o"))
_ids = [f"{path.parent.name}-{path.stem}" for path in OBJECTS]


def test_the_corpus_is_there_in_both_byte_orders() -> None:
    assert len(OBJECTS) >= 180
    assert len({path.name for path in OBJECTS}) * 2 == len(OBJECTS)


@pytest.mark.parametrize("path", OBJECTS, ids=_ids)
def test_corpus(path: Path) -> None:
    data = path.read_bytes()
    assert write_object(read_object(data)) == data


@pytest.mark.real
def test_real_objects() -> None:
    from support.real import real_objects

    objects = real_objects()
    assert len(objects) > 50
    for real in objects:
        assert write_object(read_object(real.data)) == real.data, real.label


# -- generated objects -------------------------------------------------------------------------

_names = st.sampled_from(
    ("xdp", ".text", "tc", ".rodata", ".data", ".maps", "license", "x" * 70, "Ä")
)


@st.composite
def sections(draw: st.DrawFn) -> Sec:
    align = draw(st.sampled_from((0, 1, 2, 4, 8, 16, 32, 64, 4096)))
    gap = draw(st.sampled_from((b"", b"", b"", b"\0", b"\0" * 7, b"gap", b"\0" * 64)))
    flags = draw(st.sampled_from((0, ALLOC_EXEC, ALLOC_WRITE, 0x30)))
    if draw(st.integers(0, 4)) == 0:
        return Sec(
            draw(_names), type=NOBITS, size=draw(st.integers(0, 4096)), flags=flags, align=align
        )
    data = draw(st.binary(max_size=40))
    return Sec(
        draw(_names), data, flags=flags, align=align, gap=gap, entsize=draw(st.integers(0, 3))
    )


@st.composite
def objects(draw: st.DrawFn) -> Obj:
    parts = tuple(draw(st.lists(sections(), min_size=1, max_size=6)))
    places = st.sampled_from((0, 0xFFF1, 0xFFF2, *range(1, len(parts) + 1)))
    plain = draw(
        st.lists(
            st.builds(
                Sym, st.sampled_from(("", "f", "prog", "a_map", "ü", "n" * 40)), places,
                st.integers(0, 64), st.integers(0, 1 << 40), st.sampled_from((LOCAL, GLOBAL, WEAK, 10)),
                st.integers(0, 6), st.integers(0, 3),
            ),
            max_size=6,
        )
    )  # fmt: skip
    symbols = tuple(sorted(plain, key=lambda s: s.bind != LOCAL))
    relocations: tuple[tuple[int, tuple[Rel, ...]], ...] = ()
    if symbols:
        targets = draw(st.lists(st.integers(1, len(parts)), unique=True, max_size=2))
        item = st.builds(
            Rel,
            st.integers(0, 1 << 33),
            st.integers(0, len(symbols) - 1),
            st.integers(0, (1 << 32) - 1),
        )
        relocations = tuple((at, tuple(draw(st.lists(item, max_size=4)))) for at in targets)
    made = Obj(
        parts, symbols, relocations, order=draw(st.sampled_from("<>")),
        tail=draw(st.sampled_from((b"", b"\0", b"trailing"))),
        extra_strings=tuple(draw(st.lists(st.sampled_from(("unused", "prog2")), max_size=2))),
        table_gap=draw(st.sampled_from((b"", b"\0\0\0", b"odd"))),
    )  # fmt: skip
    order = draw(st.one_of(st.none(), st.permutations(range(made.parts))))
    return replace(made, file_order=tuple(order) if order is not None else None)


@settings(max_examples=600, deadline=None)
@given(objects())
def test_generated_objects(made: Obj) -> None:
    data = build(made).data
    read = read_object(data)
    assert write_object(read) == data
    # and the model says what was asked for
    assert [s.name for s in read.sections[1 : len(made.sections) + 1]] == [
        s.name for s in made.sections
    ]
    for have, want in zip(read.sections[1:], made.sections, strict=False):
        assert (have.type, have.flags, have.addralign, have.data) == (
            want.type, want.flags, want.align, want.data,
        )  # fmt: skip
    for have_symbol, want_symbol in zip(read.symbols[1:], made.symbols, strict=True):
        assert have_symbol.bind == want_symbol.bind
        assert (have_symbol.value, have_symbol.size) == (want_symbol.value, want_symbol.size)
        assert (have_symbol.place or have_symbol.special) == want_symbol.section
    for target, items in made.relocations:
        found = read.relocations(read.sections[target].id)
        assert [(i.offset, i.type, i.symbol - 1) for i in found] == [
            (i.offset, i.type, i.symbol) for i in items
        ]


@settings(max_examples=300, deadline=None)
@given(objects(), st.data())
def test_edits_move_only_what_lies_behind(made: Obj, data: st.DataObject) -> None:
    """A section grows, another is added, a local symbol is put in: all else reads the same."""
    before = read_object(build(made).data)
    holding = [s for s in before.sections[1 : len(made.sections) + 1] if s.data]
    if not holding:
        return
    grown = data.draw(st.sampled_from(holding))
    more = bytes(data.draw(st.sampled_from((1, 8, 100))))
    edited = change_section(before, grown.id, grown.data + more)
    edited, place = add_section(edited, ".added", b"12345", align=8)
    edited, symbol = add_symbol(edited, "added", place, 1, 2, bind=LOCAL, type=OBJECT)
    edited, _ = add_symbol(edited, "prog", place, 0, 1, bind=GLOBAL, type=OBJECT)
    if any(any(gap.data) for gap in before.gaps):
        # bytes of nobody that are not zero are kept where they are, or the edit is refused
        with suppress(RefusedError):
            write_object(edited)
        return
    image = write_object(edited)
    after = read_object(image)
    _agrees(image, after)
    assert write_object(after) == image
    for old, new in zip(before.sections, after.sections, strict=False):
        assert (old.name, old.type, old.flags, old.addralign, old.entsize) == (
            new.name, new.type, new.flags, new.addralign, new.entsize,
        )  # fmt: skip
        if old.id == grown.id:
            assert new.data == old.data + more
        elif old.id not in (before.symtab, before.shstrtab) and old.type != 9:
            assert new.data == old.data
        if (
            new.data
            and new.addralign > 1
            and old.offset is not None
            and old.offset % new.addralign == 0
        ):
            assert new.offset is not None
            assert new.offset % new.addralign == 0
    names = {(s.name, s.bind, s.value, s.size) for s in after.symbols}
    assert {(s.name, s.bind, s.value, s.size) for s in before.symbols} <= names
    assert ("added", LOCAL, 1, 2) in names
    for section in before.sections:
        for old_item, new_item in zip(
            before.relocations(section.id), after.relocations(section.id), strict=True
        ):
            old_symbol = before.symbol_by_id[old_item.symbol]
            new_symbol = after.symbol_by_id[new_item.symbol]
            assert (old_symbol.name, old_symbol.value) == (new_symbol.name, new_symbol.value)
    assert symbol not in before.symbol_by_id


def _xdp(order: str = "<") -> Obj:
    code = lddw(1, order=order) + insn(0xB7, imm=2, order=order) + insn(0x95, order=order)
    return Obj(
        (Sec("xdp", code, flags=ALLOC_EXEC, align=8), Sec(".maps", bytes(32), flags=ALLOC_WRITE, align=8),
         Sec("license", b"GPL\0", flags=ALLOC_WRITE)),
        (Sym("xdp", 1, 0, 0, LOCAL, SECTION), Sym("prog", 1, 0, len(code)),
         Sym("m", 2, 0, 32, GLOBAL, OBJECT)),
        ((1, (Rel(0, 2),)),),
        order=order,
    )  # fmt: skip


def test_a_dropped_section_takes_its_relocations_and_symbols() -> None:
    read = read_object(build(_xdp()).data)
    maps = read.section(".maps")
    xdp = read.section("xdp")
    assert maps is not None
    assert xdp is not None
    with pytest.raises(RefusedError, match=r"section \.relxdp refers to m, which is to be dropped"):
        drop_sections(read, [maps.id])
    left = drop_sections(read, [xdp.id])
    image = write_object(left)
    again = read_object(image)
    assert [s.name for s in again.sections] == ["", ".maps", "license", ".symtab", ".strtab"]
    assert [s.name for s in again.symbols] == ["", "m"]
    assert again.symbols[1].place == again.sections[1].id
    _agrees(image, again)


# -- refused -----------------------------------------------------------------------------------


def _patched_bytes(data: bytes, at: int, form: str, value: int) -> bytes:
    out = bytearray(data)
    struct.pack_into(form, out, at, value)
    return bytes(out)


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        (0, "<I", 0, "not an ELF file"),
        (4, "<B", 1, "a 32-bit ELF file: BPF objects are ELF64"),
        (5, "<B", 3, "an ELF file of unknown byte order or version (3, 1)"),
        (16, "<H", 2, "not a relocatable object: e_type is 2"),
        (18, "<H", 62, "not a BPF object: e_machine is 62, not 247 (EM_BPF)"),
        (32, "<Q", 64, "the ELF header has program headers, or an unknown size or version"),
        (58, "<H", 40, "the section header table is not readable: 7 entries of 40 bytes"),
        (60, "<H", 0, "the section header table is not readable: 0 entries of 64 bytes"),
        (62, "<H", 1, "e_shstrndx 1 is not a string table"),
        (62, "<H", 0xFFFF, "e_shstrndx 65535 is not a string table"),
    ],
)
def test_headers_that_are_refused(at: int, form: str, value: int, message: str) -> None:
    data = build(_xdp()).data
    with pytest.raises(RefusedError) as caught:
        read_object(_patched_bytes(data, at, form, value))
    assert caught.value.message == message


def test_cut_files_are_refused_at_every_length() -> None:
    data = build(_xdp()).data
    for end in range(len(data)):
        with pytest.raises(RefusedError):
            read_object(data[:end])


def test_sections_that_overlap_are_refused() -> None:
    made = build(_xdp())
    at = made.shoff + 64 * 3 + 24  # license's sh_offset
    with pytest.raises(RefusedError, match="overlap in the file"):
        read_object(_patched_bytes(made.data, at, "<Q", made.offsets[2]))


@pytest.mark.parametrize(
    ("section", "field", "form", "value"),
    [
        (1, 4, "<I", 17), (1, 4, "<I", 0x7000_0001), (1, 32, "<Q", 1 << 63), (1, 40, "<I", 99),
        (1, 48, "<Q", 3), (1, 48, "<Q", 1 << 40), (4, 44, "<I", 99), (4, 44, "<I", 0), (4, 56, "<Q", 24),
        (4, 40, "<I", 2), (4, 40, "<I", 0), (5, 40, "<I", 1), (5, 56, "<Q", 16),
        (0, 0, "<I", 1), (1, 8, "<Q", 0x806), (1, 0, "<I", 1 << 20),
    ],
)  # fmt: skip
def test_section_headers_that_are_refused(section: int, field: int, form: str, value: int) -> None:
    made = build(_xdp())
    with pytest.raises(RefusedError):
        read_object(_patched_bytes(made.data, made.shoff + 64 * section + field, form, value))


def test_a_symbol_of_no_section_is_refused() -> None:
    made = build(_xdp())
    for index in (8, 0xFEFF, 0xFFFF):
        with pytest.raises(RefusedError, match="does not exist"):
            read_object(_patched_bytes(made.data, made.offsets[5] + 24 * 2 + 6, "<H", index))


def test_a_relocation_of_no_symbol_is_refused_where_it_is_used() -> None:
    made = build(_xdp())
    broken = _patched_bytes(made.data, made.offsets[4] + 12, "<I", 77)
    with pytest.raises(RefusedError, match="names symbol 77, which does not exist"):
        transform_object(broken, Request(index=0))


# -- other readers -----------------------------------------------------------------------------


def _agrees(data: bytes, obj: Object) -> None:
    """pyelftools reads the same, field by field."""
    elf = ELFFile(io.BytesIO(data))
    assert elf.elfclass == 64
    assert elf.little_endian == (obj.order == "<")
    assert elf.num_sections() == len(obj.sections)
    for index, mine in enumerate(obj.sections):
        theirs = elf.get_section(index)
        header = theirs.header
        assert theirs.name == mine.name
        assert (header.sh_flags, header.sh_size, header.sh_addralign, header.sh_entsize) == (
            mine.flags, mine.size, mine.addralign, mine.entsize,
        )  # fmt: skip
        assert header.sh_link == (mine.link or 0)
        assert header.sh_info == (mine.info if mine.target is None else mine.target)
        assert header.sh_offset == (mine.offset or 0)
        if header.sh_type != "SHT_NOBITS":
            assert data[header.sh_offset : header.sh_offset + header.sh_size] == mine.data
        if isinstance(theirs, SymbolTableSection):
            assert theirs.num_symbols() == len(obj.symbols)
            for number, known in enumerate(obj.symbols):
                symbol = theirs.get_symbol(number)
                assert symbol.name == (
                    "" if known.type == SECTION and not symbol["st_name"] else known.name
                )
                assert (symbol["st_value"], symbol["st_size"]) == (known.value, known.size)
                shndx = struct.unpack_from(obj.order + "H", mine.data, 24 * number + 6)[0]
                assert shndx == (known.place or known.special)
        elif isinstance(theirs, RelocationSection):
            assert mine.target is not None
            found = [
                (i["r_offset"], i["r_info_sym"], i["r_info_type"])
                for i in theirs.iter_relocations()
            ]
            assert found == [(i.offset, i.symbol, i.type) for i in obj.decode_relocations(mine)]


def _agrees_lief(data: bytes, obj: Object) -> None:
    """LIEF reads the same sections, symbols and relocations."""
    elf = lief.ELF.parse(io.BytesIO(data))
    assert isinstance(elf, lief.ELF.Binary)
    theirs = [
        (s.name, s.offset, s.size, s.alignment, int(s.flags), int(s.entry_size))
        for s in elf.sections
    ]
    assert theirs == [
        (s.name, s.offset or 0, s.size, s.addralign, s.flags, s.entsize) for s in obj.sections
    ]
    symbols = [(s.value, s.size, s.shndx) for s in elf.symtab_symbols]
    assert symbols == [(s.value, s.size, s.place or s.special) for s in obj.symbols]


_OPTIONS: dict[str, dict[str, object]] = {
    "inline": {"strategy": "inline"}, "subprog": {"strategy": "subprog"},
    "states": {"redirect": "1", "saved": "0,1"}, "pin": {"pin": True},
    "map": {"saved_code": "map", "redirect": "1", "allow": frozenset({"nested-runs"})},
}  # fmt: skip


@pytest.mark.parametrize("path", OBJECTS, ids=_ids)
def test_patched_objects_by_other_readers(path: Path) -> None:
    data = path.read_bytes()
    _agrees(data, read_object(data))
    for options in _OPTIONS.values():
        try:
            patched = transform_object(data, Request(index=1, **options)).data  # type: ignore[arg-type]
        except (RefusedError, UsageError):
            continue  # how many are not is counted below
        obj = read_object(patched)
        assert write_object(obj) == patched
        _agrees(patched, obj)
        _agrees_lief(patched, obj)


def test_most_of_the_corpus_can_be_patched() -> None:
    """What the test above would pass over in silence is counted."""
    done = dict.fromkeys(_OPTIONS, 0)
    for path in OBJECTS:
        for name, options in _OPTIONS.items():
            try:
                transform_object(path.read_bytes(), Request(index=1, **options))  # type: ignore[arg-type]
            except BpfchainError:
                continue
            done[name] += 1
    assert all(count > len(OBJECTS) // 2 for count in done.values()), done

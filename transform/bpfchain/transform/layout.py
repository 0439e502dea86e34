"""Rewriting executable sections: pieces of old code and new code laid out anew.

A layout says of what pieces a section now consists. Applying layouts carries everything that names
an offset along: relocations and their implicit addends, symbols, ``.BTF.ext`` records. Each old
offset has at most one new place (its first copy), which is what makes the map monotone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from struct import Struct

from . import isa
from . import records as r
from .btf import Btf
from .btf_ext import CORE_RELO, FUNC_INFO, LINE_INFO, BtfExt, Record, Subsection
from .elf import Object, Relocation, Section, SectionId, Symbol, SymbolId
from .errors import RefusedError

__all__ = [
    "Copy", "Fresh", "Layout", "OffsetMap", "apply_layouts", "new_relocation_section",
    "relayout_btf_ext",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes ``start`` to ``end`` of an old section, some instructions exchanged in place.

    ``primary`` copies are where references to the old offsets now lead.
    """

    section: SectionId
    start: int
    end: int
    changed: tuple[tuple[int, isa.Insn], ...] = ()
    """Pairs of old byte offset and the instruction that now stands there."""
    primary: bool = True
    carry_functions: bool = True
    """Whether func_info records come along (an entry's own is given anew)."""

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class Fresh:
    """Added instructions. ``references`` relocate them: byte offset, relocation type, symbol."""

    insns: tuple[isa.Insn, ...]
    references: tuple[tuple[int, int, SymbolId], ...] = ()
    line: str = ""
    """What line info says of them."""

    @property
    def size(self) -> int:
        return len(self.insns) * isa.INSN_SIZE


Piece = Copy | Fresh


@dataclass(frozen=True, slots=True)
class Layout:
    """A section's new content, and the functions that begin in it anew (offset, BTF type id)."""

    section: SectionId
    pieces: tuple[Piece, ...]
    functions: tuple[tuple[int, int], ...] = ()

    def placed(self) -> Iterable[tuple[int, Piece]]:
        """Each piece with its offset."""
        at = 0
        for piece in self.pieces:
            yield at, piece
            at += piece.size


class OffsetMap:
    """Old (section, offset) to new (section, offset), by the primary copies of all layouts."""

    def __init__(self, layouts: Iterable[Layout]) -> None:
        self._spans: dict[SectionId, list[tuple[int, int, SectionId, int]]] = {}
        for layout in layouts:
            for at, piece in layout.placed():
                if isinstance(piece, Copy) and piece.primary:
                    spans = self._spans.setdefault(piece.section, [])
                    spans.append((piece.start, piece.end, layout.section, at))
        for spans in self._spans.values():
            spans.sort()

    def covers(self, section: SectionId) -> bool:
        """Whether anything of this section was laid out anew."""
        return section in self._spans

    def new(self, section: SectionId, offset: int) -> tuple[SectionId, int]:
        """The new place. Raises RefusedError for bytes that are gone."""
        spans = self._spans.get(section)
        if spans is None:
            return section, offset
        i = bisect_right(spans, offset, key=lambda span: span[0]) - 1
        if i >= 0:
            start, end, target, at = spans[i]
            if offset <= end:
                return target, at + offset - start
        raise RefusedError(f"offset {offset} has no place in the patched object")


def apply_layouts(obj: Object, layouts: tuple[Layout, ...]) -> Object:
    """The object with these sections laid out anew; symbols, relocations and addends follow.

    Symbols are moved by the map; the caller sets those whose meaning changed (the entry itself).
    """
    moves = OffsetMap(layouts)
    relocations = {layout.section: _layout_relocations(obj, layout) for layout in layouts}
    data = {layout.section: _layout_data(obj, layout) for layout in layouts}
    sections: list[Section] = []
    for section in obj.sections:
        body = data.get(section.id)
        if section.type == r.SHT_REL and section.target in relocations:
            body = obj.encode_relocations(relocations.pop(section.target))
        sections.append(section if body is None else section.with_data(body))
    symbols = tuple(
        symbol
        if symbol.place is None or symbol.type == r.STT_SECTION or not moves.covers(symbol.place)
        else _moved_symbol(symbol, moves)
        for symbol in obj.symbols
    )
    moved = replace(obj, sections=tuple(sections), symbols=symbols, _decoded={})
    for target, wanted in relocations.items():
        if wanted:
            moved = new_relocation_section(moved, target, wanted)
    return _move_addends(moved, moves)


def _moved_symbol(symbol: Symbol, moves: OffsetMap) -> Symbol:
    assert symbol.place is not None
    place, value = moves.new(symbol.place, symbol.value)
    return replace(symbol, place=place, value=value)


def _layout_data(obj: Object, layout: Layout) -> bytes:
    out = bytearray()
    for at, piece in layout.placed():
        if isinstance(piece, Fresh):
            out += isa.encode(piece.insns, obj.order)
            continue
        out += obj.by_id[piece.section].data[piece.start : piece.end]
        for offset, insn in piece.changed:
            place = at + offset - piece.start
            out[place : place + isa.INSN_SIZE] = isa.encode((insn,), obj.order)
    return bytes(out)


def _layout_relocations(obj: Object, layout: Layout) -> list[Relocation]:
    out: list[Relocation] = []
    for at, piece in layout.placed():
        if isinstance(piece, Fresh):
            out += [
                Relocation(at + offset, kind, symbol) for offset, kind, symbol in piece.references
            ]
            continue
        shift = at - piece.start
        out += [
            replace(item, offset=item.offset + shift)
            for item in obj.relocations(piece.section)
            if piece.start <= item.offset < piece.end
        ]
    return out


def new_relocation_section(obj: Object, target: SectionId, wanted: Iterable[Relocation]) -> Object:
    """The object with a relocation section for ``target``, which has none yet."""
    identity = SectionId(max(section.id for section in obj.sections) + 1)
    data = obj.encode_relocations(wanted)
    added = Section(
        id=identity, name=".rel" + obj.by_id[target].name, name_offset=None, type=r.SHT_REL,
        flags=0, addralign=8, entsize=r.REL_SIZE, data=data, size=len(data), offset=None,
        link=obj.symtab, target=target,
    )  # fmt: skip
    return replace(obj, sections=(*obj.sections, added), _decoded={})


def _move_addends(obj: Object, moves: OffsetMap) -> Object:
    """Correct what relocations against a section's symbol add: it counts from the section's start.

    Old addends are found in the new data, at the relocation's new place.
    """
    section_symbols = {
        symbol.id: symbol.place
        for symbol in obj.symbols
        if symbol.type == r.STT_SECTION and symbol.place is not None and moves.covers(symbol.place)
    }
    if not section_symbols:
        return obj
    changed = {}
    for section in obj.sections:
        holder = _relocations_of(obj, section)
        fixes = [item for item in holder if item.symbol in section_symbols]
        if fixes:
            body = bytearray(section.data)
            for item in fixes:
                _fix_addend(body, item, section, section_symbols[item.symbol], moves, obj.order)
            changed[section.id] = section.with_data(bytes(body))
    sections = (changed.get(section.id, section) for section in obj.sections)
    return replace(obj, sections=tuple(sections), _decoded={})


def _relocations_of(obj: Object, section: Section) -> tuple[Relocation, ...]:
    if not section.data or section.type != r.SHT_PROGBITS:
        return ()
    if section.name.startswith((".debug_", ".BTF")):
        return ()  # handled, or dropped, on their own
    return obj.relocations(section.id)


def _fix_addend(
    body: bytearray,
    item: Relocation,
    section: Section,
    place: SectionId,
    moves: OffsetMap,
    order: str,
) -> None:
    if section.executable:
        insn = isa.decode(bytes(body[item.offset : item.offset + 8]), order)[0]
        call = insn.opcode == isa.CALL
        old = (insn.imm + 1) * isa.INSN_SIZE if call else insn.imm
        target, new = moves.new(place, old)
        if target != place:
            raise RefusedError(
                f"section {section.name}: the instruction at {item.offset} refers to code that moves"
            )
        insn = insn._replace(imm=new // isa.INSN_SIZE - 1 if call else new)
        body[item.offset : item.offset + 8] = isa.encode((insn,), order)
        return
    word = Struct(order + ("Q" if item.type in (r.R_BPF_64_ABS64, r.R_BPF_64_64) else "I"))
    if item.offset + word.size > len(body):
        raise RefusedError(f"section {section.name}: relocation at {item.offset} is outside of it")
    (old,) = word.unpack_from(body, item.offset)
    target, new = moves.new(place, old)
    if target != place:
        raise RefusedError(
            f"section {section.name}: offset {item.offset} refers to code that moves"
        )
    word.pack_into(body, item.offset, new)


def relayout_btf_ext(
    ext: BtfExt,
    btf: Btf,
    obj: Object,
    layouts: tuple[Layout, ...],
    lines: Mapping[str, tuple[int, int]],
) -> BtfExt:
    """The records of the sections that were laid out anew.

    ``btf`` must hold the names of all sections that are laid out. ``lines`` gives for the text of each Fresh piece its (file, line) string offsets. Line records
    for added code appear only where ``lines`` knows its text: where the program has line info.
    """
    result = ext
    for layout in layouts:
        names = btf.offsets_of(obj.by_id[layout.section].name)
        for number in (FUNC_INFO, LINE_INFO, CORE_RELO):
            part = ext.parts[number]  # as it was: another layout may have taken from it
            records = _carried(part, number, layout, btf, obj)
            if number == FUNC_INFO and part.packed:
                word = Struct(ext.order + "I")
                pad = bytes(part.record_size - 8)
                records += [Record(at, word.pack(kind) + pad) for at, kind in layout.functions]
            if number == LINE_INFO and (records or part.of(names)):
                records = _fresh_lines(layout, records, lines, part.record_size, ext.order)
            if records or part.of(names):
                changed = result.parts[number].with_records(names, min(names), records)
                result = result.with_part(number, changed)
    return result


def _carried(part: Subsection, number: int, layout: Layout, btf: Btf, obj: Object) -> list[Record]:
    """The records of copied instructions, at their new places."""
    records: list[Record] = []
    for at, piece in layout.placed():
        if isinstance(piece, Fresh) or (number == FUNC_INFO and not piece.carry_functions):
            continue
        source = part.of(btf.offsets_of(obj.by_id[piece.section].name))
        records += [
            Record(record.offset + at - piece.start, record.rest)
            for record in source
            if piece.start <= record.offset < piece.end
        ]
    return records


def _fresh_lines(
    layout: Layout,
    records: list[Record],
    lines: Mapping[str, tuple[int, int]],
    size: int,
    order: str,
) -> list[Record]:
    triple = Struct(order + "III")
    taken = {record.offset for record in records}
    for at, piece in layout.placed():
        if isinstance(piece, Fresh) and piece.line in lines and piece.insns and at not in taken:
            file, line = lines[piece.line]
            records.append(Record(at, triple.pack(file, line, 0) + bytes(size - 16)))
    return records

"""Writer: the model becomes bytes; table indexes and file offsets are assigned here and only here.

Parts keep their original order and distances; only what grew, and what lies behind it, moves.
"""

from __future__ import annotations

from array import array
from dataclasses import replace

from . import records as r
from .elf import Object, Section, SectionId, Symbol, SymbolId
from .errors import RefusedError

__all__ = ["write_object"]


def write_object(obj: Object) -> bytes:
    """Encode an object; without edits this gives back the bytes that were read."""
    rec = r.records_for(obj.order)
    obj = _with_strings(obj)
    section_index = {section.id: i for i, section in enumerate(obj.sections)}
    as_read = _symbols_as_read(obj)
    symbols = list(obj.symbols) if as_read else _ordered(obj.symbols)
    symbol_index = {symbol.id: i for i, symbol in enumerate(symbols)}
    moved = any(identity != index for identity, index in symbol_index.items())
    contents: dict[SectionId, bytes] = {}
    for section in obj.sections:
        if section.id == obj.symtab:
            contents[section.id] = b"".join(
                rec.sym.pack(*_symbol_fields(symbol, section_index)) for symbol in symbols
            )
        elif section.type == r.SHT_REL and moved:
            contents[section.id] = _renumber_rel(obj.order, section, symbol_index)
        elif section.type == r.SHT_LLVM_ADDRSIG and moved and section.link == obj.symtab:
            contents[section.id] = _renumber_addrsig(section, symbol_index)
        else:
            contents[section.id] = section.data
    image, offsets, shoff = _lay_out(obj, contents)
    first_global = next((i for i, s in enumerate(symbols) if s.bind != r.STB_LOCAL), len(symbols))
    table = bytearray()
    for section in obj.sections:
        info = section.info
        if section.target is not None:
            info = section_index[section.target]
        elif section.id == obj.symtab and not as_read:
            info = first_global
        size = section.size if section.type == r.SHT_NOBITS else len(contents[section.id])
        table += rec.shdr.pack(
            section.name_offset, section.type, section.flags, section.addr, offsets[section.id],
            size, 0 if section.link is None else section_index[section.link], info,
            section.addralign, section.entsize,
        )  # fmt: skip
    image[shoff : shoff + len(table)] = table
    rec.ehdr.pack_into(
        image, 0, obj.header.ident, r.ET_REL, r.EM_BPF, 1, obj.header.entry, 0, shoff,
        obj.header.flags, r.EHDR_SIZE, 0, 0, r.SHDR_SIZE, len(obj.sections),
        section_index[obj.shstrtab],
    )  # fmt: skip
    return bytes(image)


def _symbols_as_read(obj: Object) -> bool:
    """Whether the symbol table is the one that was read: then its order stays, whatever it is
    (`bpftool gen object` does not put local symbols first)."""
    if obj.symtab is None:
        return True
    count = obj.by_id[obj.symtab].size // r.SYM_SIZE
    return len(obj.symbols) == count and all(s.id == i for i, s in enumerate(obj.symbols))


def _ordered(symbols: tuple[Symbol, ...]) -> list[Symbol]:
    """Local symbols first, as the ABI wants; otherwise in the order of the model."""
    return sorted(symbols, key=lambda symbol: symbol.bind != r.STB_LOCAL)


def _with_strings(obj: Object) -> Object:
    """Give every new name a place in its string table (existing strings are reused)."""
    grown: dict[SectionId, bytearray] = {}

    def place(table: SectionId, name: str) -> int:
        strings = grown.setdefault(table, bytearray(obj.by_id[table].data))
        wanted = name.encode() + b"\0"
        at = strings.find(b"\0" + wanted)
        if at >= 0:
            return at + 1
        strings += wanted
        return len(strings) - len(wanted)

    sections = tuple(
        section
        if section.name_offset is not None
        else replace(section, name_offset=place(obj.shstrtab, section.name))
        for section in obj.sections
    )
    symbols = obj.symbols
    names = obj.by_id[obj.symtab].link if obj.symtab is not None else None
    if names is not None:
        symbols = tuple(
            symbol
            if symbol.name_offset is not None
            else replace(symbol, name_offset=place(names, symbol.name))
            for symbol in symbols
        )
    if not grown:
        return obj
    return replace(
        obj,
        sections=tuple(
            section.with_data(bytes(grown[section.id])) if section.id in grown else section
            for section in sections
        ),
        symbols=symbols,
    )


def _symbol_fields(
    symbol: Symbol, section_index: dict[SectionId, int]
) -> tuple[int | None, int, int, int, int, int]:
    shndx = symbol.special if symbol.place is None else section_index[symbol.place]
    info = symbol.bind << 4 | symbol.type
    return symbol.name_offset, info, symbol.other, shndx, symbol.value, symbol.size


def _renumber_rel(order: str, section: Section, index: dict[SymbolId, int]) -> bytes:
    words = array("Q", section.data)
    if (order == ">") == _NATIVE_LITTLE:
        words.byteswap()
    for i in range(1, len(words), 2):
        identity = words[i] >> 32
        try:
            words[i] = index[SymbolId(identity)] << 32 | words[i] & 0xFFFF_FFFF
        except KeyError:
            raise RefusedError(
                f"section {section.name}: relocation {i // 2} names symbol {identity}, "
                "which does not exist"
            ) from None
    if (order == ">") == _NATIVE_LITTLE:
        words.byteswap()
    return words.tobytes()


_NATIVE_LITTLE = array("H", b"\1\0")[0] == 1


def _renumber_addrsig(section: Section, index: dict[SymbolId, int]) -> bytes:
    """``.llvm_addrsig``: ULEB128 symbol indexes; a symbol that was dropped is left out."""
    out = bytearray()
    value = shift = 0
    for byte in section.data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte & 0x80:
            continue
        final = index.get(SymbolId(value))
        value = shift = 0
        while final is not None:
            low, final = final & 0x7F, final >> 7
            out.append(low | (0x80 if final else 0))
            if not final:
                break
    if shift:
        raise RefusedError(f"section {section.name}: the last symbol index is cut short")
    return bytes(out)


def _lay_out(
    obj: Object, contents: dict[SectionId, bytes]
) -> tuple[bytearray, dict[SectionId, int], int]:
    """Place every part; returns the image, the sections' offsets and that of the header table."""
    table_size = r.SHDR_SIZE * len(obj.sections)
    old = [s for s in obj.sections if s.offset is not None and s.data]
    new = [s for s in obj.sections if s.offset is None and contents[s.id]]
    gap_before = {gap.before: gap.data for gap in obj.gaps}
    parts: list[tuple[int, Section | None]] = [(s.offset or 0, s) for s in old]
    parts.append((obj.headers_offset, None))
    parts.sort(key=lambda part: part[0])
    # new sections go right before the header table where that comes last, else behind everything
    at = len(parts) - 1 if parts[-1][1] is None else len(parts)
    parts[at:at] = [(-1, section) for section in new]

    image = bytearray(r.EHDR_SIZE)
    offsets: dict[SectionId, int] = {}
    shoff = 0
    for old_offset, section in parts:
        gap = gap_before.get(section.id if section is not None else None, b"")
        align = max(section.addralign, 1) if section is not None else 8
        if len(image) + len(gap) == old_offset:
            image += gap  # nothing before has moved: keep every byte
        else:
            if any(gap):
                raise RefusedError(
                    "bytes between sections are not zero and would move: "
                    f"{len(gap)} bytes before {section.name if section else 'the section headers'}"
                )
            image += bytes(-len(image) % align)
        if section is None:
            shoff = len(image)
            image += bytes(table_size)
        else:
            offsets[section.id] = len(image)
            image += contents[section.id]
    image += obj.tail
    for section in obj.sections:
        if section.id not in offsets:  # nothing in the file: an offset is only a habit
            offsets[section.id] = _empty_offset(section, obj, offsets, len(image))
    return image, offsets, shoff


def _empty_offset(section: Section, obj: Object, offsets: dict[SectionId, int], end: int) -> int:
    """Where a section without bytes says it is: unmoved, or with what used to lie around it."""
    if section.offset is None:
        return end
    if section.type == r.SHT_NULL:
        return section.offset
    before = [
        s for s in obj.sections
        if s.offset is not None and s.data and s.offset <= section.offset and s.id in offsets
    ]  # fmt: skip
    if not before:
        return section.offset
    nearest = max(before, key=lambda s: s.offset or 0)
    moved = offsets[nearest.id] - (nearest.offset or 0)
    return min(section.offset + moved, end)

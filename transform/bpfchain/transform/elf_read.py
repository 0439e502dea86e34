"""Reader: the bytes of an ELF64 BPF relocatable object become the model.

Everything that the writer could not give back byte for byte is refused here, with its place.
"""

from __future__ import annotations

from . import records as r
from .elf import Gap, Header, Object, Section, SectionId, Symbol, SymbolId
from .errors import RefusedError

__all__ = ["read_object"]

_ELF_MAGIC = b"\x7fELF"
_KNOWN_TYPES = {
    r.SHT_NULL, r.SHT_PROGBITS, r.SHT_SYMTAB, r.SHT_STRTAB, r.SHT_NOTE, r.SHT_NOBITS, r.SHT_REL,
    r.SHT_LLVM_ADDRSIG,
}  # fmt: skip


def read_object(data: bytes) -> Object:
    """Decode an object. Raises RefusedError for anything but a well-formed ELF64 BPF REL file."""
    order = _byte_order(data)
    rec = r.records_for(order)
    (ident, kind, machine, version, entry, phoff, shoff, flags, ehsize, phentsize, phnum,
     shentsize, shnum, shstrndx) = rec.ehdr.unpack_from(data)  # fmt: skip
    if machine != r.EM_BPF:
        raise RefusedError(
            f"not a BPF object: e_machine is {machine}, not {r.EM_BPF} (EM_BPF)",
            "compile with clang -target bpf",
        )
    if kind != r.ET_REL:
        raise RefusedError(
            f"not a relocatable object: e_type is {kind}", "give the object that the compiler wrote"
        )
    if version != 1 or ehsize != r.EHDR_SIZE or phnum or phoff or phentsize:
        raise RefusedError("the ELF header has program headers, or an unknown size or version")
    if shentsize != r.SHDR_SIZE or shnum == 0:
        raise RefusedError(
            f"the section header table is not readable: {shnum} entries of {shentsize} bytes"
        )
    if shoff < r.EHDR_SIZE or shoff + shnum * r.SHDR_SIZE > len(data):
        raise RefusedError(
            f"the file is cut short: section headers at {shoff}, {len(data)} bytes in the file"
        )
    raw = [rec.shdr.unpack_from(data, shoff + i * r.SHDR_SIZE) for i in range(shnum)]
    if any(raw[0]):
        raise RefusedError("the first section header is not empty")
    if not 0 < shstrndx < shnum or raw[shstrndx][1] != r.SHT_STRTAB:
        raise RefusedError(f"e_shstrndx {shstrndx} is not a string table")
    names = _slice(data, raw[shstrndx], "section names")
    sections = tuple(_section(data, names, i, header, shnum) for i, header in enumerate(raw))
    symtab, symbols = _symbols(rec, sections)
    for section in sections:
        if section.type == r.SHT_REL:
            _check_symbols(rec, section, symtab, len(symbols))
    gaps, tail = _gaps(data, sections, shoff, shoff + shnum * r.SHDR_SIZE)
    return Object(
        header=Header(ident, entry, flags, order),
        sections=sections,
        symbols=symbols,
        symtab=symtab,
        shstrtab=SectionId(shstrndx),
        headers_offset=shoff,
        gaps=gaps,
        tail=tail,
    )


def _byte_order(data: bytes) -> str:
    if len(data) < r.EHDR_SIZE or data[:4] != _ELF_MAGIC:
        raise RefusedError("not an ELF file", "give a BPF object as clang -target bpf writes it")
    if data[4] != 2:
        raise RefusedError("a 32-bit ELF file: BPF objects are ELF64")
    if data[5] not in (1, 2) or data[6] != 1:
        raise RefusedError(f"an ELF file of unknown byte order or version ({data[5]}, {data[6]})")
    return "<" if data[5] == 1 else ">"


def _slice(data: bytes, header: tuple[int, ...], what: str) -> bytes:
    offset, size = header[4], header[5]
    if offset + size > len(data):
        raise RefusedError(
            f"the file is cut short: {what} at {offset}+{size}, {len(data)} bytes in the file"
        )
    return data[offset : offset + size]


def _string(table: bytes, offset: int, what: str) -> str:
    end = table.find(b"\0", offset)
    if (offset >= len(table) and offset) or end < 0:
        raise RefusedError(f"{what}: the name at {offset} is outside its string table")
    try:
        return table[offset:end].decode()
    except UnicodeDecodeError:
        raise RefusedError(f"{what}: the name at {offset} is not UTF-8") from None


def _section(data: bytes, names: bytes, index: int, header: tuple[int, ...], count: int) -> Section:
    name_offset, kind, flags, addr, offset, size, link, info, align, entsize = header
    if index == 0:
        return Section(SectionId(0), "", 0, r.SHT_NULL, 0, 0, 0, b"", 0, 0)
    name = _string(names, name_offset, f"section {index}")
    if kind not in _KNOWN_TYPES:
        raise RefusedError(
            f"section {name}: type {kind:#x} is not known here and may refer to what the patch moves"
        )
    if flags & r.SHF_COMPRESSED and not name.startswith(".debug_"):
        raise RefusedError(f"section {name}: it is compressed")
    if link >= count:
        raise RefusedError(f"section {name}: sh_link {link} is not a section")
    if align & (align - 1) or align > 1 << 16:
        raise RefusedError(f"section {name}: alignment {align} is not a power of two up to 65536")
    body = b"" if kind == r.SHT_NOBITS else _slice(data, header, f"section {name}")
    target = None
    if kind == r.SHT_REL:
        if not 0 < info < count or info == index:
            raise RefusedError(f"section {name}: relocates section {info}, which does not exist")
        if entsize != r.REL_SIZE or size % r.REL_SIZE:
            raise RefusedError(f"section {name}: {size} bytes are not whole relocations")
        target = SectionId(info)
    return Section(
        id=SectionId(index), name=name, name_offset=name_offset, type=kind, flags=flags,
        addralign=align, entsize=entsize, data=body, size=size, offset=offset, addr=addr,
        link=SectionId(link) if link else None, info=0 if target is not None else info,
        target=target,
    )  # fmt: skip


def _check_symbols(
    rec: r.ElfRecords, section: Section, symtab: SectionId | None, count: int
) -> None:
    """Every relocation must name a symbol of the one symbol table, also where nobody decodes it."""
    if section.link != symtab:
        raise RefusedError(f"section {section.name}: its symbols are not those of the symbol table")
    highest = max((index for (index,) in rec.rel_symbol.iter_unpack(section.data)), default=0)
    if highest >= max(count, 1):
        raise RefusedError(
            f"section {section.name}: a relocation names symbol {highest}, which does not exist"
        )


def _symbols(
    rec: r.ElfRecords, sections: tuple[Section, ...]
) -> tuple[SectionId | None, tuple[Symbol, ...]]:
    tables = [section for section in sections if section.type == r.SHT_SYMTAB]
    if not tables:
        return None, ()
    if len(tables) > 1:
        raise RefusedError("the object has several symbol tables")
    table = tables[0]
    if table.entsize != r.SYM_SIZE or table.size % r.SYM_SIZE or not table.size:
        raise RefusedError(f"section {table.name}: {table.size} bytes are not whole symbols")
    strings = sections[table.link] if table.link is not None else None
    if strings is None or strings.type != r.SHT_STRTAB:
        raise RefusedError(f"section {table.name}: sh_link is not a string table")
    symbols = []
    for index, fields in enumerate(rec.sym.iter_unpack(table.data)):
        symbols.append(_symbol(index, fields, strings.data, sections))
    if any(rec.sym.unpack_from(table.data)):
        raise RefusedError(f"section {table.name}: the first symbol is not empty")
    return table.id, tuple(symbols)


def _symbol(
    index: int, fields: tuple[int, ...], strings: bytes, sections: tuple[Section, ...]
) -> Symbol:
    name_offset, info, other, shndx, value, size = fields
    place = None
    kind = info & 0xF
    name = _string(strings, name_offset, f"symbol {index}")
    if shndx == 0xFFFF or (shndx >= len(sections) and shndx < r.SHN_LORESERVE):
        raise RefusedError(f"symbol {index} ({name}): section index {shndx:#x} does not exist")
    if r.SHN_UNDEF < shndx < r.SHN_LORESERVE:
        place = SectionId(shndx)
        if kind == r.STT_SECTION and not name:
            name = sections[shndx].name
    return Symbol(
        id=SymbolId(index), name=name, name_offset=name_offset, bind=info >> 4, type=kind,
        other=other, place=place, special=shndx if place is None else 0, value=value, size=size,
    )  # fmt: skip


def _gaps(
    data: bytes, sections: tuple[Section, ...], shoff: int, shend: int
) -> tuple[tuple[Gap, ...], bytes]:
    parts: list[tuple[int, int, SectionId | None, str]] = [
        (section.offset or 0, (section.offset or 0) + len(section.data), section.id, section.name)
        for section in sections
        if section.data
    ]
    parts.append((shoff, shend, None, "the section header table"))
    parts.sort(key=lambda part: part[:2])
    gaps = []
    end, before = r.EHDR_SIZE, "the ELF header"
    for start, stop, section, name in parts:
        if start < end:
            raise RefusedError(f"{name} and {before} overlap in the file at {start}")
        if start > end:
            gaps.append(Gap(section, data[end:start]))
        end, before = stop, name
    return tuple(gaps), data[end:]

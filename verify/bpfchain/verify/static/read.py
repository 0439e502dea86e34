"""Reading an object file through pyelftools.

Everything that a loader could look at goes into ``model.Obj``; file offsets do not.
"""

from __future__ import annotations

from io import BytesIO
from itertools import pairwise
from struct import Struct
from typing import Any, Final

from bpfchain.verify.static.model import (
    SHT_NOBITS,
    SHT_NULL,
    SHT_REL,
    SHT_RELA,
    SHT_SYMTAB,
    Obj,
    Relocation,
    Section,
    Symbol,
    Unreadable,
)

__all__ = ["EM_BPF", "read_object"]

EM_BPF: Final = 247
_REL_SIZE: Final = 16
_HEADER: Final = (
    "e_type", "e_machine", "e_version", "e_entry", "e_flags", "e_phoff", "e_phentsize",
    "e_phnum", "e_ehsize", "e_shentsize",
)  # fmt: skip


def read_object(data: bytes) -> Obj:
    """Read one ELF64 BPF object. Raises Unreadable with what is wrong."""
    from elftools.common.exceptions import ELFError
    from elftools.construct import ConstructError
    from elftools.elf.elffile import ELFFile

    try:
        return _read(ELFFile(BytesIO(data)))
    except (ELFError, ConstructError) as error:
        raise Unreadable(f"pyelftools cannot read it: {error}") from None
    except (ValueError, KeyError, IndexError, AttributeError, OverflowError, TypeError) as error:
        raise Unreadable(f"pyelftools stumbles over it: {error!r}") from None


def _read(elf: Any) -> Obj:
    if elf.elfclass != 64 or _number(elf["e_machine"], "e_machine") != EM_BPF:
        raise Unreadable("not an ELF64 object for BPF")
    sections: list[Section] = []
    symbols: tuple[Symbol, ...] = ()
    relocations: dict[int, tuple[Relocation, ...]] = {}
    found_symtab = False
    names = elf.get_section(_number(elf["e_shstrndx"], "e_shstrndx")).header["sh_size"]
    for index, section in enumerate(elf.iter_sections()):
        header = section.header
        kind = _number(header["sh_type"], "sh_type")
        size: int = header["sh_size"]
        if header["sh_name"] >= names:  # pyelftools gives an empty one
            raise Unreadable(f"section {index}: its name is nowhere")
        body = b"" if kind in (SHT_NOBITS, SHT_NULL) else _content(elf, header)
        sections.append(
            Section(
                index, section.name, kind, header["sh_flags"], header["sh_addralign"],
                header["sh_entsize"], body, size, header["sh_link"], header["sh_info"],
                header["sh_addr"], header["sh_offset"],
            )
        )  # fmt: skip
        if kind == SHT_SYMTAB:
            if found_symtab:
                raise Unreadable("it has two symbol tables")
            found_symtab = True
            found = tuple(section.iter_symbols())
            room = elf.get_section(header["sh_link"]).header["sh_size"]
            for one in found:  # pyelftools gives an empty name for one outside of the table
                if one.entry["st_name"] >= room:
                    raise Unreadable(f"symbol at {one.entry['st_value']}: its name is nowhere")
            others = body[5 :: header["sh_entsize"]]  # pyelftools leaves bits out
            symbols = tuple(_symbol(i, one, others[i]) for i, one in enumerate(found))
        elif kind == SHT_REL:
            if header["sh_entsize"] != _REL_SIZE or size % _REL_SIZE:
                raise Unreadable(f"section {section.name}: records are not {_REL_SIZE} bytes long")
            target: int = header["sh_info"]
            if target in relocations:
                raise Unreadable(f"section {section.name}: a second one for section {target}")
            # pyelftools takes 10 us a record, and a -g object has thousands
            records = Struct("<QQ" if elf.little_endian else ">QQ").iter_unpack(body)
            relocations[target] = tuple(
                Relocation(offset, told >> 32, told & 0xFFFF_FFFF) for offset, told in records
            )
        elif kind == SHT_RELA:
            raise Unreadable(f"section {section.name}: BPF objects hold no RELA relocations")
    _check_references(sections, symbols, relocations)
    _check_spans(sections)
    order = "<" if elf.little_endian else ">"
    fields = tuple((name, _number(elf[name], name)) for name in _HEADER)
    elf.stream.seek(0)
    fields += (("e_ident", int.from_bytes(elf.stream.read(16), "big")),)
    return Obj(order, fields, tuple(sections), symbols, relocations, "pyelftools")


def _content(elf: Any, header: Any) -> bytes:
    # Section.data() would unpack SHF_COMPRESSED ones; the bytes as they lie are what counts
    elf.stream.seek(header["sh_offset"])
    body: bytes = elf.stream.read(header["sh_size"])
    if len(body) != header["sh_size"]:
        raise Unreadable("a section reaches behind the end of the file")
    return body


def _symbol(index: int, one: Any, other: int) -> Symbol:
    entry = one.entry
    info = entry["st_info"]
    return Symbol(
        index, one.name, _number(entry["st_shndx"], "st_shndx"), entry["st_value"],
        entry["st_size"], _number(info["type"], "st_info_type"),
        _number(info["bind"], "st_info_bind"), other,
    )  # fmt: skip


def _check_references(
    sections: list[Section],
    symbols: tuple[Symbol, ...],
    relocations: dict[int, tuple[Relocation, ...]],
) -> None:
    for target, group in relocations.items():
        if not 0 < target < len(sections):
            raise Unreadable(f"relocations for section {target}, which does not exist")
        for item in group:
            if item.symbol >= len(symbols):
                raise Unreadable(
                    f"section {sections[target].name}: the relocation at {item.offset} names "
                    f"symbol {item.symbol}, which does not exist"
                )
    for symbol in symbols:
        if len(sections) <= symbol.section < 0xFF00:
            raise Unreadable(f"symbol {symbol.name} is in section {symbol.section}, which is not")


def _check_spans(sections: list[Section]) -> None:
    spans = sorted((s.offset, s.offset + len(s.data), s.name) for s in sections if s.data)
    for (_, end, name), (start, _, other) in pairwise(spans):
        if start < end:
            raise Unreadable(f"sections {name} and {other} overlap in the file")


_ENUMS: Final = {
    "e_type": "ENUM_E_TYPE", "e_machine": "ENUM_E_MACHINE", "e_version": "ENUM_E_VERSION",
    "sh_type": "ENUM_SH_TYPE_BASE", "st_shndx": "ENUM_ST_SHNDX",
    "st_info_type": "ENUM_ST_INFO_TYPE", "st_info_bind": "ENUM_ST_INFO_BIND",
}  # fmt: skip


def _number(value: Any, kind: str) -> int:
    """Pyelftools names what it knows; the number behind the name."""
    if isinstance(value, int):
        return value
    from elftools.elf import enums

    return int(getattr(enums, _ENUMS[kind])[value])

"""Small edits of an object: a section changed, added or dropped, a symbol added."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from . import records as r
from .elf import Object, Section, SectionId, Symbol, SymbolId
from .errors import RefusedError

__all__ = ["add_section", "add_symbol", "change_section", "drop_sections", "section_symbol"]


def change_section(obj: Object, identity: SectionId, data: bytes) -> Object:
    """The object where one section holds ``data``."""
    return replace(
        obj,
        sections=tuple(s.with_data(data) if s.id == identity else s for s in obj.sections),
        _decoded={},
    )


def add_section(
    obj: Object,
    name: str,
    data: bytes,
    *,
    type: int = r.SHT_PROGBITS,
    flags: int = 0,
    align: int = 1,
) -> tuple[Object, SectionId]:
    """The object with one more section at the end, and its identity."""
    identity = SectionId(max(section.id for section in obj.sections) + 1)
    added = Section(
        id=identity, name=name, name_offset=None, type=type, flags=flags, addralign=align,
        entsize=0, data=data, size=len(data), offset=None,
    )  # fmt: skip
    return replace(obj, sections=(*obj.sections, added)), identity


def add_symbol(
    obj: Object, name: str, place: SectionId, value: int, size: int, *, bind: int, type: int
) -> tuple[Object, SymbolId]:
    """The object with one more symbol, and its identity."""
    identity = SymbolId(max(symbol.id for symbol in obj.symbols) + 1)
    named = type != r.STT_SECTION
    added = Symbol(
        id=identity, name=name, name_offset=None if named else 0, bind=bind, type=type,
        other=r.STV_DEFAULT, place=place, special=0, value=value, size=size,
    )  # fmt: skip
    return replace(obj, symbols=(*obj.symbols, added)), identity


def section_symbol(obj: Object, place: SectionId) -> tuple[Object, SymbolId]:
    """The symbol that stands for a section, added where it is missing."""
    for symbol in obj.by_place.get(place, ()):
        if symbol.type == r.STT_SECTION:
            return obj, symbol.id
    name = obj.by_id[place].name
    return add_symbol(obj, name, place, 0, 0, bind=r.STB_LOCAL, type=r.STT_SECTION)


def drop_sections(obj: Object, identities: Iterable[SectionId]) -> Object:
    """The object without these sections, what relocates them, and the symbols defined in them.

    Raises RefusedError where something that stays refers to one of those symbols.
    """
    gone = set(identities)
    gone |= {s.id for s in obj.sections if s.target in gone}
    if not gone:
        return obj
    for section in obj.sections:
        if section.id not in gone and section.link in gone:
            raise RefusedError(
                f"section {section.name}: what it is linked to (sh_link) is to be dropped"
            )
    if obj.symtab in gone or obj.shstrtab in gone:
        raise RefusedError("the symbol table or the section names are among what is to be dropped")
    symbols_gone = {symbol.id for symbol in obj.symbols if symbol.place in gone}
    for section in obj.sections:
        if section.type == r.SHT_REL and section.id not in gone and symbols_gone:
            for item in obj.decode_relocations(section):
                if item.symbol in symbols_gone:
                    name = obj.symbol_by_id[item.symbol].name
                    raise RefusedError(
                        f"section {section.name} refers to {name}, which is to be dropped"
                    )
    return replace(
        obj,
        sections=tuple(section for section in obj.sections if section.id not in gone),
        symbols=tuple(symbol for symbol in obj.symbols if symbol.id not in symbols_gone),
        gaps=tuple(gap for gap in obj.gaps if gap.before not in gone or any(gap.data)),
        _decoded={},
    )

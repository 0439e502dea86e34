"""The object model: sections, symbols and relocations that name each other by identity.

An identity (``SectionId``, ``SymbolId``) never changes while an object is edited; what was read
has its table index as identity, what is new a number behind those. Inside the model, bytes that
refer to symbols (relocations, ``.llvm_addrsig``) hold identities; ``elf_write`` assigns indexes. Values are frozen: an edit makes a new object. The
original layout (file offsets, gaps) is part of the model, so an object without edits is written
back byte for byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NewType

from . import records as r
from .errors import RefusedError

__all__ = [
    "Gap", "Header", "Object", "Relocation", "Section", "SectionId", "Symbol", "SymbolId",
]  # fmt: skip

SectionId = NewType("SectionId", int)
SymbolId = NewType("SymbolId", int)


@dataclass(frozen=True, slots=True)
class Header:
    """The ELF header's fields that are not counts or offsets."""

    ident: bytes
    entry: int
    flags: int
    order: str


@dataclass(frozen=True, slots=True)
class Section:
    """One section. ``size`` differs from ``len(data)`` only where the file holds no bytes (NOBITS).

    ``offset`` is its place in the file it was read from, None for a new one. For a relocation
    section ``target`` is the section it applies to; ``info`` is the raw sh_info of all others.
    """

    id: SectionId
    name: str
    name_offset: int | None
    type: int
    flags: int
    addralign: int
    entsize: int
    data: bytes
    size: int
    offset: int | None
    addr: int = 0
    link: SectionId | None = None
    info: int = 0
    target: SectionId | None = None

    @property
    def executable(self) -> bool:
        """Whether the section holds instructions."""
        return bool(self.flags & r.SHF_EXECINSTR) and self.type == r.SHT_PROGBITS

    def with_data(self, data: bytes) -> Section:
        """The same section with other content."""
        return replace(self, data=data, size=len(data))


@dataclass(frozen=True, slots=True)
class Symbol:
    """One symbol. ``place`` is where it is defined: a section, or one of the SHN_* specials."""

    id: SymbolId
    name: str
    name_offset: int | None
    bind: int
    type: int
    other: int
    place: SectionId | None
    special: int
    value: int
    size: int

    @property
    def end(self) -> int:
        """The offset behind the symbol's last byte."""
        return self.value + self.size


@dataclass(frozen=True, slots=True)
class Relocation:
    """One REL record: at ``offset`` (bytes into the target section) ``symbol`` is referred to."""

    offset: int
    type: int
    symbol: SymbolId


@dataclass(frozen=True, slots=True)
class Gap:
    """Bytes of the file that belong to no section, kept with what follows them."""

    before: SectionId | None
    """The section that follows, None for the section header table."""
    data: bytes


@dataclass(frozen=True)
class Object:
    """An ELF64 BPF relocatable object.

    Symbols that were read come in table order; relocations are decoded per section on request.
    """

    header: Header
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]
    symtab: SectionId | None
    shstrtab: SectionId
    headers_offset: int
    """File offset of the section header table as it was read."""
    gaps: tuple[Gap, ...]
    tail: bytes = b""
    _decoded: dict[SectionId, tuple[Relocation, ...]] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def order(self) -> str:
        """Byte order as struct writes it: ``"<"`` or ``">"``."""
        return self.header.order

    @cached_property
    def by_id(self) -> dict[SectionId, Section]:
        """Sections by identity."""
        return {section.id: section for section in self.sections}

    @cached_property
    def symbol_by_id(self) -> dict[SymbolId, Symbol]:
        """Symbols by identity."""
        return {symbol.id: symbol for symbol in self.symbols}

    @cached_property
    def by_place(self) -> dict[SectionId | None, tuple[Symbol, ...]]:
        """Symbols grouped by the section they are defined in."""
        groups: dict[SectionId | None, list[Symbol]] = {}
        for symbol in self.symbols:
            groups.setdefault(symbol.place, []).append(symbol)
        return {place: tuple(group) for place, group in groups.items()}

    def section(self, name: str) -> Section | None:
        """The only section of that name, or None. Raises RefusedError where there are several."""
        found = [section for section in self.sections if section.name == name]
        if len(found) > 1:
            raise RefusedError(
                f"section {name}: the object holds {len(found)} sections of that name"
            )
        return found[0] if found else None

    def functions(self, section: SectionId) -> tuple[Symbol, ...]:
        """The FUNC symbols of a section, in the order of their offsets."""
        group = [s for s in self.by_place.get(section, ()) if s.type == r.STT_FUNC]
        return tuple(sorted(group, key=lambda symbol: symbol.value))

    def relocation_section(self, target: SectionId) -> Section | None:
        """The section that relocates ``target``, or None."""
        found = [s for s in self.sections if s.type == r.SHT_REL and s.target == target]
        if len(found) > 1:
            raise RefusedError(
                f"section {self.by_id[target].name}: {len(found)} relocation sections apply to it"
            )
        return found[0] if found else None

    def relocations(self, target: SectionId) -> tuple[Relocation, ...]:
        """The relocations that apply to ``target``, in file order."""
        section = self.relocation_section(target)
        return self.decode_relocations(section) if section is not None else ()

    def relocated_symbols(self, section: Section) -> set[SymbolId]:
        """The symbols that a relocation section names, found without decoding its records."""
        found = r.records_for(self.order).rel_symbol.iter_unpack(section.data)
        return {SymbolId(index) for (index,) in found}

    def decode_relocations(self, section: Section) -> tuple[Relocation, ...]:
        """The records of one relocation section."""
        known = self._decoded.get(section.id)
        if known is None:
            known = tuple(self._iter_relocations(section))
            self._decoded[section.id] = known
        return known

    def _iter_relocations(self, section: Section) -> Iterator[Relocation]:
        known = self.symbol_by_id
        for number, (offset, info) in enumerate(
            r.records_for(self.order).rel.iter_unpack(section.data)
        ):
            symbol = SymbolId(info >> 32)
            if symbol not in known:
                raise RefusedError(
                    f"section {section.name}: relocation {number} names symbol {symbol}, "
                    f"which does not exist"
                )
            yield Relocation(offset, info & 0xFFFF_FFFF, symbol)

    def encode_relocations(self, relocations: Iterable[Relocation]) -> bytes:
        """The bytes of a relocation section in the model's terms: by symbol identity."""
        pack = r.records_for(self.order).rel.pack
        return b"".join(pack(item.offset, item.symbol << 32 | item.type) for item in relocations)

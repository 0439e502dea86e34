"""What the static checker works on: one object file as read, and which instruction came from where.

Sections and symbols are named by their table index in their own file. Instructions are counted in
8-byte slots from the start of their section (a ``ldimm64`` takes two). The field names follow <elf.h>.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from bpfchain.verify.result import Finding, Outcome
from bpfchain.verify.static.insns import SLOT, Insn, decode

__all__ = [
    "Added", "Alignment", "Body", "Function", "Obj", "Origin", "Other", "Relocation",
    "Section", "Symbol", "Unreadable", "differs", "undecided",
]  # fmt: skip

SHT_NULL, SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA = 0, 1, 2, 3, 4
SHT_NOTE, SHT_NOBITS, SHT_REL, SHT_GROUP = 7, 8, 9, 17
SHT_SYMTAB_SHNDX, SHT_LLVM_ADDRSIG = 18, 0x6FFF4C03
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
SHN_UNDEF, SHN_LORESERVE = 0, 0xFF00
STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2
STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION, STT_FILE = 0, 1, 2, 3, 4
R_BPF_64_64, R_BPF_64_ABS64, R_BPF_64_ABS32, R_BPF_64_NODYLD32, R_BPF_64_32 = 1, 2, 3, 4, 10


class Unreadable(Exception):  # noqa: N818 - it says what the file is
    """A file, or a part of it, that cannot be read as what it should be. The text says what."""


class Section(NamedTuple):
    """One section header and its content (empty for SHT_NOBITS, whose ``size`` still counts)."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs
    name: str
    type: int
    flags: int
    align: int
    entsize: int
    data: bytes
    size: int
    link: int
    info: int
    address: int = 0
    offset: int = 0
    """Where the content lies in the file: no loader looks, but two must not overlap."""

    @property
    def executable(self) -> bool:
        """Whether it holds instructions."""
        return self.type == SHT_PROGBITS and bool(self.flags & SHF_EXECINSTR)


class Symbol(NamedTuple):
    """One symbol. ``section`` is st_shndx: a section's index, 0 or one of the SHN_* specials."""

    index: int  # type: ignore[assignment]
    name: str
    section: int
    value: int
    size: int
    type: int
    binding: int
    other: int
    """st_other: the visibility."""

    @property
    def end(self) -> int:
        """Offset behind its last byte."""
        return self.value + self.size


class Relocation(NamedTuple):
    """One REL record: ``offset`` in bytes into the section it applies to, ``symbol`` an index."""

    offset: int
    symbol: int
    type: int


class Function(NamedTuple):
    """A FUNC symbol of an executable section, in slots: ``start`` to ``end`` (exclusive)."""

    name: str
    section: int
    start: int
    end: int
    symbol: int


@dataclass(frozen=True)
class Obj:
    """One ELF64 object as one reader saw it. Two readers of the same file give equal values."""

    order: str
    """``"<"`` or ``">"``."""
    header: tuple[tuple[str, int], ...]
    """The ELF header's fields that are no offsets or counts: e_type, e_flags, e_entry …"""
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]
    relocations: Mapping[int, tuple[Relocation, ...]] = field(default_factory=dict)
    """Section that they apply to -> its relocations, in file order."""
    reader: str = field(default="", compare=False)

    def named(self, name: str) -> Section | None:
        """The first section of that name."""
        return next((section for section in self.sections if section.name == name), None)

    @cached_property
    def executable(self) -> tuple[Section, ...]:
        """The sections that hold instructions."""
        return tuple(section for section in self.sections if section.executable)

    @cached_property
    def functions(self) -> Mapping[int, tuple[Function, ...]]:
        """Executable section -> its FUNC symbols in the order of their offsets."""
        found: dict[int, list[Function]] = {section.index: [] for section in self.executable}
        for symbol in self.symbols:
            if symbol.type == STT_FUNC and symbol.section in found:
                start, end = symbol.value // SLOT, symbol.end // SLOT
                function = Function(symbol.name, symbol.section, start, end, symbol.index)
                found[symbol.section].append(function)
        return {index: tuple(sorted(group, key=lambda f: f[2:4])) for index, group in found.items()}

    def function(self, name: str) -> Function | None:
        """The function of that name in any executable section; a global one before a local one."""
        found = [f for group in self.functions.values() for f in group if f.name == name]
        found.sort(key=lambda f: self.symbols[f.symbol].binding == STB_LOCAL)
        return found[0] if found else None

    def function_at(self, section: int, slot: int) -> str:
        """Name of the function that holds the slot; empty where none does."""
        for function in self.functions.get(section, ()):
            if function.start <= slot < function.end:
                return function.name
        return ""

    def relocation_at(self, section: int, slot: int) -> Relocation | None:
        """The relocation of the instruction in that slot; of several the first."""
        return self._by_slot.get(section, {}).get(slot)

    @cached_property
    def _by_slot(self) -> Mapping[int, Mapping[int, Relocation]]:
        return {
            section.index: {
                item.offset // SLOT: item
                for item in reversed(self.relocations.get(section.index, ()))
            }
            for section in self.executable
        }

    def insns(self, section: int) -> tuple[Insn, ...]:
        """All slots of an executable section, decoded once. Raises Unreadable."""
        known = self._insns.get(section)
        if known is None:
            found = self.sections[section]
            try:
                known = tuple(decode(found.data, self.order))
            except ValueError as error:
                raise Unreadable(f"section {found.name}: {error}") from None
            self._insns[section] = known
        return known

    @cached_property
    def _insns(self) -> dict[int, tuple[Insn, ...]]:
        return {}


class Body(NamedTuple):
    """An instruction of the patched program: as it was, or an exit that is now led to the added
    code. ``copy`` is the number of the entry (in the order of the states) that holds it; 0 where
    all share one."""

    section: int
    insn: int
    copy: int


class Other(NamedTuple):
    """An instruction of IN outside of the patched program."""

    section: int
    insn: int


class Added(NamedTuple):
    """An instruction that IN does not have. ``role`` is the aligner's word for it."""

    role: str
    copy: int = 0
    """The entry it belongs to."""


Origin = Body | Other | Added


@dataclass(frozen=True)
class Alignment:
    """For each slot of each executable section of OUT, where it came from (indexes are of IN).

    ``findings`` tell what could not be told apart or is not as it was; the mapping is then partial
    (a missing section, or a slot that is None).
    """

    origins: Mapping[int, tuple[Origin | None, ...]]
    findings: tuple[Finding, ...] = ()

    @cached_property
    def places(self) -> Mapping[tuple[int, int], tuple[tuple[int, int, int], ...]]:
        """(section, slot) of IN -> every (section, slot, copy) of OUT that holds it, by copy."""
        found: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        for section, origins in self.origins.items():
            for slot, origin in enumerate(origins):
                if isinstance(origin, Body):
                    found.setdefault((origin.section, origin.insn), []).append(
                        (section, slot, origin.copy)
                    )
                elif isinstance(origin, Other):
                    found.setdefault((origin.section, origin.insn), []).append((section, slot, 0))
        for group in found.values():
            if len(group) > 1:
                group.sort(key=lambda place: place[2])
        return {key: tuple(group) for key, group in found.items()}


def differs(rule: str, message: str, hint: str | None = None) -> Finding:
    """A finding that something is not as the patch should have left it."""
    return Finding(rule=rule, outcome=Outcome.NOT_EQUAL, message=message, hint=hint)


def undecided(rule: str, message: str, hint: str | None = None) -> Finding:
    """A finding that something could not be interpreted."""
    return Finding(rule=rule, outcome=Outcome.INCONCLUSIVE, message=message, hint=hint)

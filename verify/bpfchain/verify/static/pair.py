"""IN and OUT side by side: which section, symbol and instruction of one is which of the other.

Sections and symbols keep their order, so they are matched in order: what OUT skips is dropped, what
stands between is added. Each accounting module then asks here, and puts down what it finds.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from bpfchain.verify.result import Finding
from bpfchain.verify.static.btf import Btf
from bpfchain.verify.static.btf_ext import BtfExt
from bpfchain.verify.static.insns import SLOT
from bpfchain.verify.static.intent import Intent
from bpfchain.verify.static.model import (
    STB_LOCAL,
    STT_NOTYPE,
    STT_OBJECT,
    Alignment,
    Function,
    Obj,
    Section,
    Symbol,
    differs,
    undecided,
)

__all__ = ["LEGACY_MAPS", "Pair", "match_sections", "match_symbols"]

LEGACY_MAPS: Final = "maps"
"""The section of plain map definitions, which a patch may turn into ``.maps``."""


@dataclass
class Pair:
    """One link being checked. ``say`` and ``doubt`` collect findings, ``counted`` what was seen."""

    before: Obj
    after: Obj
    intent: Intent
    alignment: Alignment
    program: Function
    """The program in IN."""
    sections: dict[int, int]
    """Section of IN -> section of OUT, for those that stayed."""
    symbols: dict[int, int]
    btf: tuple[Btf | None, Btf | None] = (None, None)
    ext: tuple[BtfExt | None, BtfExt | None] = (None, None)
    findings: list[Finding] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)

    @cached_property
    def added_sections(self) -> list[Section]:
        """Sections of OUT that IN does not have."""
        known = set(self.sections.values())
        return [section for section in self.after.sections if section.index not in known]

    @cached_property
    def added_symbols(self) -> list[Symbol]:
        """Symbols of OUT that IN does not have."""
        known = set(self.symbols.values())
        return [symbol for symbol in self.after.symbols if symbol.index not in known]

    def say(self, rule: str, message: str, hint: str | None = None) -> None:
        """Something is not as the patch should have left it."""
        self.findings.append(differs(rule, message, hint))

    def doubt(self, rule: str, message: str, hint: str | None = None) -> None:
        """Something cannot be interpreted."""
        self.findings.append(undecided(rule, message, hint))

    @property
    def home(self) -> int:
        """The program's section in OUT."""
        return self.sections.get(self.program.section, 0)

    @property
    def text(self) -> int:
        """``.text`` in OUT, 0 where there is none."""
        found = self.after.named(".text")
        return found.index if found is not None else 0

    @property
    def shared(self) -> bool:
        """Whether the body stands once, as a function of its own that the entries call."""
        return self.intent.strategy == "subprog"

    def place(self, section: int, offset: int) -> tuple[int, int] | None:
        """Where a byte offset of IN is in OUT: the one monotone map that all names must follow.

        None where the alignment does not tell. An offset behind a section's last instruction stays
        behind it.
        """
        if not self.before.sections[section].executable:
            known = self.sections.get(section)
            return None if known is None else (known, offset)
        slot, rest = divmod(offset, SLOT)
        found = self.alignment.places.get((section, slot))
        if found:
            return found[0][0], found[0][1] * SLOT + rest
        if offset == len(self.before.sections[section].data):
            if offset == 0:
                known = self.sections.get(section)
                return None if known is None else (known, 0)
            found = self.alignment.places.get((section, slot - 1))
            if found:
                return found[0][0], (found[0][1] + 1) * SLOT
        return None

    def where(self, section: int, offset: int, *, of: Obj | None = None) -> str:
        """``xdp+12 of filter`` for a byte offset, of OUT unless told."""
        obj = of or self.after
        name = obj.sections[section].name
        if not obj.sections[section].executable:
            return f"{name} at byte {offset}"
        function = obj.function_at(section, offset // SLOT)
        return f"{name}+{offset // SLOT}" + (f" of {function}" if function else "")


def match_sections(before: Obj, after: Obj) -> dict[int, int]:
    """Section of IN -> section of OUT. Both keep their order; what is left over was added."""
    found: dict[int, int] = {}
    at = 0
    for section in before.sections:
        for other in after.sections[at:]:
            converted = section.name == LEGACY_MAPS and other.name == ".maps"
            if other.type == section.type and (other.name == section.name or converted):
                found[section.index] = other.index
                at = other.index + 1
                break
    return found


def match_symbols(before: Obj, after: Obj, sections: dict[int, int]) -> dict[int, int]:
    """Symbol of IN -> symbol of OUT: the same name, binding and kind, in the same order.

    Local symbols come first in a written table (gabi, "Symbol Table"), so both are taken in that
    order. Symbols of sections that are gone are left out.
    """
    found: dict[int, int] = {}
    ordered = _ordered(after)
    at = 0
    for symbol in _ordered(before):
        if 0 < symbol.section < len(before.sections) and symbol.section not in sections:
            continue
        for position in range(at, len(ordered)):
            if _same(symbol, ordered[position], before, after, sections):
                found[symbol.index] = ordered[position].index
                at = position + 1
                break
    return found


def _ordered(obj: Obj) -> list[Symbol]:
    return sorted(obj.symbols, key=lambda symbol: symbol.binding != STB_LOCAL)


def _same(symbol: Symbol, other: Symbol, before: Obj, after: Obj, sections: dict[int, int]) -> bool:
    if (symbol.name, symbol.binding, symbol.other) != (other.name, other.binding, other.other):
        return False
    if symbol.type != other.type:
        # a legacy map's symbol may have had no type
        legacy = 0 < symbol.section < len(before.sections) and (
            before.sections[symbol.section].name == LEGACY_MAPS
        )
        if not legacy or (symbol.type, other.type) != (STT_NOTYPE, STT_OBJECT):
            return False
    inside = 0 < symbol.section < len(before.sections)
    if not inside or not before.sections[symbol.section].executable:
        return sections.get(symbol.section, symbol.section) == other.section
    # code may move to another section of code
    return 0 < other.section < len(after.sections) and after.sections[other.section].executable

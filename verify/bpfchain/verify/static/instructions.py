"""The instruction half of the static check: facts of the body, the context's place, the added code."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from bpfchain.verify.result import Finding, Residue
from bpfchain.verify.static.added import Kept, check_entry, kept_by
from bpfchain.verify.static.align import Aligned
from bpfchain.verify.static.btf import Btf
from bpfchain.verify.static.btf_ext import CORE, BtfExt
from bpfchain.verify.static.facts import Facts, analyse
from bpfchain.verify.static.insns import SLOT
from bpfchain.verify.static.intent import Intent
from bpfchain.verify.static.model import Obj
from bpfchain.verify.static.reach import check_slots
from bpfchain.verify.static.residue import map_sizes, residue_of
from bpfchain.verify.static.values import CONTEXT, Value

__all__ = ["CodeResult", "check_instructions"]


class CodeResult(NamedTuple):
    """What was found; ``counted``: entries, paths into added code that were proved."""

    findings: tuple[Finding, ...] = ()
    residue: tuple[Residue, ...] = ()
    counted: Mapping[str, int] = MappingProxyType({})


def check_instructions(
    before: Obj,
    after: Obj,
    intent: Intent,
    aligned: Aligned,
    *,
    btf: Btf | None = None,
    ext: BtfExt | None = None,
) -> CodeResult:
    """Prove every entry that was aligned. ``btf`` and ``ext`` are IN's.

    Where the alignment has findings of its own the proof goes on as far as it can. May raise
    Unreadable.
    """
    program = aligned.program
    if program is None:
        return CodeResult()
    adjusted = _adjusted(before, ext)
    sizes = map_sizes(before, btf)
    known: dict[Kept, Facts] = {}

    def facts_for(kept: Kept) -> Facts:
        if kept not in known:
            registers: dict[int, Value] = dict.fromkeys(kept.registers, CONTEXT)
            cells: dict[int, Value] = dict.fromkeys(kept.cells, CONTEXT)
            # what is read unwritten is the same whatever is kept: ask once
            budget = 0 if known else 8_000
            known[kept] = analyse(
                before, program, kept=registers, cells=cells, adjusted=adjusted, sizes=sizes,
                budget=budget,
            )  # fmt: skip
        return known[kept]

    findings: list[Finding] = []
    ways = 0
    for entry in aligned.entries:
        if not entry.length:
            continue
        kept = Kept()
        if entry.inline and entry.body > entry.start:
            kept, problems = kept_by(after, entry, intent)
            findings += problems
        facts = facts_for(kept)
        findings += check_slots(before, program, after, entry, kept.cells, facts)
        problems, count = check_entry(after, aligned, entry, intent, facts)
        findings += problems
        ways += count
    first = next(iter(known.values()), None)
    residue = residue_of(before, first) if first is not None else ()
    counted = {"entries": len(aligned.entries), "paths proved": ways}
    return CodeResult(tuple(findings), residue, counted)


def _adjusted(obj: Obj, ext: BtfExt | None) -> Mapping[int, frozenset[int]]:
    """Executable section -> slots that CO-RE relocations change when the object is loaded."""
    if ext is None:
        return {}
    return {
        section.index: frozenset(record[0] // SLOT for record in ext.of(CORE, section.name))
        for section in obj.executable
    }

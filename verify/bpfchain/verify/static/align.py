"""Which instruction of OUT is which of IN: established from both files, not from what OUT says of itself.

Every instruction of IN must be found again, unchanged against its function: the patched program's in
each of its entries (an ``exit`` may have become a jump of the same size into added code), all others
where the growth of their section has moved them. Calls and function addresses must lead to the image
of what they led to. What is left over in OUT is ``Added``, and proved elsewhere (``added``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from bpfchain.verify.result import Finding, Outcome, Place
from bpfchain.verify.static.insns import (
    CALL,
    CALL_FUNCTION,
    EXIT,
    JA,
    JA32,
    LDDW,
    LDDW_FUNCTION,
    Insn,
    begins,
    is_branch,
    is_ja,
    target,
    text_of,
)
from bpfchain.verify.static.intent import Intent
from bpfchain.verify.static.model import Added, Alignment, Body, Function, Obj, Origin, Other

__all__ = ["Aligned", "Entry", "align", "code_target", "finding_at"]

_MOST_FRONT = 8
"""Added instructions in front of a body that are tried; the patch adds none or one."""
_MOST_FINDINGS = 12


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry program of the link in OUT. Slots count from the section's start in OUT."""

    copy: int
    name: str
    state: int | None
    """The saved code in which it runs, None for none."""
    section: int
    start: int
    end: int
    body_section: int
    """Where its body lies: the same section (inline), or ``.text`` (subprog)."""
    body: int
    length: int
    """Slots of the body."""
    exits: tuple[int, ...] = ()
    """Slots of the body, counted in it, where an ``exit`` of IN is now a jump to added code."""

    @property
    def inline(self) -> bool:
        """Whether the body lies inside of the entry."""
        return self.body_section == self.section


class Aligned(NamedTuple):
    """What ``align`` found: the origins for all, the link's entries, the program in IN."""

    alignment: Alignment
    program: Function | None = None
    entries: tuple[Entry, ...] = ()


def finding_at(
    obj: Obj, section: int, slot: int, rule: str, message: str, *,
    file: str = "out", outcome: Outcome = Outcome.NOT_EQUAL, hint: str | None = None,
) -> Finding:  # fmt: skip
    """A finding with its place."""
    place = Place(file, obj.sections[section].name, slot, obj.function_at(section, slot))
    return Finding(rule=rule, outcome=outcome, message=message, place=place, hint=hint)


def align(original: Obj, patched: Obj, intent: Intent) -> Aligned:
    """Align the two objects. What does not fit is in the findings; the rest is still aligned."""
    work = _Work(original, patched, intent)
    entries = work.run()
    alignment = Alignment(
        {section: tuple(slots) for section, slots in work.origins.items()}, tuple(work.findings)
    )
    return Aligned(alignment, work.program, tuple(entries))


class _Work:
    """One alignment under way."""

    def __init__(self, original: Obj, patched: Obj, intent: Intent) -> None:
        self.inn, self.out, self.intent = original, patched, intent
        self.findings: list[Finding] = []
        self.origins: dict[int, list[Origin | None]] = {}
        self.program = next(
            (
                f for section in original.executable if section.name != ".text"
                for f in original.functions[section.index] if f.name == intent.program
            ),
            None,
        )  # fmt: skip
        self.sections = _pair_sections(original, patched)
        self.growth = 0

    def run(self) -> list[Entry]:
        """Align section by section; the entries last."""
        program = self.program
        if program is None:
            self._lost(f"IN holds no program {self.intent.program}")
            return []
        entries: list[Entry] = []
        for section in self.inn.executable:
            partner = self.sections.get(section.index)
            if partner is None:
                if section.data:
                    self._lost(f"section {section.name} of IN is missing")
                continue
            self.origins[partner] = [None] * (len(self.out.sections[partner].data) // 8)
        if program.section in self.sections:
            partner = self.sections[program.section]
            size_in = len(self.inn.sections[program.section].data) // 8
            self.growth = len(self.origins[partner]) - size_in
            if program.end + self.growth <= program.start:
                self._lost(f"section {self.out.sections[partner].name} has no place for the entry")
                return []
            entries = self._entries(program, partner)
        for section in self.inn.executable:
            if section.index in self.sections:
                self._others(section.index)
        for section in self.out.executable:
            if section.index not in self.origins and section.data:
                self._leftover(section.index, 0, len(section.data) // 8, "a section that IN lacks")
        for index, slots in self.origins.items():
            for slot, origin in enumerate(slots):
                if origin is None and len(self.findings) < _MOST_FINDINGS:
                    self._leftover(
                        index, slot, slot + 1, "an instruction that nothing accounts for"
                    )
        return entries

    # the patched program

    def _entries(self, program: Function, section: int) -> list[Entry]:
        """Find the entries by their symbols: they must tile the program's old place, grown."""
        at = program.start
        entries: list[Entry] = []
        limit = program.end + self.growth
        for number, (state, name) in enumerate(self.intent.entries.items()):
            found = [f for f in self.out.functions.get(section, ()) if f.name == name]
            if len(found) != 1 or found[0].start != at or not at < found[0].end <= limit:
                self._report(
                    section, at, "entry", f"the entry {name} does not begin here or has no end"
                )
                return entries
            entry = self._entry(program, number, found[0], state)
            entries.append(entry)
            at = found[0].end
        if at != limit:
            self._leftover(section, at, limit, "instructions behind the last entry")
        return entries

    def _entry(self, program: Function, copy: int, found: Function, state: int | None) -> Entry:
        length = program.end - program.start
        inline = self.intent.strategy != "subprog"
        section, start = (found.section, found.start) if inline else self._moved_body()
        entry = Entry(copy, found.name, state, found.section, found.start, found.end, section,
                      start, length)  # fmt: skip
        slots = self.origins[found.section]
        if not inline:
            slots[found.start : found.end] = [Added("wrapper", copy)] * (found.end - found.start)
            if copy == 0 and section >= 0:
                self._body(program, entry)
            return entry
        room = found.end - found.start - length
        if room < 0:
            self._report(found.section, found.start, "body", f"{found.name} is shorter than in IN")
            return replace(entry, length=0)
        front = self._front(program, found, room)
        body = found.start + front
        slots[found.start : body] = [Added("preamble", copy)] * front
        slots[body + length : found.end] = [Added("epilogue", copy)] * (room - front)
        return self._body(program, replace(entry, body=body))

    def _moved_body(self) -> tuple[int, int]:
        """Where strategy subprog put the body: at the end of ``.text``."""
        text = self.out.named(".text")
        if text is None:
            self._lost("the program's body is nowhere: there is no section .text")
            return -1, 0
        before = self.inn.named(".text")
        start = len(before.data) // 8 if before is not None else 0
        if text.index not in self.origins:
            self.origins[text.index] = [None] * (len(text.data) // 8)
        return text.index, start

    def _front(self, program: Function, found: Function, room: int) -> int:
        """How many added instructions lie before the body: where it fits best."""
        before = self.inn.insns(program.section)[program.start : program.end]
        after = self.out.insns(found.section)
        best = (len(before) + 1, 0)
        tries = dict.fromkeys((min(self.intent.front, room), *range(min(room, _MOST_FRONT) + 1)))
        for front in tries:
            at = found.start + front
            candidates = after[at : at + len(before)]
            wrong = sum(
                a != b and not (a.code == EXIT and is_ja(b))
                for a, b in zip(before, candidates, strict=True)
            )
            best = min(best, (wrong, front))
            if wrong == 0:
                break
        return best[1]

    def _body(self, program: Function, entry: Entry) -> Entry:
        """Compare one copy of the body; the exits that became jumps are noted."""
        before, after = self.inn.insns(program.section), self.out.insns(entry.body_section)
        slots = self.origins[entry.body_section]
        starts = begins(after[entry.start : entry.end]) if entry.inline else []
        insides = begins(before[program.start : program.end])
        exits: list[int] = []
        for slot in range(entry.length):
            at, here = program.start + slot, entry.body + slot
            if here >= len(after):
                self._report(entry.body_section, here - 1, "body", "the body is cut off")
                break
            slots[here] = Body(program.section, at, entry.copy)
            insn, now = before[at], after[here]
            if not insides[slot]:
                if insn != now and not self._addend_moves(program.section, at - 1):
                    self._changed(entry.body_section, here, insn, now)
                continue
            if insn.code == EXIT and is_ja(now) and entry.inline:
                if self._exit(entry, here, now, starts):
                    exits.append(slot)
                continue
            self._same(program.section, at, entry.body_section, here)
            if is_branch(insn):
                goal = target(insn, slot)
                if not 0 <= goal < entry.length or not insides[goal]:
                    self._report(
                        entry.body_section, here, "jump",
                        f"the program's jump leads out of it, to its instruction {goal}",
                    )  # fmt: skip
        return replace(entry, exits=tuple(exits))

    def _exit(self, entry: Entry, here: int, now: Insn, starts: list[bool]) -> bool:
        """Whether this jump, where an exit was, leads to added code of the same entry."""
        goal = target(now, here)
        plain = now in (Insn(JA, 0, 0, now.off, 0), Insn(JA32, 0, 0, 0, now.imm))
        behind = entry.body + entry.length
        if plain and behind <= goal < entry.end and starts[goal - entry.start]:
            return True
        self._report(
            entry.section, here, "exit-target",
            f"{text_of(now)} stands for an exit and does not lead to the added code behind the body",
        )  # fmt: skip
        return False

    # everything else

    def _others(self, section: int) -> None:
        """Instructions outside of the patched program: unchanged, moved by the growth before them."""
        assert self.program is not None
        partner = self.sections[section]
        slots = self.origins[partner]
        count = len(self.inn.sections[section].data) // 8
        spans = [(0, count, 0)]
        if section == self.program.section:
            spans = [(0, self.program.start, 0), (self.program.end, count, self.growth)]
        elif len(slots) < count:
            self._lost(f"section {self.inn.sections[section].name} is smaller than in IN")
            return
        insns = self.inn.insns(section)
        second = False
        for low, high, shift in spans:
            for at in range(low, high):
                slots[at + shift] = Other(section, at)
                if second:
                    second = False
                    now = self.out.insns(partner)[at + shift]
                    if insns[at] != now and not self._addend_moves(section, at - 1):
                        self._changed(partner, at + shift, insns[at], now)
                    continue
                self._same(section, at, partner, at + shift)
                second = insns[at].code == LDDW

    def _same(self, section: int, at: int, partner: int, here: int) -> None:
        """An instruction that must do in OUT what it did in IN."""
        insn, now = self.inn.insns(section)[at], self.out.insns(partner)[here]
        before = self.inn.relocation_at(section, at)
        after = self.out.relocation_at(partner, here)
        if (before is None) != (after is None):
            what = (
                "lost its relocation" if after is None else "has a relocation that IN does not have"
            )
            self._report(partner, here, "relocation", f"{text_of(now)} {what}")
            return
        if before is None and not (insn.code == CALL and insn.src == CALL_FUNCTION):
            if insn != now:
                self._changed(partner, here, insn, now)
            return
        if insn[:4] != now[:4]:
            self._changed(partner, here, insn, now)
            return
        goal, new = code_target(self.inn, section, at), code_target(self.out, partner, here)
        if goal is None or new is None:
            # no reference to code; the relocation's symbol is accounted for with the relocations
            if insn != now or (goal is None) != (new is None):
                self._changed(partner, here, insn, now)
            return
        if self._image(*goal) != new:
            what = "call" if insn.code == CALL else "function address"
            self._report(
                partner, here, "call-target",
                f"the {what} led to {_where(self.inn, *goal)} and now leads to {_where(self.out, *new)}",
            )  # fmt: skip

    def _addend_moves(self, section: int, at: int) -> bool:
        """Whether the ``lddw`` at this slot of IN holds an offset of code, in both its halves."""
        return code_target(self.inn, section, at) is not None

    def _image(self, section: int, offset: int) -> tuple[int, int] | None:
        """Where a byte offset of an executable section of IN is in OUT."""
        partner = self.sections.get(section)
        if partner is None or self.program is None:
            return None
        if section == self.program.section and offset >= self.program.end * 8:
            offset += self.growth * 8
        elif section == self.program.section and offset > self.program.start * 8:
            return None  # into the middle of the patched program: nothing may lead there
        return partner, offset

    def _changed(self, section: int, slot: int, before: Insn, now: Insn) -> None:
        was, is_now = text_of(before), text_of(now)
        if was == is_now:
            was, is_now = str(tuple(before)), str(tuple(now))
        if before.code == EXIT and is_ja(now):
            self._report(
                section, slot, "exit-target", f"an exit became {is_now} in another function"
            )
        else:
            self._report(section, slot, "instruction", f"was {was} in IN, is {is_now}")

    def _leftover(self, section: int, low: int, high: int, what: str) -> None:
        slots = self.origins.setdefault(
            section, [None] * (len(self.out.sections[section].data) // 8)
        )
        slots[low:high] = [Added("unknown")] * (high - low)
        self._report(section, low, "added", f"{what} ({high - low} slots)")

    def _report(self, section: int, slot: int, rule: str, message: str) -> None:
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append(finding_at(self.out, section, slot, rule, message))

    def _lost(self, message: str) -> None:
        self.findings.append(Finding(rule="section", outcome=Outcome.NOT_EQUAL, message=message))


def _pair_sections(original: Obj, patched: Obj) -> dict[int, int]:
    """Executable sections of IN and of OUT by name, those of equal names in their order."""
    pairs: dict[int, int] = {}
    for section in original.executable:
        before = [s.index for s in original.executable if s.name == section.name]
        after = [s.index for s in patched.executable if s.name == section.name]
        number = before.index(section.index)
        if number < len(after):
            pairs[section.index] = after[number]
    return pairs


def code_target(obj: Obj, section: int, slot: int) -> tuple[int, int] | None:
    """The (section, byte offset) of code to which a call or a ``lddw`` refers; None for anything
    else, calls to what the object does not define included."""
    insns = obj.insns(section)
    if not 0 <= slot < len(insns):
        return None
    insn = insns[slot]
    item = obj.relocation_at(section, slot)
    executable = {s.index for s in obj.executable}
    if insn.code == CALL:
        if item is None:
            return (section, (slot + 1 + insn.imm) * 8) if insn.src == CALL_FUNCTION else None
        symbol = obj.symbols[item.symbol]
        in_code = symbol.section in executable
        return (symbol.section, symbol.value + (insn.imm + 1) * 8) if in_code else None
    if insn.code == LDDW and item is not None:
        symbol = obj.symbols[item.symbol]
        in_code = symbol.section in executable
        return (symbol.section, symbol.value + insn.imm) if in_code else None
    if insn.code == LDDW and insn.src == LDDW_FUNCTION:
        return section, (slot + 1 + insn.imm) * 8
    return None


def _where(obj: Obj, section: int, offset: int) -> str:
    name = obj.function_at(section, offset // 8)
    return f"{obj.sections[section].name}+{offset // 8}{f' ({name})' if name else ''}"

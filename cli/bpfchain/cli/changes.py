"""What a patch added to an object and what it replaced: the patched program beside the original.

The original is not needed: the provenance tells where the body lies, and what jumps from the body to
the code behind it was an ``exit``. With the original at hand the two are compared instruction by
instruction as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

from bpfchain.transform import isa
from bpfchain.transform.btf_ext import LINE_INFO
from bpfchain.transform.disasm import render
from bpfchain.transform.elf import Object
from bpfchain.transform.emit import JEQ, JNE, MOV64_IMM, MOV64_REG
from bpfchain.transform.errors import RefusedError
from bpfchain.transform.inline import END_LINE, KEEP_LINE
from bpfchain.transform.link import Link
from bpfchain.transform.program import Code, Function, code_of, programs_of
from bpfchain.transform.provenance import Provenance
from bpfchain.transform.subject import read_types

__all__ = ["Change", "EntryView", "ObjectView", "Side", "entry_view"]

_EQUALITY = {op & ~7 | klass for op in (JEQ, JNE) for klass in (isa.JMP, isa.JMP32)}
CONTEXT = 1
"""Unchanged instructions shown on either side of a change inside the body."""


@dataclass(frozen=True, slots=True)
class Side:
    """An instruction: its slot and text."""

    slot: int
    text: str


@dataclass(frozen=True, slots=True)
class Change:
    """One row: ``mark`` is ``+`` added, ``~`` changed, a space for what is shown around it, and
    ``…`` for what is left out. ``source`` is the line of the program's source it stands for."""

    mark: str
    original: Side | None = None
    patched: Side | None = None
    note: str | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class EntryView:
    """One entry program."""

    name: str
    state: int | None
    slot: int
    instructions: int
    added: int
    body: str | None
    """The function that holds the body, with strategy subprog."""
    rows: tuple[Change, ...]


class ObjectView:
    """An object with what is asked of it again and again: functions, types, source lines."""

    def __init__(self, obj: Object) -> None:
        self.obj = obj
        self.btf, self.ext = read_types(obj)
        self.programs = {function.name: function for function in programs_of(obj)}

    def code(self, function: Function) -> Code:
        """The function's instructions."""
        return code_of(self.obj, function, self.btf, self.ext)

    def lines(self, function: Function) -> dict[int, str]:
        """``file:line: text`` by the slot at which the line begins; added code has only text."""
        if self.btf is None or self.ext is None:
            return {}
        found = {}
        fields = Struct(self.obj.order + "III")
        names = self.btf.offsets_of(function.section.name)
        for record in self.ext.parts[LINE_INFO].of(names):
            if function.symbol.value <= record.offset < function.symbol.end:
                file, line, column = fields.unpack_from(record.rest)
                text = self.btf.name(line).strip()
                slot = (record.offset - function.symbol.value) // isa.INSN_SIZE
                path = self.btf.name(file).rsplit("/", 1)[-1]
                added = text in (KEEP_LINE, END_LINE)
                found[slot] = text if added else f"{path}:{column >> 10}: {text}".rstrip(": ")
        return found

    def texts(self, function: Function, code: Code) -> list[str | None]:
        """Each slot as text; None for the second half of a wide instruction."""
        begins = isa.starts(code.insns)
        result: list[str | None] = []
        for slot, insn in enumerate(code.insns):
            if not begins[slot]:
                result.append(None)
                continue
            following = code.insns[slot + 1] if insn.wide else None
            address = slot if insn.is_jump else None
            symbol = self._symbol(code, slot)
            result.append(render(insn, following, symbol=symbol, address=address))
        return result

    def _symbol(self, code: Code, slot: int) -> str | None:
        """What a relocation names, as it is to be read."""
        item = code.relocations.get(slot)
        if item is None:
            return None
        symbol, insn = self.obj.symbol_by_id[item.symbol], code.insns[slot]
        if symbol.place is None:
            return symbol.name
        section = self.obj.by_id[symbol.place]
        if section.name in (".maps", "maps"):
            return f"map[{symbol.name}]"
        if insn.opcode == isa.CALL or section.executable:
            at = symbol.value + ((insn.imm + 1) * isa.INSN_SIZE if insn.is_call else insn.imm)
            known = (f.name for f in self.obj.functions(symbol.place) if f.value == at)
            return next(known, f"{section.name}+{at}")
        return f"{symbol.name}{insn.imm:+d}" if insn.imm else symbol.name


def entry_view(
    view: ObjectView, entry: Provenance, state: int | None, name: str, original: ObjectView | None
) -> EntryView:
    """One entry program of a link, beside the original. Raises RefusedError where it is missing."""
    function = view.programs.get(name)
    if function is None:
        raise RefusedError(f"there is no program {name}, which section .bpfchain names")
    code = view.code(function)
    link = entry.link
    slot = link.hook.slot(state, link.index)
    size = len(code.insns)
    if entry.strategy == "none":
        return EntryView(name, state, slot, size, 0, None, ())
    texts = view.texts(function, code)
    notes = _notes(link, code)
    if entry.strategy == "subprog":
        rows = tuple(
            Change("+", None, Side(at, text), notes.get(at))
            for at, text in enumerate(texts)
            if text
        )
        callee = next(
            (view._symbol(code, at) for at, i in enumerate(code.insns) if i.is_call), None
        )
        return EntryView(name, state, slot, size, size, callee, rows)
    place = entry.front, entry.front + entry.body
    if not 0 <= place[0] < place[1] <= size:
        raise RefusedError(f"program {name} is not as long as section .bpfchain says")
    if original is not None:
        place = _body_by_comparison(code, original, entry.program)
    rows = tuple(_rows(view, function, code, texts, notes, place))
    return EntryView(name, state, slot, size, size - (place[1] - place[0]), None, rows)


def _body_by_comparison(code: Code, original: ObjectView, name: str) -> tuple[int, int]:
    function = original.programs.get(name)
    if function is None:
        raise RefusedError(f"the original has no program {name}")
    body = original.code(function).insns
    for start in (0, 1):
        part = code.insns[start : start + len(body)]
        if len(part) == len(body) and all(map(_same, part, body)):
            return start, start + len(body)
    raise RefusedError(f"program {name} is not the original's with code in front of and behind it")


def _same(patched: isa.Insn, original: isa.Insn) -> bool:
    """Whether one can have become the other: exits become jumps, addends follow what moved."""
    if original.opcode == isa.EXIT:
        return patched.opcode in (isa.EXIT, isa.JA)
    return patched == original or (
        patched.opcode in (isa.CALL, isa.LDDW)
        and patched._replace(imm=0) == original._replace(imm=0)
    )


def _rows(
    view: ObjectView, function: Function, code: Code, texts: list[str | None],
    notes: dict[int, str], place: tuple[int, int],
) -> Iterator[Change]:  # fmt: skip
    start, end = place
    for at in range(start):
        yield Change("+", None, Side(at, texts[at] or ""), "keep the context")
    changed = {
        at
        for at in range(start, end)
        if code.insns[at].opcode == isa.JA and code.insns[at].target(at) >= end
    }
    begins = [at for at in range(start, end) if texts[at] is not None]
    shown = set(changed)
    for number, at in enumerate(begins):
        if at in changed:
            shown.update(begins[max(0, number - CONTEXT) : number + CONTEXT + 1])
    lines = {at: text for at, text in view.lines(function).items() if start <= at < end}
    before, said = -1, None
    for number, at in enumerate(begins):
        if at not in shown:
            continue
        if before != number - 1:
            yield Change("…")
        before = number
        line = next((lines[s] for s in sorted(lines, reverse=True) if s <= at), None)
        source, said = (line if line != said else None), line
        text = texts[at] or ""
        if at in changed:
            yield Change("~", Side(at - start, "exit"), Side(at, text), None, source)
        else:
            yield Change(" ", Side(at - start, _moved(text, start)), Side(at, text), None, source)
    if changed and before != len(begins) - 1:
        yield Change("…")
    for at in range(end, len(texts)):
        if texts[at] is not None:
            yield Change("+", None, Side(at, texts[at] or ""), notes.get(at))


def _moved(text: str, by: int) -> str:
    """The text of a jump as it stood in the original: its target's slot is lower there."""
    head, arrow, target = text.rpartition(" -> ")
    return f"{head} -> {int(target) - by}" if arrow else text


def _notes(link: Link, code: Code) -> dict[int, str]:
    """What the numbers in added code mean: codes, slots, where the tail call leads."""
    notes = {}
    hook = link.hook
    coded = set(hook.names.values())
    for at, insn in enumerate(code.insns):
        if insn.is_call and insn.src == 0 and insn.imm == isa.TAIL_CALL:
            notes[at] = f"go on to link {link.index + 1}"
            key = code.insns[at - 1]
            if link.mode == "slots" and key.opcode == MOV64_IMM and key.dst == 3:
                notes[at - 1] = _slot_note(link, key.imm)
        elif insn.opcode == MOV64_IMM and insn.dst == 0 and insn.imm in coded:
            notes[at] = _code_name(link, insn.imm)
        elif insn.opcode == isa.EXIT and not (at and _sets_code(code.insns[at - 1])):
            notes[at] = "the chain ends here"
        elif insn.imm in coded and insn.opcode in _EQUALITY:
            notes[at] = _code_name(link, insn.imm)
    return {at: note for at, note in notes.items() if note}


def _sets_code(insn: isa.Insn) -> bool:
    return insn.dst == 0 and insn.opcode in (MOV64_IMM, MOV64_REG)


def _slot_note(link: Link, slot: int) -> str:
    state_number, index = divmod(slot, link.hook.slots // link.hook.states)
    if state_number == 0:
        return f"slot of link {index}, nothing saved"
    saved = next((c.name for c in link.hook.codes if c.state == state_number), "?")
    return f"slot of link {index}, {saved} saved"


def _code_name(link: Link, code: int) -> str:
    name = link.hook.name_of(code)
    return name if name != str(code) else ""

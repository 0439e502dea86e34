"""Accounting of .BTF.ext: every record of IN stands in OUT at each copy of its instruction, with the
same content; added are the func_info of added functions and line records of added code.

What loaders and the kernel want of the whole (research, loaders-and-verifier.md): a header of 32 bytes,
one block a section, records in order, a line record at the start of each function.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Final

from bpfchain.verify.static import btf as b
from bpfchain.verify.static.btf import Btf
from bpfchain.verify.static.btf_ext import CORE, FUNC, LINE, NAMES, SIZES, BtfExt
from bpfchain.verify.static.insns import CALL, CALL_FUNCTION, LDDW, SLOT
from bpfchain.verify.static.model import Added, Obj
from bpfchain.verify.static.pair import Pair
from bpfchain.verify.static.types import clone_of

__all__ = ["check_records"]

_RULES: Final = ("func-info", "line-info", "core-relo")
_FILE, _LINE = "bpfchain", "bpfchain: "
"""What line info says of added code."""
Told = tuple[object, ...]
"""A record behind its offset, with strings in the place of their offsets."""


def check_records(pair: Pair) -> None:
    """Every rule of this module."""
    was, now = pair.ext
    if was is None or now is None:
        if now is not None:
            pair.say("btf-ext", "section .BTF.ext is added")
        elif was is not None:
            pair.say("btf-ext", "section .BTF.ext is missing, or has no .BTF")
        return
    before, after = pair.before.named(".BTF.ext"), pair.after.named(".BTF.ext")
    assert before is not None
    assert after is not None
    _form(pair, was, now, same=before.data == after.data)
    names = _names(pair)
    for number in (FUNC, LINE, CORE):
        _part(pair, number, was, now, names)


def _form(pair: Pair, was: BtfExt, now: BtfExt, *, same: bool) -> None:
    """The header and the blocks, as every loader reads them."""
    if was.flags != now.flags:
        pair.say("btf-ext", f"section .BTF.ext: flags {was.flags} became {now.flags}")
    if same:
        return
    if now.header_size != 32:
        pair.say("btf-ext", f"section .BTF.ext: a header of {now.header_size} bytes, should be 32")
    for number in (FUNC, LINE, CORE):
        old, new = was.parts[number], now.parts[number]
        if new.record_size not in (0, old.record_size or SIZES[number]):
            pair.say(
                _RULES[number],
                f"{NAMES[number]}: records of {old.record_size} bytes became {new.record_size}",
            )
        blocks = Counter(block.section for block in new.blocks)
        before = Counter(block.section for block in old.blocks)
        for section, count in blocks.items():
            if count > max(1, before[section]):
                pair.say(_RULES[number], f"{NAMES[number]}: {count} blocks for section {section}")
        if any(not block.records for block in new.blocks):
            pair.say(_RULES[number], f"{NAMES[number]}: a block without records")
        if new.record_size and not new.blocks and old.blocks:
            pair.say(_RULES[number], f"{NAMES[number]}: a record size and no records")


def _names(pair: Pair) -> dict[str, tuple[int, int]]:
    """Section name -> its index in IN (0: none) and OUT, for sections of code."""
    found: dict[str, tuple[int, int]] = {}
    for obj in (pair.before, pair.after):
        names = Counter(section.name for section in obj.executable)
        for name, count in names.items():
            if count > 1:
                pair.doubt("btf-ext", f"{count} sections of code are named {name}")
    for section in pair.after.executable:
        before = [s.index for s in pair.before.executable if s.name == section.name]
        found[section.name] = (before[0] if before else 0, section.index)
    return found


def _part(
    pair: Pair, number: int, was: BtfExt, now: BtfExt, names: dict[str, tuple[int, int]]
) -> None:
    old, new = pair.btf
    assert old is not None
    assert new is not None
    wanted: dict[str, Counter[tuple[int, Told]]] = {}
    for block in was.parts[number].blocks:
        before = names.get(block.section, (0, 0))[0]
        pair.counted["records"] += len(block.records)
        for record in block.records:
            told = _told(old, number, record)
            if not before:  # of a section that is not there: nothing can have moved
                wanted.setdefault(block.section, Counter())[record[0], told] += 1
                continue
            for index, offset in _places(pair, number, before, record[0], block.section):
                section = pair.after.sections[index].name
                wanted.setdefault(section, Counter())[offset, told] += 1
    if number == FUNC and was.parts[FUNC].record_size:
        _wanted_functions(pair, was, wanted)
    there: dict[str, Counter[tuple[int, Told]]] = {}
    for block in now.parts[number].blocks:
        counter = there.setdefault(block.section, Counter())
        for record in block.records:
            counter[record[0], _told(new, number, record)] += 1
        if block.section in names:
            _sorted(pair, number, names[block.section][1], block.section, (was, now))
    has_lines = _has_line(pair, was)
    for section in sorted(wanted.keys() | there.keys()):
        missing = wanted.get(section, Counter()) - there.get(section, Counter())
        extra = there.get(section, Counter()) - wanted.get(section, Counter())
        for offset, told in missing:
            at = _where(pair, names, section, offset)
            other = [t for o, t in extra if o == offset]
            is_now = f", and there is {_text(other[0])}" if other else ""
            pair.say(_RULES[number], f"{NAMES[number]}: {_text(told)} should be at {at}{is_now}")
        for offset, told in extra:
            if number == LINE and has_lines and _ours(pair, names, section, offset, told):
                pair.counted["records added"] += 1
                continue
            at = _where(pair, names, section, offset)
            pair.say(_RULES[number], f"{NAMES[number]}: {_text(told)} at {at} is not of IN")
    if number == LINE:
        _starts(pair, was, now, names)


def _told(btf: Btf, number: int, record: tuple[int, ...]) -> Told:
    rest = record[1:]
    if number == LINE and len(rest) >= 3:
        return (btf.text(rest[0]), btf.text(rest[1]), *rest[2:])
    if number == CORE and len(rest) >= 3:
        return (rest[0], btf.text(rest[1]), *rest[2:])
    return rest


def _places(pair: Pair, number: int, section: int, offset: int, name: str) -> list[tuple[int, int]]:
    """Where a record of IN must stand in OUT: at every copy of its instruction."""
    program = pair.program
    if number == FUNC and (section, offset) == (program.section, program.start * SLOT):
        return [(pair.home, offset)]  # an entry keeps the program's own, see _wanted_functions
    slot, rest = divmod(offset, SLOT)
    found = pair.alignment.places.get((section, slot), ())
    if not found:
        pair.say(_RULES[number], f"{NAMES[number]}: nothing is left of IN's {name}+{slot}")
    if number == FUNC:
        found = found[:1]
    return [(index, at * SLOT + rest) for index, at, _ in found]


def _wanted_functions(
    pair: Pair, was: BtfExt, wanted: dict[str, Counter[tuple[int, Told]]]
) -> None:
    """func_info of the entries for further states and of the body where it moved."""
    _, new = pair.btf
    assert new is not None
    old = pair.btf[0]
    first = len(old.types) if old is not None else 1
    program = pair.program
    home = pair.before.sections[program.section].name
    record = next((r for r in was.of(FUNC, home) if r[0] == program.start * SLOT), None)
    if record is None:
        return
    functions = {s.name: s for s in pair.added_symbols}
    names: list[tuple[str, int | None]] = [
        (name, None) for name in list(pair.intent.entries.values())[1:]
    ]
    if pair.shared:
        names.append((pair.intent.body_name, b.STATIC))
    for name, linkage in names:
        symbol = functions.get(name)
        if symbol is None:
            continue  # said where symbols are
        clone = clone_of(new, record[1], name, linkage, first)
        if clone is None:
            pair.say("func-info", f"BTF has no FUNC {name} like {new.name_of(record[1])}")
            continue
        section = pair.after.sections[symbol.section].name
        key = (symbol.value, (clone, *(0 for _ in record[2:])))
        wanted.setdefault(section, Counter())[key] += 1
        pair.counted["records added"] += 1


def _sorted(pair: Pair, number: int, section: int, name: str, both: tuple[BtfExt, BtfExt]) -> None:
    """Records stand in order, on instructions, no two of a kind on one (CO-RE: any number)."""
    before, offsets = ([record[0] for record in one.of(number, name)] for one in both)
    insns = pair.after.insns(section)
    for a, c in pairwise(offsets):
        if c < a or (c == a and number != CORE):
            if before == offsets:
                break  # as the compiler left it
            pair.say(_RULES[number], f"{NAMES[number]}: records of {name} are not in order at {c}")
            break
    for offset in offsets:
        slot, rest = divmod(offset, SLOT)
        inside = slot < len(insns) and not rest
        second = inside and slot > 0 and insns[slot].code == 0 and insns[slot - 1].code == LDDW
        if not inside or (second and number == LINE):
            pair.say(_RULES[number], f"{NAMES[number]}: {name} byte {offset} is no instruction")
            return


def _has_line(pair: Pair, was: BtfExt) -> bool:
    """Whether the program has line info, so that its added code must have it too."""
    program = pair.program
    home = pair.before.sections[program.section].name
    return any(record[0] == program.start * SLOT for record in was.of(LINE, home))


def _ours(
    pair: Pair, names: dict[str, tuple[int, int]], section: str, offset: int, told: Told
) -> bool:
    """A line record of added code that says so, where a run of it begins: at an entry's start, behind
    the body, or behind the call of it."""
    index = names.get(section, (0, 0))[1]
    origins = pair.alignment.origins.get(index, ())
    slot, rest = divmod(offset, SLOT)
    if rest or slot >= len(origins) or not isinstance(origins[slot], Added):
        return False
    starts = {function.start for function in pair.after.functions.get(index, ())}
    if slot not in starts and isinstance(origins[slot - 1], Added):
        last = pair.after.insns(index)[slot - 1]
        if (last.code, last.src) != (CALL, CALL_FUNCTION):
            return False
    return told[0] == _FILE and str(told[1]).startswith(_LINE) and not any(told[2:])


def _starts(pair: Pair, was: BtfExt, now: BtfExt, names: dict[str, tuple[int, int]]) -> None:
    """A line record stands at the start of the link's functions, where the program had one."""
    if not _has_line(pair, was):
        return
    wanted = set(pair.intent.entries.values())
    if pair.shared:
        wanted.add(pair.intent.body_name)
    for index in {pair.home, pair.text if pair.shared else pair.home}:
        name = pair.after.sections[index].name
        lines = {record[0] for record in now.of(LINE, name)}
        for function in pair.after.functions.get(index, ()):
            if function.name in wanted and function.start * SLOT not in lines:
                pair.say("line-info", f"line_info: {function.name} has no record at its start")


def _where(pair: Pair, names: dict[str, tuple[int, int]], section: str, offset: int) -> str:
    index = names.get(section, (0, 0))[1]
    obj: Obj = pair.after
    return pair.where(index, offset, of=obj) if index else f"{section} byte {offset}"


def _text(told: Told) -> str:
    return "record (" + ", ".join(str(part) for part in told) + ")"

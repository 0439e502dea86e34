"""Accounting of relocations: each of IN is in OUT at every copy of what it relocates, against the same
symbol, with the addend that means the same; added ones stand in added code alone.

REL records have no addend of their own: it lies in the bytes that they relocate (LLVM,
BPFAsmBackend.cpp). Against a section's symbol it counts bytes (of a call, instructions behind the
next one) from the section's start, so it follows what moves there.
"""

from __future__ import annotations

from struct import Struct

from bpfchain.verify.static.insns import CALL, CALL_FUNCTION, LDDW, SLOT, Insn
from bpfchain.verify.static.model import (
    R_BPF_64_32,
    R_BPF_64_64,
    R_BPF_64_ABS64,
    SHT_NOBITS,
    STT_SECTION,
    Added,
    Relocation,
)
from bpfchain.verify.static.pair import Pair

__all__ = ["check_relocations"]


def check_relocations(pair: Pair) -> None:
    """Every rule of this module. Those of ``.maps`` are the maps' affair, as far as they are new."""
    wanted: dict[int, list[Relocation]] = {}
    for target, group in pair.before.relocations.items():
        section = pair.before.sections[target]
        if section.executable:
            _of_code(pair, target, group, wanted)
        elif target in pair.sections:
            _of_data(pair, target, group, wanted)
        pair.counted["relocations"] += len(group)
    for target in sorted(wanted.keys() | pair.after.relocations.keys()):
        _compare(pair, target, wanted.get(target, []))


def _of_code(
    pair: Pair, target: int, group: tuple[Relocation, ...], wanted: dict[int, list[Relocation]]
) -> None:
    for item in group:
        slot, rest = divmod(item.offset, SLOT)
        symbol = pair.symbols.get(item.symbol)
        places = pair.alignment.places.get((target, slot), ())
        if symbol is None or not places:
            where = pair.where(target, item.offset, of=pair.before)
            pair.say("relocation", f"nothing is left of the relocation at {where} of IN")
            continue
        for section, at, _ in places:
            wanted.setdefault(section, []).append(Relocation(at * SLOT + rest, symbol, item.type))
            _code_addend(pair, item, (target, slot), (section, at))


def _code_addend(
    pair: Pair, item: Relocation, before: tuple[int, int], after: tuple[int, int]
) -> None:
    """The relocated instruction is the same, its immediate leads to where its old one led."""
    was = pair.before.insns(before[0])[before[1]]
    now = pair.after.insns(after[0])[after[1]]
    symbol = pair.before.symbols[item.symbol]
    moved = (
        symbol.type == STT_SECTION
        and symbol.section in pair.sections
        and (pair.before.sections[symbol.section].executable)
    )
    imm: int | None = was.imm
    if moved:
        call = was.code == CALL
        old = (was.imm + 1) * SLOT if call else was.imm
        place = pair.place(symbol.section, old)
        imm = None
        if place is not None and place[0] == pair.sections[symbol.section]:
            imm = place[1] // SLOT - 1 if call else place[1]
    if was.code == LDDW:  # the addend is in the first half alone (LLVM, BPFAsmBackend.cpp)
        second = pair.before.insns(before[0])[before[1] + 1 : before[1] + 2]
        if second != pair.after.insns(after[0])[after[1] + 1 : after[1] + 2]:
            where = pair.where(after[0], after[1] * SLOT)
            pair.say("addend", f"the second half of the relocated instruction at {where} changed")
    if imm is None or now != was._replace(imm=imm):
        pair.say(
            "addend",
            f"the relocated instruction at {pair.where(after[0], after[1] * SLOT)} is not what it was: "
            f"immediate {was.imm} should be {imm} and is {now.imm}",
        )


def _of_data(
    pair: Pair, target: int, group: tuple[Relocation, ...], wanted: dict[int, list[Relocation]]
) -> None:
    section, now = pair.before.sections[target], pair.after.sections[pair.sections[target]]
    if section.name in (".BTF", ".BTF.ext") and now.index not in pair.after.relocations:
        return  # dropped together, see sections
    for item in group:
        symbol = pair.symbols.get(item.symbol)
        if symbol is None:
            pair.say(
                "relocation",
                f"section {section.name}: nothing is left of the symbol at byte {item.offset}",
            )
            continue
        wanted.setdefault(now.index, []).append(Relocation(item.offset, symbol, item.type))
        other = section.name in (".BTF", ".BTF.ext") or section.name.startswith(".debug_")
        if not other and section.type != SHT_NOBITS:
            _data_addend(pair, item, target)


def _data_addend(pair: Pair, item: Relocation, target: int) -> None:
    section = pair.before.sections[target]
    now = pair.after.sections[pair.sections[target]]
    wide = item.type in (R_BPF_64_ABS64, R_BPF_64_64)
    word = Struct(pair.before.order + ("Q" if wide else "I"))
    if item.offset + word.size > min(len(section.data), len(now.data)):
        pair.say("relocation", f"section {section.name}: relocation at {item.offset} is outside")
        return
    (old,) = word.unpack_from(section.data, item.offset)
    (new,) = word.unpack_from(now.data, item.offset)
    symbol = pair.before.symbols[item.symbol]
    expected: int | None = old
    if symbol.type == STT_SECTION and pair.before.sections[symbol.section].executable:
        place = pair.place(symbol.section, old)
        expected = place[1] if place and place[0] == pair.sections[symbol.section] else None
    end = min(
        (o.offset for o in pair.before.relocations[target] if item.offset < o.offset),
        default=item.offset + 8,
    )
    rest = slice(item.offset + word.size, min(end, item.offset + 8))
    if new != expected or section.data[rest] != now.data[rest]:
        pair.say(
            "addend",
            f"section {section.name}: the word at byte {item.offset} should be {expected}, is {new}",
        )


def _compare(pair: Pair, target: int, wanted: list[Relocation]) -> None:
    """What is there against what is wanted; what is over must belong to the patch."""
    section = pair.after.sections[target]
    there = pair.after.relocations.get(target, ())
    left: dict[Relocation, int] = {}
    for item in there:
        left[item] = left.get(item, 0) + 1
    for item in wanted:
        if left.get(item):
            left[item] -= 1
            continue
        name = pair.after.symbols[item.symbol].name or "a section"
        other = [one for one in there if one.offset == item.offset]
        is_now = "none"
        if other:
            is_now = (
                f"{pair.after.symbols[other[0].symbol].name or 'a section'} (type {other[0].type})"
            )
        pair.say(
            "relocation",
            f"{pair.where(target, item.offset)} should refer to {name} (type {item.type}), "
            f"refers to {is_now}",
        )
    over = [item for item, count in left.items() for _ in range(count)]
    if section.executable:
        for item in over:
            _added_in_code(pair, target, item)
        _bare(pair, target)
        return
    added = [s for s in pair.added_symbols if s.section == target and section.name == ".maps"]
    for item in over:  # initial values of an added map are looked at in maps
        if not any(symbol.value <= item.offset < symbol.end for symbol in added):
            pair.say("relocation", f"section {section.name}: one is added at byte {item.offset}")


def _added_in_code(pair: Pair, target: int, item: Relocation) -> None:
    """An added load of one of the chain's maps, or the call of the body where it moved."""
    where = pair.where(target, item.offset)
    slot, rest = divmod(item.offset, SLOT)
    origins = pair.alignment.origins.get(target, ())
    symbol = pair.after.symbols[item.symbol]
    if rest or slot >= len(origins) or not isinstance(origins[slot], Added):
        pair.say("relocation", f"one is added at {where}, where no code is added")
        return
    pair.counted["relocations added"] += 1
    insn: Insn = pair.after.insns(target)[slot]
    maps = {pair.intent.slots_map} | (
        {pair.intent.saved_map} if pair.intent.mode == "map" else set()
    )
    if insn.code == LDDW:
        right = item.type == R_BPF_64_64 and symbol.name in maps
        right = right and (insn.src, insn.imm) == (0, 0)
        right = right and pair.after.sections[symbol.section].name == ".maps"
    elif insn.code == CALL and insn.src == CALL_FUNCTION:
        text = pair.before.named(".text")
        body = len(text.data) if text is not None else 0
        right = item.type == R_BPF_64_32 and symbol.type == STT_SECTION and pair.shared
        right = right and symbol.section == pair.text and insn.imm == body // SLOT - 1
    else:
        right = False
    if not right:
        pair.say(
            "relocation",
            f"the added instruction at {where} refers to {symbol.name or 'a section'} "
            f"(type {item.type})",
        )


def _bare(pair: Pair, target: int) -> None:
    """Added loads of a map and calls of the body must be relocated."""
    insns = pair.after.insns(target)
    for slot, origin in enumerate(pair.alignment.origins.get(target, ())):
        if isinstance(origin, Added):
            insn = insns[slot]
            # in mode map a saved code is loaded by the same instruction
            load = insn.code == LDDW and pair.intent.mode == "slots"
            call = insn.code == CALL and insn.src == CALL_FUNCTION
            if (load or call) and pair.after.relocation_at(target, slot) is None:
                pair.say(
                    "relocation",
                    f"the added instruction at {pair.where(target, slot * SLOT)} needs one",
                )

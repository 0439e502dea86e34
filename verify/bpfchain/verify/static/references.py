"""Nothing in the object may refer to the patched program itself.

Whoever calls it, or holds its address in a map's ``values`` or in data, would run the link and not the
original: a caller would get another verdict, a tail call to it would run the rest of the chain twice.
"""

from __future__ import annotations

from bpfchain.verify.static.align import code_target
from bpfchain.verify.static.insns import CALL, LDDW, SLOT
from bpfchain.verify.static.model import STT_SECTION
from bpfchain.verify.static.pair import Pair

__all__ = ["check_references"]

_DESCRIBES = (".BTF", ".debug_", ".rel.debug_", ".eh_frame")
"""Sections that tell of code and are not run."""


def check_references(pair: Pair) -> None:
    """The only rule of this module; it looks at IN, where the references of OUT come from."""
    before, program = pair.before, pair.program
    inside = range(program.start * SLOT, program.end * SLOT)
    for section in before.executable:
        for slot, insn in enumerate(before.insns(section.index)):
            if insn.code not in (CALL, LDDW):
                continue
            target = code_target(before, section.index, slot)
            if target is not None and target[0] == program.section and target[1] in inside:
                pair.say("reference", f"{_at(pair, section.index, slot * SLOT)} refers to it")
                return
    for index, group in before.relocations.items():
        section = before.sections[index]
        if section.executable or section.name.startswith(_DESCRIBES):
            continue
        for item in group:
            symbol = before.symbols[item.symbol]
            offset = symbol.value
            if symbol.type == STT_SECTION:
                word = section.data[item.offset : item.offset + 4]
                offset += int.from_bytes(word, "little" if before.order == "<" else "big")
            if symbol.section == program.section and offset in inside:
                pair.say("reference", f"{_at(pair, index, item.offset)} refers to it")
                return


def _at(pair: Pair, section: int, offset: int) -> str:
    return (
        f"program {pair.program.name} cannot be a link: IN's "
        f"{pair.where(section, offset, of=pair.before)}"
    )

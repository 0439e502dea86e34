"""Added instructions leave the fields that they do not use zero: the kernel refuses others.

Which fields an instruction uses is RFC 9669; what the verifier asks is ``do_check`` and
``check_alu_op`` of kernel/bpf/verifier.c ("uses reserved fields").
"""

from __future__ import annotations

from bpfchain.verify.static import insns as i
from bpfchain.verify.static.insns import SLOT, Insn
from bpfchain.verify.static.model import Added
from bpfchain.verify.static.pair import Pair

__all__ = ["check_reserved"]


def check_reserved(pair: Pair) -> None:
    """The only rule of this module."""
    for section, origins in pair.alignment.origins.items():
        insns = pair.after.insns(section)
        for slot, (origin, insn) in enumerate(zip(origins, insns, strict=False)):
            if not isinstance(origin, Added):
                continue
            pair.counted["instructions added"] += 1
            second = slot > 0 and insns[slot - 1].code == i.LDDW
            if _unused(insn, second=second):
                pair.say(
                    "reserved",
                    f"the added instruction at {pair.where(section, slot * SLOT)} has reserved "
                    f"fields: {i.text_of(insn)} {tuple(insn)}",
                )


def _unused(insn: Insn, *, second: bool) -> bool:
    """Whether a field that means nothing here is not zero."""
    code, dst, src, off, imm = insn
    kind = code & 7
    if second:
        return bool(code or dst or src or off)
    if code == i.LDDW:
        return bool(off)
    if kind in (i.CLASS_ALU, i.CLASS_ALU64):
        return bool(off or (imm if code & i.REGISTER_SOURCE else src))
    if kind in (i.CLASS_JMP, i.CLASS_JMP32):
        if code == i.EXIT:
            return bool(dst or src or off or imm)
        if code == i.CALL:
            return bool(dst or off)
        if i.is_ja(insn):
            return bool(dst or src or (imm if code == i.JA else off))
        return bool(imm if code & i.REGISTER_SOURCE else src)
    if kind in (i.CLASS_LDX, i.CLASS_STX):
        return bool(imm) and code & 0xE0 != i.MODE_ATOMIC
    return bool(src) if kind == i.CLASS_ST else False

"""Instructions as the checker reads them: RFC 9669 decoded into small frozen values, in both byte orders.

Written from the RFC and the kernel's headers (include/uapi/linux/bpf.h, bpf_common.h), and on purpose
not shared with the patcher: a mistake in one of the two decoders must show as a difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from struct import Struct
from typing import NamedTuple

__all__ = [
    "CALL", "EXIT", "FRAME", "JA", "LDDW", "MAX_STACK", "SLOT", "Decoded", "Insn", "decode", "defs",
    "encode", "is_branch", "is_ja", "signed", "successors", "text_of", "uses",
]  # fmt: skip

SLOT = 8
"""Bytes of one instruction slot; a ``lddw`` has two."""
MAX_STACK = 512
"""MAX_BPF_STACK: bytes below r10 of one frame."""
FRAME = 10
"""The frame pointer."""

CLASS_LD, CLASS_LDX, CLASS_ST, CLASS_STX, CLASS_ALU, CLASS_JMP, CLASS_JMP32, CLASS_ALU64 = range(8)
MODE_IMM, MODE_ABS, MODE_IND, MODE_MEM, MODE_MEMSX, MODE_ATOMIC = 0x00, 0x20, 0x40, 0x60, 0x80, 0xC0
LDDW, JA, JA32, CALL, CALLX, GOTOX, EXIT, MAY_GOTO = 0x18, 0x05, 0x06, 0x85, 0x8D, 0x0D, 0x95, 0xE5
REGISTER_SOURCE = 0x08

# operations of the ALU classes, high four bits
ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, NEG, MOD, XOR, MOV, ARSH, END = range(0x00, 0xE0, 0x10)
# operations of the JMP classes, high four bits
OP_JA, JEQ, JGT, JGE, JSET, JNE, JSGT, JSGE, OP_CALL, OP_EXIT, JLT, JLE, JSLT, JSLE, OP_COND = (
    range(0x00, 0xF0, 0x10)
)

CALL_HELPER, CALL_FUNCTION, CALL_KFUNC = 0, 1, 2
"""Source register of a call: a helper by number, a function by distance, a kernel function."""
LDDW_FUNCTION = 4
"""Source register of a ``lddw`` that loads a function's address."""

ATOMIC_FETCH, ATOMIC_XCHG, ATOMIC_CMPXCHG = 0x01, 0xE1, 0xF1
ATOMIC_LOAD_ACQUIRE, ATOMIC_STORE_RELEASE = 0x100, 0x110

WIDTHS = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}
"""Bytes that a load or store moves, by the size bits of its opcode."""

_CALLER_SAVED = 0b11_1111
_NAMES = {
    ADD: "+=", SUB: "-=", MUL: "*=", DIV: "/=", OR: "|=", AND: "&=", LSH: "<<=", RSH: ">>=",
    MOD: "%=", XOR: "^=", MOV: "=", ARSH: "s>>=",
}  # fmt: skip
_COMPARES = {
    JEQ: "==", JGT: ">", JGE: ">=", JSET: "&", JNE: "!=", JSGT: "s>", JSGE: "s>=", JLT: "<",
    JLE: "<=", JSLT: "s<", JSLE: "s<=",
}  # fmt: skip


class Insn(NamedTuple):
    """One slot of 8 bytes. ``off`` and ``imm`` are signed."""

    code: int
    dst: int
    src: int
    off: int
    imm: int


Decoded = Sequence[Insn]

_LITTLE, _BIG = Struct("<BBhi"), Struct(">BBhi")


def decode(data: bytes, order: str) -> list[Insn]:
    """The slots of ``data``; ``order`` is ``<`` or ``>``. Raises ValueError for a broken length.

    RFC 9669, section 3.1: the destination register is the low nibble in little-endian objects and
    the high one in big-endian objects.
    """
    if len(data) % SLOT:
        raise ValueError(f"{len(data)} bytes are not whole instructions of {SLOT} bytes")
    if order == "<":
        return [
            Insn(code, regs & 15, regs >> 4, off, imm)
            for code, regs, off, imm in _LITTLE.iter_unpack(data)
        ]
    return [
        Insn(code, regs >> 4, regs & 15, off, imm)
        for code, regs, off, imm in _BIG.iter_unpack(data)
    ]


def encode(insn: Insn, order: str) -> bytes:
    """The 8 bytes of one slot."""
    if order == "<":
        return _LITTLE.pack(insn.code, insn.dst | insn.src << 4, insn.off, insn.imm)
    return _BIG.pack(insn.code, insn.dst << 4 | insn.src, insn.off, insn.imm)


def signed(value: int, bits: int = 64) -> int:
    """The low ``bits`` of ``value`` in two's complement."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def is_ja(insn: Insn) -> bool:
    """An unconditional jump (``ja`` or ``gotol``)."""
    return insn.code in (JA, JA32)


def is_branch(insn: Insn) -> bool:
    """Whether control may go on elsewhere in the function: jumps, not calls and not ``exit``."""
    return insn.code & 7 in (CLASS_JMP, CLASS_JMP32) and insn.code not in (CALL, CALLX, EXIT)


def target(insn: Insn, at: int) -> int:
    """The slot where the jump at slot ``at`` goes when it is taken (``gotol`` counts in imm)."""
    return at + 1 + (insn.imm if insn.code == JA32 else insn.off)


def successors(insns: Decoded, at: int) -> tuple[int, ...]:
    """Slots that can run right after the one at ``at``; they may lie outside of ``insns``."""
    insn = insns[at]
    if insn.code == EXIT:
        return ()
    if insn.code == LDDW:
        return (at + 2,)
    if is_ja(insn):
        return (target(insn, at),)
    if is_branch(insn):
        goal = target(insn, at)
        return (at + 1,) if goal == at + 1 else (at + 1, goal)
    return (at + 1,)


def begins(insns: Decoded) -> list[bool]:
    """For each slot, whether an instruction begins there (False: second half of a ``lddw``)."""
    flags = [True] * len(insns)
    at = 0
    while at < len(insns):
        if insns[at].code == LDDW and at + 1 < len(insns):
            flags[at + 1] = False
            at += 1
        at += 1
    return flags


@lru_cache(maxsize=4096)
def masks(insn: Insn) -> tuple[int, int]:
    """Bit masks of the registers that the instruction reads, and of those that it overwrites.

    A call overwrites r0 to r5 (r1 to r5 hold nothing afterwards); how many of r1 to r5 it reads is
    the callee's affair and not counted here.
    """
    code, dst, src = insn.code, 1 << insn.dst, 1 << insn.src
    kind = code & 7
    if kind in (CLASS_ALU, CLASS_ALU64):
        operation = code & 0xF0
        read = 0 if operation == MOV else dst
        if code & REGISTER_SOURCE and operation not in (END, NEG):
            read |= src
        return read, dst
    if kind == CLASS_LDX:
        return src, dst
    if kind == CLASS_ST:
        return dst, 0
    if kind == CLASS_STX:
        if code & 0xE0 != MODE_ATOMIC:
            return dst | src, 0
        if insn.imm == ATOMIC_LOAD_ACQUIRE:
            return src, dst
        if insn.imm == ATOMIC_CMPXCHG:
            return dst | src | 1, 1
        return dst | src, src if insn.imm & ATOMIC_FETCH else 0
    if kind == CLASS_LD:
        if code == LDDW:
            return 0, dst
        if code & 0xE0 in (MODE_ABS, MODE_IND):  # r6 is the packet; like a call otherwise
            return 1 << 6 | (src if code & 0xE0 == MODE_IND else 0), _CALLER_SAVED
        return 0, 0
    if code == EXIT:
        return 1, 0
    if code in (CALL, CALLX):
        return dst if code == CALLX else 0, _CALLER_SAVED
    if is_ja(insn) or code == MAY_GOTO:
        return 0, 0
    return dst | (src if code & REGISTER_SOURCE else 0), 0


_PLAIN_ALU = frozenset((ADD, SUB, OR, AND, LSH, RSH, XOR, MOV, ARSH))
_SHIFTS = frozenset((LSH, RSH, ARSH))


def well_formed(insn: Insn, after: Insn | None) -> bool:
    """Whether it is an instruction of the kinds that added code is made of, with 0 in every field
    that it does not use (the kernel refuses others). ``after`` is the slot behind it."""
    code, dst, src, off, imm = insn
    kind, operation, register = code & 7, code & 0xF0, bool(code & REGISTER_SOURCE)
    if dst > FRAME or src > FRAME:
        return False
    if kind in (CLASS_ALU, CLASS_ALU64):
        if operation not in _PLAIN_ALU or off or dst == FRAME or (imm if register else src):
            return False
        width = 64 if kind == CLASS_ALU64 else 32
        return register or operation not in _SHIFTS or 0 <= imm < width
    if code == EXIT:
        return not (dst or src or off or imm)
    if code == CALL:
        return not (dst or off) and src in (CALL_HELPER, CALL_FUNCTION)
    if code == JA:
        return not (dst or src or imm)
    if code == JA32:
        return not (dst or src or off)
    if kind in (CLASS_JMP, CLASS_JMP32):
        return operation in _COMPARES and not (imm if register else src)
    if code == LDDW:
        second = after is not None and (after.code, after.dst, after.src, after.off) == (0, 0, 0, 0)
        return second and not off and not src and dst != FRAME
    if code & 0xE0 != MODE_MEM or code & 0x18 not in WIDTHS:
        return False
    if kind == CLASS_LDX:
        return not imm and dst != FRAME
    return (kind == CLASS_ST and not src) or (kind == CLASS_STX and not imm)


def uses(insn: Insn) -> frozenset[int]:
    """Registers that the instruction reads (``masks``)."""
    return frozenset(_bits(masks(insn)[0]))


def defs(insn: Insn) -> frozenset[int]:
    """Registers that do not keep their value across the instruction (``masks``)."""
    return frozenset(_bits(masks(insn)[1]))


def _bits(mask: int) -> Iterator[int]:
    return (number for number in range(16) if mask >> number & 1)


def text_of(insn: Insn) -> str:
    """The instruction as a person reads it, for findings."""
    code, kind = insn.code, insn.code & 7
    if code == EXIT:
        return "exit"
    if code == CALL:
        return f"call {'helper ' if insn.src == CALL_HELPER else ''}{insn.imm}"
    if is_ja(insn):
        return f"goto {target(insn, -1):+d}"
    if code == LDDW:
        return f"r{insn.dst} = {insn.imm:#x} ll"
    if kind in (CLASS_ALU, CLASS_ALU64) and code & 0xF0 in _NAMES:
        letter = "w" if kind == CLASS_ALU else "r"
        operand = f"{letter}{insn.src}" if code & REGISTER_SOURCE else str(insn.imm)
        return f"{letter}{insn.dst} {_NAMES[code & 0xF0]} {operand}"
    if kind in (CLASS_JMP, CLASS_JMP32) and code & 0xF0 in _COMPARES:
        letter = "w" if kind == CLASS_JMP32 else "r"
        operand = f"{letter}{insn.src}" if code & REGISTER_SOURCE else str(insn.imm)
        return f"if {letter}{insn.dst} {_COMPARES[code & 0xF0]} {operand} goto {insn.off:+d}"
    width = WIDTHS[code & 0x18] * 8
    if kind == CLASS_LDX:
        return f"r{insn.dst} = *(u{width} *)(r{insn.src} {insn.off:+d})"
    if kind == CLASS_ST:
        return f"*(u{width} *)(r{insn.dst} {insn.off:+d}) = {insn.imm}"
    if kind == CLASS_STX and code & 0xE0 == MODE_MEM:
        return f"*(u{width} *)(r{insn.dst} {insn.off:+d}) = r{insn.src}"
    return f"opcode {code:#04x} r{insn.dst} r{insn.src} {insn.off} {insn.imm}"

"""Instructions as text, in the syntax that llvm-objdump and the kernel's verifier log share.

What an object knows better is said better: helpers by name, maps and functions by the name of the
symbol that a relocation names, jumps with the slot they lead to.
"""

from __future__ import annotations

from .helpers import helper_name
from .isa import (
    ALU32,
    ALU64,
    CALL,
    CALLX,
    EXIT,
    GOTOX,
    JA,
    JA32,
    JMP,
    JMP32,
    LD,
    LD_ABS_IND,
    LDDW,
    LDX,
    MAY_GOTO,
    PSEUDO_CALL,
    PSEUDO_FUNC,
    PSEUDO_KFUNC_CALL,
    ST,
    STX,
    Insn,
)  # fmt: skip

__all__ = ["render"]

_ALU = {
    0x00: "+=", 0x10: "-=", 0x20: "*=", 0x30: "/=", 0x40: "|=", 0x50: "&=", 0x60: "<<=",
    0x70: ">>=", 0x90: "%=", 0xA0: "^=", 0xB0: "=", 0xC0: "s>>=",
}  # fmt: skip
_SIGNED = {0x30: "s/=", 0x90: "s%="}
_COMPARE = {
    0x10: "==", 0x20: ">", 0x30: ">=", 0x40: "&", 0x50: "!=", 0x60: "s>", 0x70: "s>=",
    0xA0: "<", 0xB0: "<=", 0xC0: "s<", 0xD0: "s<=",
}  # fmt: skip
_WIDTH = {0x00: 32, 0x08: 16, 0x10: 8, 0x18: 64}
_MEM, _MEMSX, _ATOMIC = 0x60, 0x80, 0xC0
_LOCKED = {0x00: "+=", 0x40: "|=", 0x50: "&=", 0xA0: "^="}
_FETCH = {0x01: "add", 0x41: "or", 0x51: "and", 0xA1: "xor"}
_XCHG, _CMPXCHG, _LOAD_ACQUIRE, _STORE_RELEASE = 0xE1, 0xF1, 0x100, 0x110
_SOURCE_REGISTER = 0x08
_PERCPU_MOVE, _ADDR_SPACE_CAST = -1, 1


def render(
    insn: Insn,
    following: Insn | None = None,
    *,
    symbol: str | None = None,
    address: int | None = None,
) -> str:
    """One instruction as text; ``following`` is the second half of a ``ldimm64``.

    ``symbol`` is what a relocation says stands in the place of the number, as it is to be read
    (``map[counters]``, a function's name). With ``address``, the slot of this instruction, jumps
    and local calls end in the slot they lead to: ``goto +3 -> 46``. Never raises: what RFC 9669 and
    the kernel do not know is shown as its fields.
    """
    text = _render(insn, following, symbol, address)
    return text if text is not None else _raw(insn)


def _raw(insn: Insn) -> str:
    return (
        f"unknown (opcode {insn.opcode:#04x}, dst {insn.dst}, src {insn.src}, "
        f"offset {insn.offset}, imm {insn.imm})"
    )


def _render(
    insn: Insn, following: Insn | None, symbol: str | None, address: int | None
) -> str | None:
    klass = insn.klass
    if klass in (ALU32, ALU64):
        return _alu(insn)
    if klass in (JMP, JMP32):
        return _jump(insn, symbol, address)
    if insn.opcode == LDDW:
        return _wide(insn, following, symbol)
    if insn.opcode in LD_ABS_IND and klass == LD:
        place = f"r{insn.src}" if insn.opcode & 0xE0 == 0x40 else str(insn.imm)
        if insn.opcode & 0xE0 == 0x40 and insn.imm:
            place += f" {_signed(insn.imm)}"
        return f"r0 = *(u{_WIDTH[insn.opcode & 0x18]} *)skb[{place}]"
    if klass in (LDX, ST, STX):
        return _memory(insn)
    return None


def _signed(value: int) -> str:
    return f"- {-value}" if value < 0 else f"+ {value}"


def _alu(insn: Insn) -> str | None:
    op, wide = insn.opcode & 0xF0, insn.klass == ALU64
    letter = "r" if wide else "w"
    dst, from_register = f"{letter}{insn.dst}", bool(insn.opcode & _SOURCE_REGISTER)
    if op == 0x80:
        return f"{dst} = -{dst}" if not from_register and not insn.offset else None
    if op == 0xD0:
        if insn.imm not in (16, 32, 64) or insn.offset or (wide and from_register):
            return None
        kind = "bswap" if wide else "be" if from_register else "le"
        return f"r{insn.dst} = {kind}{insn.imm} r{insn.dst}"
    if op == 0xB0 and from_register and insn.offset:
        return _odd_move(insn, letter, wide)
    operator = _ALU.get(op)
    if op in _SIGNED and insn.offset == 1:
        operator = _SIGNED[op]
    elif insn.offset:
        return None
    if operator is None:
        return None
    return f"{dst} {operator} {f'{letter}{insn.src}' if from_register else insn.imm}"


def _odd_move(insn: Insn, letter: str, wide: bool) -> str | None:
    """Moves that the offset makes something else of: sign extension and address spaces."""
    if insn.offset in (8, 16) or (wide and insn.offset == 32):
        return f"{letter}{insn.dst} = (s{insn.offset}){letter}{insn.src}"
    if wide and insn.offset == _ADDR_SPACE_CAST:
        spaces = insn.imm & 0xFFFF_FFFF
        return f"r{insn.dst} = addr_space_cast(r{insn.src}, {spaces >> 16}, {spaces & 0xFFFF})"
    if wide and insn.offset == _PERCPU_MOVE:
        return f"r{insn.dst} = &(void __percpu *)(r{insn.src})"
    return None


def _jump(insn: Insn, symbol: str | None, address: int | None) -> str | None:
    if insn.opcode == EXIT:
        return "exit"
    if insn.opcode == CALL:
        return _call(insn, symbol, address)
    if insn.opcode == CALLX:
        return f"callx r{insn.dst or insn.imm}"
    if insn.opcode == GOTOX:
        return f"gotox r{insn.dst}"
    distance = insn.imm if insn.opcode == JA32 else insn.offset
    where = f"{distance:+d}" + (f" -> {insn.target(address)}" if address is not None else "")
    if insn.opcode == JA:
        return f"goto {where}"
    if insn.opcode == JA32:
        return f"gotol {where}"
    if insn.opcode == MAY_GOTO:
        return f"may_goto {where}"
    operator = _COMPARE.get(insn.opcode & 0xF0)
    if operator is None:
        return None
    letter = "w" if insn.klass == JMP32 else "r"
    right = f"{letter}{insn.src}" if insn.opcode & _SOURCE_REGISTER else str(insn.imm)
    return f"if {letter}{insn.dst} {operator} {right} goto {where}"


def _call(insn: Insn, symbol: str | None, address: int | None) -> str:
    if symbol is not None:
        return f"call {symbol}"
    if insn.src == PSEUDO_CALL:
        place = f" -> {address + 1 + insn.imm}" if address is not None else ""
        return f"call pc{insn.imm:+d}{place}"
    if insn.src == PSEUDO_KFUNC_CALL:
        return f"call kfunc#{insn.imm}"
    return f"call {helper_name(insn.imm) or 'helper'}#{insn.imm}"


def _wide(insn: Insn, following: Insn | None, symbol: str | None) -> str:
    if symbol is not None:
        return f"r{insn.dst} = {symbol} ll"
    if insn.src == PSEUDO_FUNC:
        return f"r{insn.dst} = subprog[{insn.imm:+d}] ll"
    high = following.imm if following is not None else 0
    value = (insn.imm & 0xFFFF_FFFF) | (high & 0xFFFF_FFFF) << 32
    value = (value ^ 1 << 63) - (1 << 63)
    return f"r{insn.dst} = {value} ll"


def _memory(insn: Insn) -> str | None:
    mode, bits = insn.opcode & 0xE0, _WIDTH[insn.opcode & 0x18]
    if insn.klass == LDX:
        place = f"(r{insn.src} {_signed(insn.offset)})"
        if mode == _MEM:
            # a register narrower than the one that is written shows as the wide one: it is zeroed
            return f"r{insn.dst} = *(u{bits} *){place}"
        return f"r{insn.dst} = *(s{bits} *){place}" if mode == _MEMSX and bits < 64 else None
    place = f"(r{insn.dst} {_signed(insn.offset)})"
    if mode == _MEM:
        return f"*(u{bits} *){place} = {insn.imm if insn.klass == ST else f'r{insn.src}'}"
    if mode == _ATOMIC and insn.klass == STX:
        return _atomic(insn, bits)
    return None


def _atomic(insn: Insn, bits: int) -> str | None:
    place, letter = f"(r{insn.dst} {_signed(insn.offset)})", "r" if bits == 64 else "w"
    src, memory = f"{letter}{insn.src}", f"(u{bits} *){place}"
    if insn.imm == _LOAD_ACQUIRE:
        source = f"(u{bits} *)(r{insn.src} {_signed(insn.offset)})"
        return f"{letter}{insn.dst} = load_acquire({source})"
    if insn.imm == _STORE_RELEASE:
        return f"store_release({memory}, {src})"
    if bits < 32:
        return None
    if insn.imm in _LOCKED:
        return f"lock *{memory} {_LOCKED[insn.imm]} {src}"
    if insn.imm in _FETCH:
        return f"{src} = atomic_fetch_{_FETCH[insn.imm]}({memory}, {src})"
    tag, inside = ("32_32" if bits == 32 else "_64"), place[1:-1]
    if insn.imm == _XCHG:
        return f"{src} = xchg{tag}({inside}, {src})"
    if insn.imm == _CMPXCHG:
        return f"{letter}0 = cmpxchg{tag}({inside}, {letter}0, {src})"
    return None

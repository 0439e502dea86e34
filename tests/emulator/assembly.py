"""BPF instructions by hand, for the native engine: each function gives the bytes of one."""

from __future__ import annotations

import struct

R0, R1, R2, R3, R4, R5, R6, R7, R8, R9, R10 = range(11)

SIZES = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}
CONDITIONS = {
    "==": 0x10, ">": 0x20, ">=": 0x30, "&": 0x40, "!=": 0x50, "s>": 0x60, "s>=": 0x70,
    "<": 0xA0, "<=": 0xB0, "s<": 0xC0, "s<=": 0xD0,
}  # fmt: skip
ALU = {
    "+": 0x00, "-": 0x10, "*": 0x20, "/": 0x30, "|": 0x40, "&": 0x50, "<<": 0x60, ">>": 0x70,
    "%": 0x90, "^": 0xA0, "=": 0xB0, "s>>": 0xC0,
}  # fmt: skip
ADD, FETCH, XCHG, CMPXCHG = 0x00, 0x01, 0xE1, 0xF1


def insn(op: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("<BBhI", op, dst | src << 4, off, imm & 0xFFFFFFFF)


def alu(dst: int, operation: str, imm: int) -> bytes:
    """``dst operation imm`` in 64 bits."""
    return insn(0x07 | ALU[operation], dst, 0, 0, imm)


def alu_reg(dst: int, operation: str, src: int) -> bytes:
    return insn(0x0F | ALU[operation], dst, src)


def mov(dst: int, imm: int) -> bytes:
    return alu(dst, "=", imm)


def mov_reg(dst: int, src: int) -> bytes:
    return alu_reg(dst, "=", src)


def load(size: int, dst: int, src: int, off: int = 0) -> bytes:
    return insn(0x61 | SIZES[size], dst, src, off)


def store(size: int, dst: int, off: int, src: int) -> bytes:
    return insn(0x63 | SIZES[size], dst, src, off)


def store_imm(size: int, dst: int, off: int, imm: int) -> bytes:
    return insn(0x62 | SIZES[size], dst, 0, off, imm)


def atomic(size: int, dst: int, off: int, src: int, operation: int) -> bytes:
    return insn(0xC3 | SIZES[size], dst, src, off, operation)


def jump(off: int) -> bytes:
    return insn(0x05, 0, 0, off)


def jump_if(dst: int, condition: str, imm: int, off: int) -> bytes:
    return insn(0x05 | CONDITIONS[condition], dst, 0, off, imm)


def jump_if_reg(dst: int, condition: str, src: int, off: int) -> bytes:
    return insn(0x0D | CONDITIONS[condition], dst, src, off)


def call(helper: int) -> bytes:
    return insn(0x85, 0, 0, 0, helper)


def call_local(distance: int) -> bytes:
    return insn(0x85, 0, 1, 0, distance)


def wide(dst: int, kind: int, imm: int, second: int = 0) -> bytes:
    """A 64-bit load; ``kind`` 1 map, 2 map value, 4 function (distance)."""
    return insn(0x18, dst, kind, 0, imm) + insn(0, 0, 0, 0, second)


def load_abs(size: int, offset: int) -> bytes:
    return insn(0x20 | SIZES[size], 0, 0, 0, offset)


def load_ind(size: int, src: int, offset: int) -> bytes:
    return insn(0x40 | SIZES[size], 0, src, 0, offset)


EXIT = insn(0x95)


def returns(value: int) -> bytes:
    return mov(R0, value) + EXIT


def tail_call(array: int, slot: int) -> bytes:
    """``bpf_tail_call(r1, array, slot)``: the context must be in r1. 4 slots of code."""
    return wide(R2, 1, array) + mov(R3, slot) + call(12)

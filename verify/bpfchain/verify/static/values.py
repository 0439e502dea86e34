"""What a register can hold, as far as the checker can tell without running anything.

A value is a range of numbers, the context as it came in, a pointer into a stack frame with the range
of offsets it can have, a map, a function, or None: anything else. None is never a stack pointer, so
that "the lowest stack address" can be trusted.
"""

from __future__ import annotations

from typing import NamedTuple

from bpfchain.verify.static.insns import (
    ADD,
    AND,
    ARSH,
    CLASS_ALU64,
    DIV,
    END,
    LSH,
    MOD,
    MOV,
    MUL,
    NEG,
    OR,
    REGISTER_SOURCE,
    RSH,
    SUB,
    XOR,
    Insn,
    signed,
)

__all__ = [
    "CONTEXT", "FAR", "MASK64", "Code", "MapOf", "Num", "Stack", "Value", "alu", "join", "maybe",
    "number", "widen",
]  # fmt: skip

MASK64 = (1 << 64) - 1
MASK32 = (1 << 32) - 1
FAR = 1 << 40
"""Further than any offset: a bound that was given up."""


class Num(NamedTuple):
    """A number, unsigned, ``low`` to ``high``."""

    low: int
    high: int


class Stack(NamedTuple):
    """A pointer to r10 + ``low`` … ``high`` of the frame ``depth`` (0: the program's own).

    Not ``sure``: it is that, or no stack pointer at all.
    """

    depth: int
    low: int
    high: int
    sure: bool


class MapOf(NamedTuple):
    """The address of a map."""

    name: str


class Code(NamedTuple):
    """The address of a function: section, slot."""

    section: int
    slot: int
    code: bool = True


class _Context:
    """The pointer that the program was given in r1."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "CONTEXT"


CONTEXT = _Context()
Value = Num | Stack | MapOf | Code | _Context | None


def number(value: int) -> Num:
    """Exactly this number."""
    return Num(value & MASK64, value & MASK64)


def maybe(stack: Stack) -> Stack:
    """The same pointer, or something that is no stack pointer."""
    return stack._replace(sure=False)


def join(a: Value, b: Value) -> Value:
    """What can be either."""
    if a == b and type(a) is type(b):
        return a
    if isinstance(a, Stack):
        if isinstance(b, Stack):
            if a.depth != b.depth:  # two frames: as far as any of them goes
                return Stack(min(a.depth, b.depth), -FAR, FAR, False)
            return Stack(a.depth, min(a.low, b.low), max(a.high, b.high), a.sure and b.sure)
        return maybe(a)
    if isinstance(b, Stack):
        return maybe(b)
    if isinstance(a, Num) and isinstance(b, Num):
        return Num(min(a.low, b.low), max(a.high, b.high))
    return None


def widen(before: Value, after: Value) -> Value:
    """``after``, with every bound given up that moved since ``before``: loops come to an end."""
    if isinstance(before, Num) and isinstance(after, Num):
        return after if before == after else None
    if isinstance(before, Stack) and isinstance(after, Stack):
        low = after.low if after.low == before.low else -FAR
        high = after.high if after.high == before.high else FAR
        return Stack(after.depth, low, high, after.sure)
    return after


def alu(insn: Insn, left: Value, right: Value) -> Value:
    """The result of an ALU instruction; ``right`` is the operand, immediate or register."""
    operation, wide = insn.code & 0xF0, insn.code & 7 == CLASS_ALU64
    if operation == MOV:
        if insn.off and insn.code & REGISTER_SOURCE:
            return _sign_extended(insn, right, wide)
        return right if wide else _low32(right)
    if isinstance(left, Stack) or isinstance(right, Stack):
        return _moved(operation, left, right) if wide else None
    if operation == END:
        return Num(0, (1 << insn.imm) - 1) if insn.imm in (16, 32) else None
    if operation in (DIV, MOD) and insn.off:  # signed
        return None if wide else Num(0, MASK32)
    if not wide:
        left, right = _low32(left), _low32(right)
    result = _arithmetic(operation, left, right, 64 if wide else 32)
    return result if wide or result is not None else Num(0, MASK32)


def _low32(value: Value) -> Num:
    if isinstance(value, Num):
        if value.high <= MASK32:
            return value
        if value.low == value.high:
            return number(value.low & MASK32)
    return Num(0, MASK32)


def _sign_extended(insn: Insn, value: Value, wide: bool) -> Value:
    if isinstance(value, Num) and value.low == value.high and insn.off in (8, 16, 32):
        result = signed(value.low, insn.off)
        return number(result if wide else result & MASK32)
    return None if wide else Num(0, MASK32)


def _moved(operation: int, left: Value, right: Value) -> Value:
    """A stack pointer moved by a number: the verifier lets nobody use it after anything else."""
    if operation == ADD and isinstance(right, Stack) and not isinstance(left, Stack):
        left, right = right, left
    if operation not in (ADD, SUB) or not isinstance(left, Stack):
        return None
    if isinstance(right, Stack):  # the distance of two pointers, where both are that
        return None if left.sure and right.sure else Stack(left.depth, -FAR, FAR, False)
    low, high = -FAR, FAR
    if isinstance(right, Num) and (right.high >> 63 == right.low >> 63):
        low, high = signed(right.low), signed(right.high)
    if operation == SUB:
        low, high = -high, -low
    return Stack(
        left.depth, max(left.low + low, -FAR), min(left.high + high, FAR), left.sure
    )  # fmt: skip


def _arithmetic(operation: int, left: Value, right: Value, bits: int) -> Value:
    if isinstance(left, Num) and isinstance(right, Num):
        if left.low == left.high and right.low == right.high:
            return _exact(operation, left.low, right.low, bits)
        return _ranged(operation, left, right, bits)
    if operation == AND:
        for mask in (left, right):
            if isinstance(mask, Num) and mask.low == mask.high:
                return Num(0, mask.low)
    if isinstance(right, Num) and right.low == right.high:
        by = right.low
        if operation == RSH and by < bits:
            return Num(0, ((1 << bits) - 1) >> by)
        if operation == MOD and by:
            return Num(0, by - 1)
    return None


def _exact(operation: int, left: int, right: int, bits: int) -> Value:
    mask, shift = (1 << bits) - 1, right & (bits - 1)
    if operation in (DIV, MOD, NEG):  # signed kinds exist too; nobody divides constants
        return None
    result = {
        ADD: left + right, SUB: left - right, MUL: left * right, OR: left | right,
        AND: left & right, XOR: left ^ right, LSH: left << shift, RSH: left >> shift,
        ARSH: signed(left, bits) >> shift,
    }.get(operation)  # fmt: skip
    return None if result is None else number(result & mask)


def _ranged(operation: int, left: Num, right: Num, bits: int) -> Value:
    mask = (1 << bits) - 1
    result: Num | None = None
    if operation == ADD:
        result = Num(left.low + right.low, left.high + right.high)
    elif operation == SUB and left.low >= right.high:
        result = Num(left.low - right.high, left.high - right.low)
    elif operation == MUL:
        result = Num(left.low * right.low, left.high * right.high)
    elif operation == AND:
        result = Num(0, min(left.high, right.high))
    elif operation in (OR, XOR):
        result = Num(0, (1 << max(left.high.bit_length(), right.high.bit_length())) - 1)
    elif right.low == right.high and right.low < bits:
        if operation == LSH:
            result = Num(left.low << right.low, left.high << right.low)
        elif operation == RSH:
            result = Num(left.low >> right.low, left.high >> right.low)
        elif operation == MOD and right.low:
            result = Num(0, right.low - 1)
    return result if result is not None and result.high <= mask else None

"""Symbolic execution of added instructions: every path from a start to where the link ends.

Numbers are Python integers as long as they are constants, else z3 bit-vectors of 64 bits; pointers
are tagged, so "r1 is the context" is a fact of the path and not a guess. Added code is small and has
no loops; anything that it may not do ends the path as a ``Fault``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bpfchain.verify.static import insns as i
from bpfchain.verify.static.insns import FRAME, MAX_STACK, WIDTHS, Insn, signed, text_of
from bpfchain.verify.static.signatures import MAP_LOOKUP, TAIL_CALL

__all__ = ["CONTEXT", "Address", "Called", "Code", "Path", "explore", "is_"]

MASK64 = (1 << 64) - 1
_MOST_PATHS = 4096


class Address(NamedTuple):
    """A pointer: ``kind`` is ``frame`` (r10 + offset), ``map`` (a map's address), ``value`` (the
    saved code's place in its map), ``maybe`` (that or null)."""

    kind: str
    name: str = ""
    offset: int = 0


CONTEXT = Address("context")
Value = Any
"""None (not readable), an Address, an int, or a z3 bit-vector of 64 bits."""


def is_(value: Value, address: Address) -> bool:
    """Whether a value is exactly this pointer (z3 terms must not be compared with ``==``)."""
    return isinstance(value, Address) and value == address


class Called(NamedTuple):
    """A tail call that was made: the registers, and what the saved code's map held then."""

    slot: int
    r1: Value
    r2: Value
    r3: Value
    saved: Value
    lost: bool
    """A lookup of the map had failed before."""


@dataclass(frozen=True)
class Code:
    """The added code of one entry: slots of one section, and what the relocations there name."""

    insns: tuple[Insn, ...]
    allowed: frozenset[int]
    """Slots where an added instruction begins."""
    maps: Mapping[int, str]
    """Slot of a ``lddw`` -> the map that its relocation names."""
    calls_body: frozenset[int] = frozenset()
    """Slots of calls that run the program's body as a function."""
    body: int = -1
    """Slot of the first instruction of a body in place: reaching it ends a path."""


@dataclass
class Path:
    """One way through the added code, as it is being followed."""

    slot: int
    registers: list[Value]
    cells: dict[int, tuple[int, Value]]
    """Offset from r10 -> (bytes, value) of what is known to lie on the stack."""
    conditions: list[Any] = field(default_factory=list)
    saved: Value = None
    """What the saved code's map holds now."""
    called: Called | None = None
    lost: bool = False
    """The last lookup of the map failed."""
    ends: str = ""
    """``exit``, ``body``, or ``fault``."""
    fault: tuple[str, str] = ("", "")
    """Rule and message of a fault."""
    visited: set[int] = field(default_factory=set)
    ran_body: bool = False

    def fork(self) -> Path:
        """An independent one."""
        return Path(
            self.slot, list(self.registers), dict(self.cells), list(self.conditions), self.saved,
            self.called, self.lost, self.ends, self.fault, set(self.visited), self.ran_body,
        )  # fmt: skip


class _Fault(Exception):  # noqa: N818 - it ends a path, it is no error of ours
    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


def explore(
    code: Code, start: Path, *, stores: bool, saved_map: str, body_result: Value = None
) -> Iterable[Path]:
    """Every path from ``start``. ``stores``: whether added code may write to the stack;
    ``body_result`` is what a call of the body returns."""
    run = _Run(code, stores, saved_map, body_result)
    work, count = [start], 0
    while work:
        path = work.pop()
        count += 1
        if count > _MOST_PATHS:
            path.ends, path.fault = "fault", ("added", "too many paths through the added code")
            yield path
            return
        try:
            run.follow(path, work)
        except _Forked:
            continue
        except _Fault as fault:
            path.ends, path.fault = "fault", (fault.rule, str(fault))
        yield path


class _Run:
    def __init__(self, code: Code, stores: bool, saved_map: str, body_result: Value) -> None:
        self.code, self.stores, self.saved_map = code, stores, saved_map
        self.body_result = body_result

    def follow(self, path: Path, work: list[Path]) -> None:
        """Follow one path to its end; the other side of each branch is put into ``work``."""
        code = self.code
        while True:
            slot = path.slot
            if slot == code.body:
                path.ends = "body"
                return
            if slot not in code.allowed:
                raise _Fault("jump", "control leaves the added code")
            if slot in path.visited:
                raise _Fault("loop", "the added code goes round in a loop")
            path.visited.add(slot)
            insn = code.insns[slot]
            if insn.code == i.EXIT:
                self._read(path, 0)
                path.ends = "exit"
                return
            if i.is_ja(insn):
                path.slot = i.target(insn, slot)
            elif i.is_branch(insn):
                self._branch(insn, path, work)
            else:
                self._step(insn, path)
                path.slot = slot + (2 if insn.code == i.LDDW else 1)

    def _read(self, path: Path, register: int) -> Value:
        value = path.registers[register] if register <= FRAME else None
        if value is None:
            raise _Fault("register", f"r{register} is read and holds nothing that is known there")
        return value

    def _number(self, path: Path, register: int) -> Value:
        value = self._read(path, register)
        if isinstance(value, Address):
            raise _Fault("register", f"r{register} holds a pointer where a number is needed")
        return value

    def _branch(self, insn: Insn, path: Path, work: list[Path]) -> None:
        if insn.code & 0xF0 == i.OP_COND or insn.code & 0xF0 > i.JSLE:
            raise _Fault("instruction", f"{text_of(insn)} has no place in added code")
        goals = (i.target(insn, path.slot), path.slot + 1)
        left = self._read(path, insn.dst)
        register = bool(insn.code & i.REGISTER_SOURCE)
        right = self._number(path, insn.src) if register else insn.imm & MASK64
        operation = insn.code & 0xF0
        if isinstance(left, Address):
            zero = type(right) is int and right == 0
            null = left.kind == "maybe" and operation in (i.JEQ, i.JNE) and zero
            if not null or insn.code & 7 != i.CLASS_JMP:
                raise _Fault("register", f"r{insn.dst} holds a pointer and is compared")
            for goal, is_null in zip(goals, (operation == i.JEQ, operation == i.JNE), strict=True):
                way = path.fork()
                way.slot = goal
                way.lost = way.lost or is_null
                found = 0 if is_null else Address("value", left.name)
                way.registers = [found if is_(value, left) else value for value in way.registers]
                work.append(way)
            raise _Forked
        bits = 64 if insn.code & 7 == i.CLASS_JMP else 32
        holds = compare(operation, left, right, bits)
        if isinstance(holds, bool):
            path.slot = goals[0] if holds else goals[1]
            return
        import z3

        other = path.fork()
        other.slot = goals[1]
        other.conditions.append(z3.Not(holds))
        work.append(other)
        path.slot = goals[0]
        path.conditions.append(holds)

    def _step(self, insn: Insn, path: Path) -> None:
        kind = insn.code & 7
        if insn.dst > FRAME or insn.src > FRAME:
            raise _Fault("register", f"{text_of(insn)} names a register that does not exist")
        if insn.dst == FRAME and kind in (i.CLASS_ALU, i.CLASS_ALU64, i.CLASS_LDX, i.CLASS_LD):
            raise _Fault("register", "the frame pointer is written")
        if kind in (i.CLASS_ALU, i.CLASS_ALU64):
            path.registers[insn.dst] = self._alu(insn, path)
        elif insn.code == i.LDDW:
            path.registers[insn.dst] = self._wide(insn, path)
        elif kind == i.CLASS_LDX and insn.code & 0xE0 == i.MODE_MEM:
            path.registers[insn.dst] = self._load(insn, path)
        elif kind in (i.CLASS_ST, i.CLASS_STX) and insn.code & 0xE0 == i.MODE_MEM:
            self._store(insn, path)
        elif insn.code == i.CALL:
            self._call(insn, path)
        else:
            raise _Fault("instruction", f"{text_of(insn)} has no place in added code")

    def _alu(self, insn: Insn, path: Path) -> Value:
        operation, wide = insn.code & 0xF0, insn.code & 7 == i.CLASS_ALU64
        register = bool(insn.code & i.REGISTER_SOURCE)
        if operation in (i.END, i.NEG, i.DIV, i.MOD, i.MUL) or insn.off:
            raise _Fault("instruction", f"{text_of(insn)} has no place in added code")
        if operation == i.MOV:
            value = self._read(path, insn.src) if register else insn.imm & MASK64
            if wide:
                return value
            if isinstance(value, Address):
                raise _Fault("register", f"half a pointer is moved to r{insn.dst}")
            return arithmetic(i.OR, value, 0, 32)
        right = self._number(path, insn.src) if register else insn.imm & MASK64
        left = self._read(path, insn.dst)
        if isinstance(left, Address):
            if left.kind == "frame" and wide and operation in (i.ADD, i.SUB) and type(right) is int:
                by = signed(right) if operation == i.ADD else -signed(right)
                return left._replace(offset=left.offset + by)
            raise _Fault("register", f"{text_of(insn)} changes a pointer")
        return arithmetic(operation, left, right, 64 if wide else 32)

    def _wide(self, insn: Insn, path: Path) -> Value:
        name = self.code.maps.get(path.slot)
        second = self.code.insns[path.slot + 1]
        if name is not None:
            if insn.src or insn.imm or second != Insn(0, 0, 0, 0, 0):
                raise _Fault("slot-map", "the address of a map is not plain")
            return Address("map", name)
        if insn.src or second[:4] != (0, 0, 0, 0):
            raise _Fault("instruction", f"{text_of(insn)} has no place in added code")
        return (second.imm & 0xFFFF_FFFF) << 32 | insn.imm & 0xFFFF_FFFF

    def _load(self, insn: Insn, path: Path) -> Value:
        pointer, size = self._read(path, insn.src), WIDTHS[insn.code & 0x18]
        if isinstance(pointer, Address) and pointer.kind == "frame":
            known = path.cells.get(pointer.offset + insn.off)
            if known is None or known[0] != size or size != 8:
                raise _Fault(
                    "context-slot",
                    f"r10{pointer.offset + insn.off:+d} is read and holds nothing that is known there",
                )
            return known[1]
        if is_(pointer, Address("value", self.saved_map)) and insn.off == 0 and size == 8:
            return path.saved
        raise _Fault("load", f"{text_of(insn)} reads memory that is none of the link's")

    def _store(self, insn: Insn, path: Path) -> None:
        pointer, size = self._read(path, insn.dst), WIDTHS[insn.code & 0x18]
        register = insn.code & 7 == i.CLASS_STX
        value = self._read(path, insn.src) if register else insn.imm & MASK64
        if isinstance(pointer, Address) and pointer.kind == "frame" and self.stores:
            low = pointer.offset + insn.off
            if not -MAX_STACK <= low <= -size or low % size:
                raise _Fault("store", f"r10{low:+d} is outside of the stack or not aligned")
            for at in [a for a, (n, _) in path.cells.items() if a < low + size and low < a + n]:
                del path.cells[at]
            path.cells[low] = (size, value)
            return
        if is_(pointer, Address("value", self.saved_map)) and insn.off == 0 and size == 8:
            if isinstance(value, Address):
                raise _Fault("saved-code", "a pointer is written as the saved code")
            path.saved = value
            return
        raise _Fault("store", f"{text_of(insn)} writes to memory that is none of the link's")

    def _call(self, insn: Insn, path: Path) -> None:
        regs = path.registers
        if path.slot in self.code.calls_body:
            if not is_(regs[1], CONTEXT):
                raise _Fault("context", "r1 does not hold the context where the body is called")
            if path.ran_body:
                raise _Fault("body", "the body is called twice")
            path.ran_body = True
            regs[0:6] = [self.body_result, *[None] * 5]
            return
        if insn != Insn(i.CALL, 0, 0, 0, insn.imm) or insn.imm not in (TAIL_CALL, MAP_LOOKUP):
            raise _Fault("call", f"{text_of(insn)} has no place in added code")
        if insn.imm == TAIL_CALL:
            if path.called is not None:
                raise _Fault("tail-call", "a second tail call behind the first")
            path.called = Called(path.slot, regs[1], regs[2], regs[3], path.saved, path.lost)
            regs[0:6] = [None] * 6
            return
        key = self._read(path, 2)
        cell = path.cells.get(key.offset) if isinstance(key, Address) else None
        zero = cell is not None and cell[0] == 4 and type(cell[1]) is int and cell[1] == 0
        if not zero or not is_(self._read(path, 1), Address("map", self.saved_map)):
            raise _Fault("saved-code", "what is looked up is not entry 0 of the saved code's map")
        regs[0:6] = [Address("maybe", self.saved_map, path.slot), *[None] * 5]


class _Forked(_Fault):
    """The path went on as two others."""

    def __init__(self) -> None:
        super().__init__("", "")


def arithmetic(operation: int, left: Value, right: Value, bits: int) -> Value:
    """The result of an ALU operation, zero-extended from ``bits`` to 64."""
    if type(left) is int and type(right) is int:
        return _exactly(operation, left, right, bits)
    import z3

    a, b = _term(left, bits), _term(right, bits)
    if operation in (i.LSH, i.RSH, i.ARSH):
        b = b & (bits - 1)  # shifts count modulo the width
    result = {
        i.ADD: lambda: a + b, i.SUB: lambda: a - b, i.OR: lambda: a | b, i.AND: lambda: a & b,
        i.XOR: lambda: a ^ b, i.LSH: lambda: a << b, i.RSH: lambda: z3.LShR(a, b),
        i.ARSH: lambda: a >> b,
    }[operation]()  # fmt: skip
    return result if bits == 64 else z3.ZeroExt(32, result)


def _term(value: Value, bits: int) -> Any:
    import z3

    if type(value) is int:
        return z3.BitVecVal(value, bits)
    return value if bits == 64 else z3.Extract(31, 0, value)


def _exactly(operation: int, left: int, right: int, bits: int) -> int:
    mask = (1 << bits) - 1
    left, right, shift = left & mask, right & mask, right & (bits - 1)
    result = {
        i.ADD: left + right, i.SUB: left - right, i.OR: left | right, i.AND: left & right,
        i.XOR: left ^ right, i.LSH: left << shift, i.RSH: left >> shift,
        i.ARSH: signed(left, bits) >> shift,
    }[operation]  # fmt: skip
    return result & mask


def compare(operation: int, left: Value, right: Value, bits: int) -> Any:
    """Whether a compare holds: a bool where both sides are constants, else a z3 term."""
    if type(left) is int and type(right) is int:
        mask = (1 << bits) - 1
        left, right = left & mask, right & mask
        first, second = signed(left, bits), signed(right, bits)
        return {
            i.JEQ: left == right, i.JNE: left != right, i.JGT: left > right, i.JGE: left >= right,
            i.JLT: left < right, i.JLE: left <= right, i.JSET: bool(left & right),
            i.JSGT: first > second, i.JSGE: first >= second, i.JSLT: first < second,
            i.JSLE: first <= second,
        }[operation]  # fmt: skip
    import z3

    a, b = _term(left, bits), _term(right, bits)
    return {
        i.JEQ: lambda: a == b, i.JNE: lambda: a != b, i.JGT: lambda: z3.UGT(a, b),
        i.JGE: lambda: z3.UGE(a, b), i.JLT: lambda: z3.ULT(a, b), i.JLE: lambda: z3.ULE(a, b),
        i.JSET: lambda: (a & b) != 0, i.JSGT: lambda: a > b, i.JSGE: lambda: a >= b,
        i.JSLT: lambda: a < b, i.JSLE: lambda: a <= b,
    }[operation]()  # fmt: skip

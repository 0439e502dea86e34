"""A seeded writer of small random programs that the verifier mostly takes.

It writes straight code, branches, early exits, loops, calls of helpers and of functions, spills,
atomics of every kind (load-acquire and store-release too), and keeps track of what every register
and stack slot holds. It never reads stack that the program has not written.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from support.objbuild import insn, lddw

__all__ = ["BY_POINTER", "VALUE_SIZE", "Writer"]

ALU64, ALU32, JMP, JMP32 = 7, 4, 5, 6
DW, W, H, B = 0x18, 0x00, 0x08, 0x10
SIZES = {DW: 8, W: 4, H: 2, B: 1}
SCALAR, CTX, VALUE = "scalar", "context", "map value"
VALUE_SIZE = 64
"""Bytes of a value of the one map, an array of 4."""
BY_POINTER = 5
"""The instruction of the functions where the second begins (see test_random_programs)."""
FIELDS = {"xdp": (12, 16), "tc": (0, 4, 8, 32, 40, 44)}
"""Context fields that can be read: no pointers, the same in each run."""

Kind = str | int
"""What a register or stack slot holds: one of the three above, or for a stack pointer its offset."""


@dataclass
class State:
    """What the generator knows at a place."""

    regs: dict[int, Kind] = field(default_factory=lambda: {1: CTX, 10: 0})
    slots: dict[int, Kind] = field(default_factory=dict)

    def copy(self) -> State:
        return State(dict(self.regs), dict(self.slots))

    def join(self, other: State) -> None:
        """Keep what is the same on both ways."""
        self.regs = {k: v for k, v in self.regs.items() if other.regs.get(k) == v}
        self.slots = {k: v for k, v in self.slots.items() if other.slots.get(k) == v}


class Writer:
    """One random program (``code``, ``maps``, ``calls``: relocated slots) and its two functions."""

    def __init__(self, rng: random.Random, hook: str) -> None:
        self.rng, self.hook = rng, hook
        self.code: list[bytes] = []
        self.maps: list[int] = []
        self.calls: list[int] = []
        self.state = State()
        self.depth = 0
        # few registers and no stack, or all of them: every place to keep the context gets its turn
        saved = rng.sample((6, 7, 8, 9), rng.choice((0, 1, 2, 3, 4, 4)))
        self.free = [0, *rng.sample((2, 3, 4, 5), rng.randint(1, 4)), *saved]
        if rng.random() < 0.4:
            self.free.append(1)
        self.bottom = rng.choice((0, 8, 16, 64, 504, 512))
        self.calls_ok = bool(saved) and rng.random() < 0.7
        self.codes = (0, 1, 2, 3, 4) if hook == "xdp" else (-1, 0, 1, 2, 3, 7)

    # -- small pieces

    def emit(self, op: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> int:
        self.code.append(insn(op, dst, src, off, imm))
        return len(self.code) - 1

    def wide(self, dst: int, value: int, src: int = 0) -> None:
        both = lddw(dst, value, src)
        self.code += [both[:8], both[8:]]

    def patch(self, slot: int) -> None:
        """Let the jump at ``slot`` lead to what comes next."""
        old = self.code[slot]
        distance = len(self.code) - slot - 1
        self.code[slot] = old[:2] + distance.to_bytes(2, "little", signed=True) + old[4:]

    def having(self, *kinds: str) -> list[int]:
        return [
            reg for reg, kind in self.state.regs.items()
            if (kind if isinstance(kind, str) else "stack") in kinds and reg != 10
        ]  # fmt: skip

    def scalar(self) -> int:
        """A register with a number in it; one is made where there is none."""
        found = self.having(SCALAR)
        if found and self.rng.random() < 0.9:
            return self.rng.choice(found)
        return self.constant()

    def target(self) -> int:
        """A register to be overwritten; seldom the last one that holds the context."""
        choice = self.rng.choice(self.free)
        contexts = self.having(CTX)
        if contexts == [choice] and self.rng.random() < 0.7:
            choice = self.rng.choice([reg for reg in self.free if reg != choice] or [choice])
        return choice

    def set(self, reg: int, kind: Kind) -> int:
        self.state.regs[reg] = kind
        return reg

    def constant(self, reg: int | None = None, value: int | None = None) -> int:
        rng = self.rng
        reg = self.target() if reg is None else reg
        if value is None:
            value = rng.choice((*self.codes, rng.randint(-(1 << 31), (1 << 31) - 1), 8, -16))
        how = rng.randrange(4)
        if how == 0:
            self.wide(reg, value & (1 << 64) - 1 if rng.random() < 0.5 else value & 0xFFFF_FFFF)
        else:
            self.emit((ALU64, ALU32)[how == 1] | 0xB0, reg, imm=value)
        return self.set(reg, SCALAR)

    def slot(self, *, written: bool) -> int | None:
        """The offset of a stack slot of 8 bytes."""
        if written:
            found = [at for at, kind in self.state.slots.items() if kind == SCALAR]
            return self.rng.choice(found) if found else None
        if not self.bottom:
            return None
        return -8 * self.rng.choice((1, 2, self.bottom // 8, self.rng.randint(1, self.bottom // 8)))

    def base(self, at: int) -> tuple[int, int]:
        """A register and an offset that lead to a stack slot."""
        ways = [(10, at)] + [
            (reg, at - kind) for reg, kind in self.state.regs.items()
            if isinstance(kind, int) and reg != 10
        ]  # fmt: skip
        return self.rng.choice(ways)

    # -- one step of each kind

    def alu(self) -> None:
        rng = self.rng
        dst, klass = self.scalar(), rng.choice((ALU64, ALU32))
        operation = rng.choice((0x00, 0x10, 0x20, 0x40, 0x50, 0xA0, 0x60, 0x70, 0xC0, 0x30, 0x90))
        if operation in (0x60, 0x70, 0xC0):
            self.emit(klass | operation, dst, imm=rng.randrange(32))
        elif rng.random() < 0.5:
            self.emit(klass | operation | 8, dst, rng.choice(self.having(SCALAR)))
        else:
            self.emit(klass | operation, dst, imm=rng.choice((1, 3, 7, 255, 0x7FFF_FFFF, -5)))

    def unary(self) -> None:
        rng, dst = self.rng, self.scalar()
        how = rng.randrange(4)
        if how == 0:
            self.emit(rng.choice((ALU64, ALU32)) | 0x80, dst)  # negate
        elif how == 1:
            self.emit(ALU32 | 0xD0 | rng.choice((0, 8)), dst, imm=rng.choice((16, 32, 64)))
        elif how == 2:
            self.emit(ALU64 | 0xD0, dst, imm=rng.choice((16, 32, 64)))  # bswap
        else:  # movsx
            source = rng.choice(self.having(SCALAR))
            dst = self.set(self.target(), SCALAR)
            klass = rng.choice((ALU64, ALU32))
            self.emit(klass | 0xB8, dst, source, rng.choice((8, 16, 32)[: 2 + (klass == ALU64)]))

    def move(self) -> None:
        source = self.rng.choice(list(self.state.regs))
        kind = self.state.regs[source]
        dst = self.target()
        if kind == SCALAR and self.rng.random() < 0.4:
            self.emit(ALU32 | 0xB8, dst, source)
        else:
            self.emit(ALU64 | 0xB8, dst, source)
        self.set(dst, kind)

    def pointer(self) -> None:
        """A stack pointer, moved by a number or by a register that holds one."""
        if not self.bottom:
            return
        dst, by = self.target(), -8 * self.rng.randint(1, self.bottom // 8)
        others = [reg for reg in self.free if reg != dst]
        if self.rng.random() < 0.3 and others:
            other = self.constant(self.rng.choice(others), by)
            self.state.regs.pop(other)  # a constant from ldimm64 may be 32 bits: set it anew
            self.emit(ALU64 | 0xB0, other, imm=by)
            self.set(other, SCALAR)
            self.emit(ALU64 | 0xB8, dst, 10)
            self.emit(ALU64 | 0x08, dst, other)
        else:
            self.emit(ALU64 | 0xB8, dst, 10)
            self.emit(ALU64, dst, imm=by)
        self.set(dst, by)

    def store(self) -> None:
        at = self.slot(written=False)
        if at is None:
            return
        base, offset = self.base(at)
        if self.rng.random() < 0.2:
            self.emit(0x7A, base, off=offset, imm=self.rng.choice(self.codes))
            self.state.slots[at] = SCALAR
            return
        source = self.rng.choice(list(self.state.regs))
        release = self.rng.random() < 0.2 and self.state.regs[source] == SCALAR
        self.emit(0xDB if release else 0x7B, base, source, offset, 0x110 if release else 0)
        self.state.slots[at] = self.state.regs[source]

    def load(self) -> None:
        if not self.state.slots:
            return
        at = self.rng.choice(list(self.state.slots))
        kind = self.state.slots[at]
        (base, offset), dst = self.base(at), self.target()
        if kind != SCALAR:
            self.emit(0x79, dst, base, offset)
        elif self.rng.random() < 0.5:
            size = self.rng.choice((DW, W, H, B))
            self.emit(0xC3 | size, dst, base, offset, 0x100)  # load-acquire
        else:
            mode = self.rng.choice((0x60, 0x60, 0x80))
            size = self.rng.choice((DW, W, H, B) if mode == 0x60 else (W, H, B))
            self.emit(1 | mode | size, dst, base, offset)
        self.set(dst, kind)

    def overwrite(self, reg: int) -> None:
        """Put another number into a register, by an instruction of any kind that can."""
        rng, at = self.rng, self.slot(written=True)
        values, contexts = self.having(VALUE), [r for r in self.having(CTX) if r != reg]
        number = self.state.regs.get(reg) == SCALAR
        how = rng.randrange(5)
        if how == 0 and at is not None:
            base, offset = self.base(at)
            self.emit(0xC3 | rng.choice((DW, W, H, B)), reg, base, offset, 0x100)  # load-acquire
        elif how == 1 and at is not None:
            base, offset = self.base(at)
            self.emit(0x61 | rng.choice((DW, W, H, B)), reg, base, offset)
        elif how == 2 and number and values and reg not in values:
            self.emit(0xC3 | DW, values[0], reg, 8, rng.choice((0x01, 0xE1)))  # fetch
        elif how == 3 and number:
            self.emit(rng.choice((ALU64, ALU32)) | 0xB8, reg, reg, rng.choice((8, 16)))  # movsx
        elif contexts:
            self.emit(0x61, reg, contexts[0], rng.choice(FIELDS[self.hook]))
        else:
            return
        self.set(reg, SCALAR)

    def lose(self) -> None:
        """The context goes from one of the registers that hold it."""
        found = [reg for reg in self.having(CTX) if reg in self.free]
        if len(found) > 1 or (found and self.rng.random() < 0.3):
            self.overwrite(self.rng.choice(found))

    def atomic(self) -> None:
        values, at = self.having(VALUE), self.slot(written=True)
        if values and (at is None or self.rng.random() < 0.5):
            base, offset = self.rng.choice(values), 8 * self.rng.randrange(VALUE_SIZE // 8)
        elif at is not None:
            base, offset = self.base(at)
        else:
            return
        source = self.scalar()
        if self.state.regs.get(base) not in (VALUE, *self.stack_kinds()):
            return  # the number went to the register of the address
        size = self.rng.choice((DW, W))
        # what an atomic brings back from the stack is lost to the precision tracking of 6.18.44:
        # its verifier then cuts branches that the program takes (tc 7.0.1340 was such a one)
        fetches = (0x01, 0x41, 0xA1, 0xE1, 0xF1) if base in values else ()
        how = self.rng.choice((0x00, 0x40, 0x50, 0xA0, *fetches))
        if how == 0xF1 and (self.state.regs.get(0) != SCALAR or base == 0):
            how = 0xE1
        self.emit(0xC3 | size, base, source, offset, how)

    def stack_kinds(self) -> tuple[int, ...]:
        return tuple(kind for kind in self.state.regs.values() if isinstance(kind, int))

    def value(self) -> None:
        """A load from or a store to the map's value."""
        found = self.having(VALUE)
        if not found:
            return
        base, size = self.rng.choice(found), self.rng.choice((DW, W, H, B))
        offset = SIZES[size] * self.rng.randrange(VALUE_SIZE // SIZES[size])
        if self.rng.random() < 0.5:
            dst = self.target()
            self.emit(0x61 | size, dst, base, offset)
            self.set(dst, SCALAR)
        else:
            source = self.scalar()
            if self.state.regs.get(base) == VALUE:
                self.emit(0x63 | size, base, source, offset)

    def context(self) -> None:
        found = self.having(CTX)
        if found:
            dst = self.target()
            self.emit(0x61, dst, self.rng.choice(found), self.rng.choice(FIELDS[self.hook]))
            self.set(dst, SCALAR)

    # -- calls

    def clobber(self, result: Kind | None) -> None:
        for reg in range(6):
            self.state.regs.pop(reg, None)
        if result is not None:
            self.state.regs[0] = result

    def keep_context(self) -> None:
        """Before a call, mostly: the context to a register that survives it, or to the stack."""
        found, saved = self.having(CTX), [reg for reg in self.free if reg >= 6]
        if not found or any(reg >= 6 for reg in found) or self.rng.random() < 0.3:
            return
        if saved and self.rng.random() < 0.6:
            self.set(self.rng.choice(saved), CTX)
            self.emit(ALU64 | 0xB8, max(self.having(CTX)), found[0])
        elif self.bottom:
            self.emit(0x7B, 10, found[0], -8)
            self.state.slots[-8] = CTX

    def call(self) -> None:
        if not self.calls_ok:
            return
        self.keep_context()
        calls = (self.lookup, self.lookup, self.cpu, self.function, self.update, self.edit)
        self.rng.choice(calls)()

    def cpu(self) -> None:
        self.emit(0x85, imm=8)
        self.clobber(SCALAR)

    def key(self, reg: int) -> bool:
        """A pointer to a key of 4 bytes in ``reg``, and the map in r1."""
        if not self.bottom:
            return False
        at = -8 * self.rng.randint(1, self.bottom // 8)
        self.emit(0x62, 10, off=at, imm=self.rng.randrange(6))
        self.state.slots.pop(at, None)
        self.emit(ALU64 | 0xB8, reg, 10)
        self.emit(ALU64, reg, imm=at)
        self.maps.append(len(self.code))
        self.wide(1, 0)
        return True

    def lookup(self) -> None:
        if self.key(2):
            self.emit(0x85, imm=1)
            self.clobber(None)
            null = self.emit(0x55, 0, off=2)
            self.emit(ALU64 | 0xB0, 0, imm=self.rng.choice(self.codes))
            self.emit(0x95)
            self.patch(null)
            self.set(0, VALUE)

    def update(self) -> None:
        if self.bottom < VALUE_SIZE + 8:
            return
        start = -VALUE_SIZE - 8 * self.rng.randint(1, (self.bottom - VALUE_SIZE) // 8)
        for at in range(start, start + VALUE_SIZE, 8):
            if self.state.slots.get(at) != SCALAR:
                self.emit(0x7A, 10, off=at, imm=self.rng.choice(self.codes))
                self.state.slots[at] = SCALAR
        self.emit(ALU64 | 0xB8, 3, 10)
        self.emit(ALU64, 3, imm=start)
        self.emit(0x62, 10, off=start + VALUE_SIZE, imm=self.rng.randrange(4))
        self.state.slots.pop(start + VALUE_SIZE, None)
        self.emit(ALU64 | 0xB8, 2, 10)
        self.emit(ALU64, 2, imm=start + VALUE_SIZE)
        self.maps.append(len(self.code))
        self.wide(1, 0)
        self.emit(ALU64 | 0xB0, 4, imm=0)
        self.emit(0x85, imm=2)
        self.clobber(SCALAR)

    def function(self) -> None:
        """A call of one of the two functions: of a number, or of a pointer to 8 bytes of stack."""
        at = self.slot(written=True)
        if at is not None and self.rng.random() < 0.3:
            self.emit(ALU64 | 0xB8, 1, 10)
            self.emit(ALU64, 1, imm=at)
            where = BY_POINTER
        else:
            self.emit(ALU64 | 0xB8, 1, self.scalar())
            where = 0
        self.calls.append(len(self.code))
        self.emit(0x85, 0, 1, imm=where - 1)
        self.clobber(SCALAR)

    def edit(self) -> None:
        """Cut the packet (XDP), or write a byte of it (tc)."""
        found, at = self.having(CTX), self.slot(written=True)
        if not found or (self.hook == "tc" and at is None):
            return
        self.emit(ALU64 | 0xB8, 1, found[0])
        if self.hook == "xdp":
            self.emit(ALU64 | 0xB0, 2, imm=-self.rng.randint(1, 5))
            self.emit(0x85, imm=65)
        else:
            self.emit(ALU64 | 0xB0, 2, imm=self.rng.randrange(40))
            self.emit(ALU64 | 0xB8, 3, 10)
            self.emit(ALU64, 3, imm=at or 0)
            self.emit(ALU64 | 0xB0, 4, imm=1)
            self.emit(ALU64 | 0xB0, 5, imm=0)
            self.emit(0x85, imm=9)
        self.clobber(SCALAR)

    # -- control flow

    def leave(self) -> None:
        """An exit: with a constant, with what r0 holds, with dirty upper halves."""
        rng = self.rng
        numbers = self.having(SCALAR)
        if not numbers or rng.random() < 0.5:
            self.constant(0, rng.choice(self.codes))
            if rng.random() < 0.3 and len(self.free) > 1:  # through another register
                other = self.constant(rng.choice(self.free[1:]), rng.choice(self.codes))
                if rng.random() < 0.6:
                    self.overwrite(other)
                self.emit(rng.choice((ALU64, ALU32)) | 0xB8, 0, other)
        elif self.state.regs.get(0) != SCALAR or rng.random() < 0.5:
            self.emit(rng.choice((ALU64, ALU32)) | 0xB8, 0, rng.choice(numbers))
            if rng.random() < 0.6:
                self.emit(ALU64 | 0x50, 0, imm=rng.choice((3, 7)))
        self.emit(0x95)

    def branch(self) -> None:
        rng, dst = self.rng, self.scalar()
        klass, operation = rng.choice((JMP, JMP, JMP32)), rng.choice(range(0x10, 0xE0, 0x10))
        operation = 0x50 if operation in (0x80, 0x90) else operation
        if rng.random() < 0.3:
            jump = self.emit(klass | operation | 8, dst, rng.choice(self.having(SCALAR)))
        else:
            jump = self.emit(klass | operation, dst, imm=rng.choice((0, 1, 2, 60, -1)))
        before = self.state.copy()
        self.steps(rng.randint(1, 4))
        if rng.random() < 0.45:
            self.leave()
            self.patch(jump)
            self.state = before
            return
        if rng.random() < 0.5:
            over = self.emit(0x05)
            self.patch(jump)
            then, self.state = self.state, before
            self.steps(rng.randint(1, 3))
            self.patch(over)
            self.state.join(then)
        else:
            self.patch(jump)
            self.state.join(before)

    def loop(self) -> None:
        """A short loop on a counter; its body changes numbers only."""
        rng, numbers = self.rng, self.having(SCALAR)
        if len(self.free) < 2 or not numbers:
            return
        counter = rng.choice(self.free[1:])
        self.emit(ALU64 | 0xB0, counter, imm=0)
        self.set(counter, SCALAR)
        head = len(self.code)
        for reg in [reg for reg in self.having(SCALAR) if reg != counter][:2]:
            self.emit(ALU64 | rng.choice((0x00, 0xA0, 0x20)), reg, imm=rng.randint(1, 9))
        self.emit(ALU64, counter, imm=1)
        self.emit(JMP | 0xA0, counter, off=head - len(self.code) - 1, imm=rng.randint(2, 5))

    def steps(self, count: int) -> None:
        self.depth += 1
        kinds: list[Callable[[], object]] = [
            self.alu, self.alu, self.unary, self.move, self.move, self.pointer, self.store,
            self.store, self.load, self.load, self.atomic, self.value, self.context, self.call,
            self.call, self.constant, self.loop, self.lose,
        ]  # fmt: skip
        for _ in range(count):
            self.rng.choice(kinds if self.depth > 3 else [*kinds, self.branch, self.branch])()
        self.depth -= 1

    def program(self) -> None:
        back = None
        if self.rng.random() < 0.15:  # the last instruction is a jump back to an exit
            start = self.emit(0x05)
            back = len(self.code)
            self.emit(ALU64 | 0xB0, 0, imm=self.rng.choice(self.codes))
            self.emit(0x95)
            self.patch(start)
        self.steps(self.rng.choice((0, 3, 8, 14, 25, 40)))
        if back is None:
            self.leave()
        elif self.rng.random() < 0.5:
            self.emit(0x05, off=back - len(self.code) - 1)
        else:
            self.emit(0x06, imm=back - len(self.code) - 1)  # gotol

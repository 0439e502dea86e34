"""The checker's own dataflow over a program: what its registers and stack hold, wherever it can go.

One abstract run serves three questions: what is known at every ``exit`` (``added``), how far down the
stack anything reaches (``reach``), and which stack bytes are read before they are written
(``residue``). Functions and callbacks are followed with the arguments they are given. The first run
merges all paths; where it finds bytes that may not have been written, a second one follows paths one
by one, as the verifier does, within a budget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

from bpfchain.verify.static import insns as i
from bpfchain.verify.static.align import code_target
from bpfchain.verify.static.insns import FRAME, MAX_STACK, WIDTHS, Insn
from bpfchain.verify.static.model import Function, Obj, Unreadable
from bpfchain.verify.static.signatures import (
    CALLBACKS,
    HELPERS,
    KNOWN_HELPERS,
    TAIL_CALL,
    Argument,
)
from bpfchain.verify.static.values import (
    CONTEXT,
    FAR,
    MASK64,
    Code,
    MapOf,
    Num,
    Stack,
    Value,
    alu,
    join,
    maybe,
    number,
    widen,
)

__all__ = ["Facts", "Read", "State", "Unwritten", "analyse"]

_FRAMES = 8
"""MAX_CALL_FRAMES of the verifier."""
_MOST_BLOCKS = 100_000
"""Blocks that one run follows, and ten for each instruction of the object: functions that call functions with a stack pointer, level by level, are
run anew at each call, as the verifier does, and it gives up as well (a million instructions)."""
_JOINS = 4
"""Times that a place may be reached with more before bounds are given up."""
_VISITS, _COMPARED = 128, 8
"""By path: times that a place is visited with more known each time; with how many of the last
visits a new one is compared."""
_KFUNC_OBJECT = 24
"""Bytes that a kernel function is taken to initialise behind a stack pointer (iterators, dynptrs)."""


class Unwritten(NamedTuple):
    """Bytes of a frame that an instruction reads and that may not have been written."""

    section: int
    slot: int
    offset: int
    size: int
    how: str


@dataclass(frozen=True, slots=True)
class Read:
    """How an access is described: by a load, or by the helper that makes it."""

    section: int
    slot: int
    how: str


class _Frame:
    """A stack frame: values of 8 bytes at known offsets, and which bytes have been written."""

    __slots__ = ("cells", "written")

    def __init__(self, cells: dict[int, Value] | None = None, written: int = 0) -> None:
        self.cells: dict[int, Value] = {} if cells is None else cells
        self.written = written

    def copy(self) -> _Frame:
        return _Frame(dict(self.cells), self.written)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Frame)
            and self.written == other.written
            and self.cells == other.cells
        )

    __hash__ = None  # type: ignore[assignment]


class State:
    """Registers r0 to r10 and the frames from the program's own inwards."""

    __slots__ = ("frames", "registers")

    def __init__(self, registers: list[Value], frames: list[_Frame]) -> None:
        self.registers, self.frames = registers, frames

    def copy(self) -> State:
        """An independent one."""
        return State(list(self.registers), [frame.copy() for frame in self.frames])

    def cell(self, offset: int) -> Value:
        """What the 8 bytes at r10 + offset of the program's own frame hold."""
        return self.frames[0].cells.get(offset)


def _join_frames(a: _Frame, b: _Frame) -> _Frame:
    cells: dict[int, Value] = {}
    for offset in a.cells.keys() | b.cells.keys():
        value = join(a.cells.get(offset), b.cells.get(offset))
        if value is not None:
            cells[offset] = value
    return _Frame(cells, a.written & b.written)


def _join_states(a: State, b: State) -> State:
    registers = [x if x is y else join(x, y) for x, y in zip(a.registers, b.registers, strict=True)]
    frames = [_join_frames(x, y) for x, y in zip(a.frames, b.frames, strict=True)]
    return State(registers, frames)


def _widen_states(before: State, after: State) -> State:
    registers = [widen(x, y) for x, y in zip(before.registers, after.registers, strict=True)]
    frames = []
    for x, y in zip(before.frames, after.frames, strict=True):
        cells = {offset: widen(x.cells.get(offset), value) for offset, value in y.cells.items()}
        frames.append(_Frame({k: v for k, v in cells.items() if v is not None}, y.written))
    return State(registers, frames)


def _same(a: State, b: State) -> bool:
    return a.registers == b.registers and a.frames == b.frames


def _covers(general: State, special: State) -> bool:
    """Whether everything in ``special`` is already allowed by ``general``."""
    for x, y in zip(general.registers, special.registers, strict=True):
        if x != y and join(x, y) != x:
            return False
    for f, g in zip(general.frames, special.frames, strict=True):
        if f.written & ~g.written or any(
            join(value, g.cells.get(offset)) != value for offset, value in f.cells.items()
        ):
            return False
        if any(isinstance(v, Stack) and offset not in f.cells for offset, v in g.cells.items()):
            return False
    return True


@dataclass(frozen=True)
class Facts:
    """What the runs found out."""

    exits: Mapping[int, State]
    """Slot of each reachable ``exit`` of the program (from its start) -> what is known there."""
    lowest: int
    """Lowest offset from the program's r10 that anything reaches; -FAR or less: not bounded."""
    lowest_at: tuple[int, int] | None
    """(section, slot) of the instruction that reaches it."""
    unwritten: tuple[Unwritten, ...] = ()
    leaves: tuple[tuple[int, Value], ...] = ()
    """Other ways out of the program, past its exits: slot (from its start) and the code."""
    throws: bool = False
    """It, or a function that it calls, can leave by ``bpf_throw``: past any wrapper."""


@dataclass(slots=True)
class _Shape:
    """A function cut into blocks."""

    insns: tuple[Insn, ...]
    base: int
    """Slot of its start in the section."""
    ends: dict[int, int] = field(default_factory=dict)
    """Block's first slot -> slot behind its last instruction."""


def analyse(
    obj: Obj,
    program: Function,
    *,
    kept: Mapping[int, Value] | None = None,
    cells: Mapping[int, Value] | None = None,
    adjusted: Mapping[int, frozenset[int]] | None = None,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    budget: int = 8_000,
) -> Facts:
    """Run the program's body in the abstract.

    ``kept`` and ``cells`` are registers and stack slots (offset from r10) that hold something when
    it begins. ``adjusted`` are, per section, the slots to which CO-RE relocations apply: what the
    loader writes there is not known. ``sizes`` are key and value size of the maps, by name.
    ``budget`` bounds the second run, in blocks. Raises Unreadable for what is no program.
    """
    run = _Run(obj, adjusted or {}, sizes or {})
    registers: list[Value] = [None] * 11
    registers[1] = CONTEXT
    registers[FRAME] = Stack(0, 0, 0, True)
    for register, value in (kept or {}).items():
        registers[register] = value
    start = State(registers, [_Frame(dict(cells or {}))])
    for _ in range(4 * _FRAMES):  # every frame's bound is given up the second time
        run.escaped_more = False
        exits = run.function(program, start.copy(), 0)
        if not run.escaped_more:
            break
        run.found.clear()
        run.returns.clear()
    unwritten = tuple(run.found.values())
    if unwritten and budget:
        paths = _Run(obj, adjusted or {}, sizes or {})
        paths.escaped, paths.budget, paths.by_path = dict(run.escaped), budget, True
        paths.function(program, start.copy(), 0)
        if paths.budget > 0:  # all paths were followed
            unwritten = tuple(paths.found.values())
    return Facts(
        {slot - program.start: state for slot, state in exits.items()},
        run.lowest, run.lowest_at, tuple(sorted(unwritten)),
        tuple((slot - program.start, value) for slot, value in sorted(run.leaves.items())),
        run.throws,
    )  # fmt: skip


class _Run:
    """One abstract run of a program and all that it calls."""

    def __init__(
        self,
        obj: Obj,
        adjusted: Mapping[int, frozenset[int]],
        sizes: Mapping[str, tuple[int, int]],
    ) -> None:
        self.obj, self.adjusted, self.sizes = obj, adjusted, sizes
        self.lowest, self.lowest_at = 0, None  # type: int, tuple[int, int] | None
        self.escaped: dict[int, int] = {}
        self.escaped_more = False
        self.found: dict[tuple[int, int], Unwritten] = {}
        self.shapes: dict[tuple[int, int], _Shape] = {}
        self.returns: dict[tuple[object, ...], Value] = {}
        self.leaves: dict[int, Value] = {}
        self.throws = False
        self.by_path = False
        self.budget = 1
        self.blocks = _MOST_BLOCKS + 10 * sum(len(s.data) // i.SLOT for s in obj.executable)

    # control flow

    def function(self, function: Function, state: State, depth: int) -> dict[int, State]:
        """Run a function; its exits' slots (in the section) with what holds there."""
        shape = self._shape(function)
        if not shape.insns:
            return {}
        if self.by_path:
            return self._paths(function, shape, state, depth)
        known: dict[int, State] = {0: state}
        joins: dict[int, int] = {}
        exits: dict[int, State] = {}
        work, queued = [0], {0}
        while work:
            block = heappop(work)
            queued.discard(block)
            for goal, out in self._block(function, shape, block, known[block].copy(), depth, exits):
                if goal not in shape.ends:
                    continue
                before = known.get(goal)
                if before is not None:
                    merged = _join_states(before, out)
                    joins[goal] = joins.get(goal, 0) + 1
                    if joins[goal] > _JOINS:
                        merged = _widen_states(before, merged)
                    if _same(merged, before):
                        continue
                    known[goal] = merged
                else:
                    known[goal] = out
                if goal not in queued:
                    queued.add(goal)
                    heappush(work, goal)
        return exits

    def _paths(
        self, function: Function, shape: _Shape, state: State, depth: int
    ) -> dict[int, State]:
        """The same, every path for itself, as long as the budget lasts."""
        exits: dict[int, State] = {}
        seen: dict[int, list[State]] = {}
        work: list[tuple[int, State]] = [(0, state)]
        while work and self.budget > 0:
            block, now = work.pop()
            if block not in shape.ends:
                continue
            before = seen.setdefault(block, [])
            if any(_covers(other, now) for other in before[-_COMPARED:]):
                continue
            self.budget -= 1
            if len(before) > _VISITS:  # a loop that counts too far: what it changes is given up
                now = _widen_states(before[-1], _join_states(before[-1], now))
            before.append(now)
            work += self._block(function, shape, block, now.copy(), depth, exits)
        return exits

    def _shape(self, function: Function) -> _Shape:
        key = (function.section, function.start)
        shape = self.shapes.get(key)
        if shape is None:
            code = self.obj.insns(function.section)[function.start : function.end]
            shape = self.shapes[key] = _Shape(code, function.start)
            leaders = {0}
            for at, insn in enumerate(code):
                if insn.code == i.EXIT or i.is_branch(insn):
                    leaders.add(at + 1)
                    leaders.update(i.successors(code, at))
            order = sorted(slot for slot in leaders if 0 <= slot < len(code))
            shape.ends = dict(zip(order, [*order[1:], len(code)], strict=True))
        return shape

    def _block(
        self,
        function: Function,
        shape: _Shape,
        block: int,
        state: State,
        depth: int,
        exits: dict[int, State],
    ) -> list[tuple[int, State]]:
        """Run one block; where control goes on, and with what."""
        self.blocks -= 1
        if self.blocks < 0:
            raise Unreadable(f"function {function.name}: too many ways through what is called")
        at, end = block, shape.ends[block]
        code = shape.insns
        section = function.section
        adjusted = self.adjusted.get(section, frozenset())
        while at < end:
            insn = code[at]
            slot = shape.base + at
            if insn.dst > FRAME or (insn.src > FRAME and insn.code != i.LDDW):
                name = self.obj.sections[section].name
                raise Unreadable(f"instruction {name}+{slot} names a register that does not exist")
            if insn.code == i.GOTOX:
                name = self.obj.sections[section].name
                raise Unreadable(f"instruction {name}+{slot} jumps to where a register says")
            if insn.code == i.EXIT:
                known = exits.get(slot)
                exits[slot] = state if known is None else _join_states(known, state)
                return []
            if i.is_branch(insn):
                return self._branch(code, at, state, slot in adjusted)
            self._step(insn, section, slot, state, depth, slot in adjusted)
            at += 2 if insn.code == i.LDDW else 1
        return [(at, state)]

    def _branch(
        self, code: tuple[Insn, ...], at: int, state: State, adjusted: bool
    ) -> list[tuple[int, State]]:
        insn = code[at]
        goals = i.successors(code, at)
        if i.is_ja(insn) or len(goals) == 1 or insn.code == i.MAY_GOTO or adjusted:
            return [(goal, state.copy()) for goal in goals]
        register = bool(insn.code & i.REGISTER_SOURCE)
        right = state.registers[insn.src] if register else number(insn.imm)
        ways = []
        for goal, taken in zip(goals, (False, True), strict=True):
            out = state.copy()
            if _refine(insn, out, right, taken) or not self.by_path:
                ways.append((goal, out))
        return ways

    # instructions

    def _step(
        self, insn: Insn, section: int, slot: int, state: State, depth: int, adjusted: bool
    ) -> None:
        regs = state.registers
        kind = insn.code & 7
        if kind in (i.CLASS_ALU, i.CLASS_ALU64):
            right = regs[insn.src] if insn.code & i.REGISTER_SOURCE else number(insn.imm)
            left = regs[insn.dst]
            if adjusted and not (self.by_path and insn.imm > 1):
                # by path, sizes and offsets are taken as the object's own types have them (0 and 1
                # are answers to "does it exist", and may be either)
                right = None if not isinstance(right, Stack) else maybe(right)
            regs[insn.dst] = alu(insn, left, right)
        elif kind == i.CLASS_LDX:
            read = Read(section, slot, "load")
            size = WIDTHS[insn.code & 0x18]
            signed_load = insn.code & 0xE0 == i.MODE_MEMSX
            value = self._load(state, read, regs[insn.src], insn.off, size, adjusted)
            regs[insn.dst] = None if signed_load else value
        elif kind == i.CLASS_ST:
            size = WIDTHS[insn.code & 0x18]
            value = number(insn.imm) if not adjusted else None
            self._store(state, (section, slot), regs[insn.dst], insn.off, size, value, adjusted)
        elif kind == i.CLASS_STX:
            self._stx(insn, section, slot, state, adjusted)
        elif insn.code == i.LDDW:
            regs[insn.dst] = self._wide(section, slot, adjusted)
        elif kind == i.CLASS_LD:
            if depth == 0:  # a load beyond the packet leaves the program with 0
                self.leaves[slot] = number(0)
            regs[0:6] = [None] * 6
        elif insn.code == i.CALL:
            self._call(insn, section, slot, state, depth)
        elif insn.code == i.CALLX:
            self._unknown_callee(state, (section, slot))
            regs[0:6] = [None] * 6

    def _stx(self, insn: Insn, section: int, slot: int, state: State, adjusted: bool) -> None:
        regs, size = state.registers, WIDTHS[insn.code & 0x18]
        place = (section, slot)
        if insn.code & 0xE0 != i.MODE_ATOMIC or insn.imm == i.ATOMIC_STORE_RELEASE:
            value = regs[insn.src]
            self._store(state, place, regs[insn.dst], insn.off, size, value, adjusted)
            return
        read = Read(section, slot, "load")
        if insn.imm == i.ATOMIC_LOAD_ACQUIRE:
            regs[insn.dst] = self._load(state, read, regs[insn.src], insn.off, size, adjusted)
            return
        loaded = self._load(state, read, regs[insn.dst], insn.off, size, adjusted)
        stored = regs[insn.src]
        if isinstance(stored, Stack):
            self._escape(stored)
        self._store(state, place, regs[insn.dst], insn.off, size, None, adjusted)
        if insn.imm == i.ATOMIC_CMPXCHG:
            regs[0] = loaded
        elif insn.imm & i.ATOMIC_FETCH:
            regs[insn.src] = loaded

    def _wide(self, section: int, slot: int, adjusted: bool) -> Value:
        insns = self.obj.insns(section)
        insn = insns[slot]
        target = code_target(self.obj, section, slot)
        if target is not None:
            return Code(target[0], target[1] // i.SLOT)
        item = self.obj.relocation_at(section, slot)
        if item is not None:
            symbol = self.obj.symbols[item.symbol]
            return MapOf(symbol.name) if symbol.name in self.sizes else None
        if insn.src or adjusted or slot + 1 >= len(insns):
            return None
        return number((insns[slot + 1].imm & 0xFFFF_FFFF) << 32 | insn.imm & 0xFFFF_FFFF)

    # calls

    def _call(self, insn: Insn, section: int, slot: int, state: State, depth: int) -> None:
        regs, place = state.registers, (section, slot)
        target = code_target(self.obj, section, slot)
        result: Value = None
        if target is not None:
            result = self._run_function(target[0], target[1] // i.SLOT, state, depth, place)
        elif insn.src == i.CALL_HELPER and self.obj.relocation_at(section, slot) is None:
            if insn.imm == TAIL_CALL and depth == 0:
                self.leaves[slot] = None
            self._helper(insn.imm, section, slot, state, depth)
        else:
            item = self.obj.relocation_at(section, slot)
            if item is not None and self.obj.symbols[item.symbol].name == "bpf_throw":
                self.throws = True
                if depth == 0:
                    self.leaves[slot] = None
            self._kfunc(state, place)
        regs[0:6] = [None] * 6
        regs[0] = result

    def _run_function(
        self, section: int, start: int, state: State, depth: int, place: tuple[int, int]
    ) -> Value:
        """Run a function that is called here; the frames are changed, its result is returned."""
        callee = next((f for f in self.obj.functions.get(section, ()) if f.start == start), None)
        if callee is None or depth + 1 >= _FRAMES:
            self._unknown_callee(state, place)
            return None
        arguments: list[Value] = state.registers[1:6]
        frames = any(isinstance(value, Stack) for value in arguments)
        key = (section, start, *arguments)
        if not frames and key in self.returns:
            return self.returns[key]
        registers: list[Value] = [None, *arguments, *[None] * 4, Stack(depth + 1, 0, 0, True)]
        inner = State(registers, [*(frame.copy() for frame in state.frames), _Frame()])
        ends = list(self.function(callee, inner, depth + 1).values())
        if not ends:
            return None
        joined = ends[0]
        for end in ends[1:]:
            joined = _join_states(joined, end)
        result = joined.registers[0]
        if isinstance(result, Stack) and result.depth > depth:
            result = None
        state.frames = joined.frames[:-1]
        for frame in state.frames:  # pointers to the frame that is gone
            for offset, value in list(frame.cells.items()):
                if isinstance(value, Stack) and value.depth > depth:
                    del frame.cells[offset]
        if not frames:
            self.returns[key] = result
        return result

    def _helper(self, number_: int, section: int, slot: int, state: State, depth: int) -> None:
        regs = state.registers
        callback = CALLBACKS.get(number_)
        if callback is not None:
            self._callback(callback.function, callback.context, callback.arrives, state, depth,
                           (section, slot))  # fmt: skip
            return
        for value in regs[1:6]:
            if isinstance(value, Stack):
                self._touch(value, 0, (section, slot))
        helper = HELPERS.get(number_)
        if helper is None:
            if number_ > KNOWN_HELPERS:  # what a later kernel added can write anywhere behind
                self._kfunc(state, (section, slot))
            return
        read = Read(section, slot, f"bpf_{helper.name}")
        spans = [(argument, *self._extent(argument, regs)) for argument in helper.memory]
        for argument, _, most in spans:
            pointer = regs[argument.register]
            if argument.reads and isinstance(pointer, Stack):
                self._read_bytes(state, read, pointer, 0, most)
        for argument, least, most in spans:
            pointer = regs[argument.register]
            if argument.writes and isinstance(pointer, Stack):
                self._write_bytes(state, pointer, 0, least, self._reach(argument, regs, most))

    def _extent(self, argument: Argument, regs: list[Value]) -> tuple[int, int]:
        """How many bytes a helper touches at least and at most, as far as that is known."""
        if argument.length:
            size = regs[argument.length]
            if not isinstance(size, Num):
                return 0, 0
            return min(size.low, MAX_STACK), size.high if size.high <= MAX_STACK else size.low
        if isinstance(argument.size, int):
            return argument.size, argument.size
        held = regs[argument.map]
        known = self.sizes.get(held.name) if isinstance(held, MapOf) else None
        if known is None:
            return 0, 0
        size_ = known[0] if argument.size == "key" else known[1]
        return size_, size_

    def _reach(self, argument: Argument, regs: list[Value], most: int) -> int:
        """How many bytes a helper can have written: all of the stack where no bound is known."""
        if argument.length:
            size = regs[argument.length]
            return size.high if isinstance(size, Num) and size.high <= MAX_STACK else MAX_STACK
        return most or MAX_STACK

    def _callback(
        self, function: int, context: int, arrives: int, state: State, depth: int,
        place: tuple[int, int],
    ) -> None:  # fmt: skip
        """A function that a helper runs: no, one or many times."""
        regs = state.registers
        code = regs[function]
        given = regs[context] if context else None
        if isinstance(given, Stack):
            self._touch(given, 0, place)
        if not isinstance(code, Code):
            self._unknown_callee(state, place)
            return
        for passes in range(8):
            inner = State([None] * 11, [frame.copy() for frame in state.frames])
            if arrives:
                inner.registers[arrives] = given
            self._run_function(code.section, code.slot, inner, depth, place)
            joined = [_join_frames(a, b) for a, b in zip(state.frames, inner.frames, strict=True)]
            if joined == state.frames:
                return
            if passes > _JOINS:
                for frame, before in zip(joined, state.frames, strict=True):
                    frame.cells = {
                        k: v for k, v in frame.cells.items()
                        if before.cells.get(k) == v or isinstance(v, Stack)
                    }  # fmt: skip
                    for offset, value in frame.cells.items():
                        if isinstance(value, Stack):
                            frame.cells[offset] = Stack(value.depth, -FAR, FAR, False)
            state.frames = joined
        for frame in state.frames:  # it went on changing: no number is known any more
            frame.cells = {k: v for k, v in frame.cells.items() if isinstance(v, Stack)}

    def _kfunc(self, state: State, place: tuple[int, int]) -> None:
        """A kernel function: it works upwards from the pointers that it is given, or runs a
        function of the program with them."""
        if any(isinstance(value, Code) for value in state.registers[1:6]):
            self._unknown_callee(state, place)
            return
        for value in state.registers[1:6]:
            if isinstance(value, Stack):
                self._touch(value, 0, place)
                self._write_bytes(state, value, 0, _KFUNC_OBJECT, MAX_STACK)

    def _unknown_callee(self, state: State, place: tuple[int, int]) -> None:
        for value in state.registers[1:6]:
            if isinstance(value, Stack):
                self._touch(Stack(0, -FAR, FAR, False), 0, place)
                for frame in state.frames:  # a frame can hold pointers into others
                    frame.cells = {
                        k: maybe(v) for k, v in frame.cells.items() if isinstance(v, Stack)
                    }

    # memory

    def _touch(self, pointer: Stack, offset: int, place: tuple[int, int]) -> None:
        low = pointer.low + offset
        if (pointer.depth == 0 or low <= -FAR // 2) and low < self.lowest:
            self.lowest, self.lowest_at = low, place

    def _escape(self, pointer: Stack) -> None:
        """A stack pointer was stored where it is not followed."""
        known = self.escaped.get(pointer.depth)
        if known is None or pointer.low < known:
            self.escaped[pointer.depth] = pointer.low if known is None else -FAR
            self.escaped_more = True

    def _escaped_value(self) -> Value:
        value: Value = None
        for depth, low in self.escaped.items():
            value = join(value, Stack(depth, low, FAR, False))
        return value

    def _load(
        self, state: State, read: Read, pointer: Value, offset: int, size: int, adjusted: bool
    ) -> Value:
        narrow = Num(0, (1 << 8 * size) - 1)
        if not isinstance(pointer, Stack):
            # 32 bits of a context can be a whole pointer
            return narrow if size < 4 else None
        if adjusted and not self.by_path:
            pointer = Stack(pointer.depth, -FAR, FAR, pointer.sure)
        self._touch(pointer, offset, (read.section, read.slot))
        self._read_bytes(state, read, pointer, offset, size)
        if size < 8:
            return narrow if pointer.sure else None
        frame = state.frames[pointer.depth]
        low, high = pointer.low + offset, pointer.high + offset
        if low == high:
            value = frame.cells.get(low, self._escaped_value())
        else:
            value = self._escaped_value()
            for at, held in frame.cells.items():
                if low <= at <= high and isinstance(held, Stack):
                    value = maybe(held) if value is None else join(value, maybe(held))
        if pointer.sure or not isinstance(value, Stack):
            return value if pointer.sure else None
        return maybe(value)

    def _store(
        self, state: State, place: tuple[int, int], pointer: Value, offset: int, size: int,
        value: Value, adjusted: bool,
    ) -> None:  # fmt: skip
        if not isinstance(pointer, Stack):
            if isinstance(value, Stack):
                self._escape(value)
            return
        if adjusted and not self.by_path:
            pointer = Stack(pointer.depth, -FAR, FAR, pointer.sure)
        self._touch(pointer, offset, place)
        self._write_bytes(state, pointer, offset, size, size)
        low = pointer.low + offset
        if pointer.low == pointer.high and pointer.sure and size == 8:
            if value is not None:
                state.frames[pointer.depth].cells[low] = value
        elif isinstance(value, Stack):
            self._escape(value)

    def _read_bytes(self, state: State, read: Read, pointer: Stack, offset: int, size: int) -> None:
        if not size or pointer.depth >= len(state.frames):
            return
        low, high = pointer.low + offset, pointer.high + offset + size
        if low != high - size and not (low >= -MAX_STACK and high <= 0):
            low, high = -MAX_STACK, 0  # any of them
        wanted = _bytes(low, high - low)
        missing = wanted & ~state.frames[pointer.depth].written
        if missing:
            first = (missing & -missing).bit_length() - 1
            run = missing >> first
            count = (~run & (run + 1)).bit_length() - 1
            self.found.setdefault(
                (read.section, read.slot),
                Unwritten(read.section, read.slot, first - MAX_STACK, count, read.how),
            )

    def _write_bytes(
        self, state: State, pointer: Stack, offset: int, least: int, most: int
    ) -> None:
        if pointer.depth >= len(state.frames):
            return
        frame = state.frames[pointer.depth]
        low, high = pointer.low + offset, pointer.high + offset
        exact = low == high and pointer.sure
        if exact:
            frame.written |= _bytes(low, least)
        for at in [at for at in frame.cells if low - 8 < at < high + most]:
            held = frame.cells[at]
            if (exact and at < low + least and low < at + 8) or not isinstance(held, Stack):
                del frame.cells[at]
            else:
                frame.cells[at] = maybe(held)


def _bytes(low: int, size: int) -> int:
    """The bytes of a frame from an offset on, as a mask."""
    start, end = max(low, -MAX_STACK) + MAX_STACK, min(low + size, 0) + MAX_STACK
    return ((1 << end) - 1) & ~((1 << start) - 1) if end > start else 0


def _refine(insn: Insn, state: State, right: Value, taken: bool) -> bool:
    """Narrow what is known down one way of a compare; False where that way cannot be taken."""
    operation = insn.code & 0xF0
    left = state.registers[insn.dst]
    if isinstance(left, Stack) or not isinstance(right, Num):
        null = (operation == i.JEQ and taken) or (operation == i.JNE and not taken)
        if isinstance(left, Stack) and not left.sure and right == Num(0, 0) and null:
            state.registers[insn.dst] = number(0)
        return True
    if insn.code & 7 == i.CLASS_JMP32:
        small = isinstance(left, Num) and left.high < 1 << 31 and right.high < 1 << 31
        if not small:
            return True
    known = left if isinstance(left, Num) else Num(0, MASK64)
    narrowed = _narrow(operation, known, right, taken)
    if narrowed is None:
        return True
    if narrowed.low > narrowed.high:
        return False
    if isinstance(left, Num) or narrowed.high < 1 << 62 or narrowed.low == narrowed.high:
        state.registers[insn.dst] = narrowed
    return True


_OPPOSITE = {
    i.JEQ: i.JNE, i.JNE: i.JEQ, i.JGT: i.JLE, i.JLE: i.JGT, i.JGE: i.JLT, i.JLT: i.JGE,
    i.JSGT: i.JSLE, i.JSLE: i.JSGT, i.JSGE: i.JSLT, i.JSLT: i.JSGE,
}  # fmt: skip
_UNSIGNED = {i.JSGT: i.JGT, i.JSGE: i.JGE, i.JSLT: i.JLT, i.JSLE: i.JLE}


def _narrow(operation: int, left: Num, right: Num, taken: bool) -> Num | None:
    """The left side's range if the compare holds (or not); None: nothing is learnt."""
    if not taken:
        if operation not in _OPPOSITE:
            return None
        operation = _OPPOSITE[operation]
    if operation in _UNSIGNED:
        if left.high >> 63 or right.high >> 63:
            return None
        operation = _UNSIGNED[operation]
    low, high = left
    if operation == i.JEQ:
        return Num(max(low, right.low), min(high, right.high))
    if operation == i.JNE:
        if right.low == right.high:
            return Num(low + (low == right.low), high - (high == right.low))
        return None
    if operation == i.JGT:
        return Num(max(low, right.low + 1), high)
    if operation == i.JGE:
        return Num(max(low, right.low), high)
    if operation == i.JLT:
        return Num(low, min(high, right.high - 1))
    if operation == i.JLE:
        return Num(low, min(high, right.high))
    return None

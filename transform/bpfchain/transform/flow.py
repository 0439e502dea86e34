"""Dataflow over one function: what is known at its exits, and how far down its stack it reaches.

A forward analysis over all predecessors. A register holds a known constant, the context as it came
in, something derived from the frame pointer (with the lowest offset it can have), or anything.
The inline strategy asks it three things: which code each exit returns, where the context still is
there, and below which stack offset nothing of the body can ever read or write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count

from . import isa
from .codes import signed32
from .errors import RefusedError
from .isa import Insn

__all__ = ["Exit", "Flow", "analyse", "control_flow"]

STACK_SIZE = 512
"""Bytes of stack of one program (MAX_BPF_STACK)."""

_UNBOUNDED = -(1 << 40)
_PASSES = 3
"""Passes over the function before spilled stack pointers count as unbounded."""
_FRAME_POINTER = 10


@dataclass(frozen=True, slots=True)
class _Const:
    value: int
    """64 bits, unsigned."""


@dataclass(frozen=True, slots=True)
class _Stack:
    """Perhaps a stack pointer; if it is one, it does not lie below r10 + low."""

    low: int


class _Context:
    """The pointer that r1 held on entry, unchanged."""


_CONTEXT = _Context()
_Value = _Const | _Stack | _Context | None
_State = tuple[_Value, ...]


@dataclass(frozen=True, slots=True)
class Exit:
    """One reachable ``exit``: its slot, its code where it is a constant (signed 32 bits), and the
    registers that hold the untouched context there."""

    slot: int
    code: int | None
    context: frozenset[int]


@dataclass(frozen=True, slots=True)
class Flow:
    """What ``analyse`` found out."""

    exits: tuple[Exit, ...]
    lowest: int | None
    """Lowest offset from r10 that anything reaches; None where that is not bounded."""
    depth: int
    """Bytes of stack that it uses at least: ``-lowest`` where that is bounded."""
    unbounded_at: int | None
    """The slot at which the bound was lost."""
    registers: frozenset[int]
    """Registers that any instruction names."""
    calls: bool
    """Whether anything is called (r0 to r5 do not survive)."""


def control_flow(insns: list[Insn], *, what: str) -> list[tuple[int, ...]]:
    """Successors of each slot. Raises RefusedError where control leaves the function by a jump,
    lands in the middle of an instruction, or falls off the end."""
    begins = isa.starts(insns)
    count = len(insns)
    result: list[tuple[int, ...]] = []
    for slot, insn in enumerate(insns):
        if not begins[slot]:
            result.append(())
            continue
        if insn.dst > _FRAME_POINTER or (insn.src > _FRAME_POINTER and not insn.wide):
            raise RefusedError(f"{what}: instruction {slot} names a register that does not exist")
        after = slot + (2 if insn.wide else 1)
        if insn.opcode == isa.EXIT:
            result.append(())
            continue
        if insn.opcode == isa.GOTOX:
            raise RefusedError(
                f"{what}: instruction {slot} is an indirect jump: its targets are data"
            )
        targets: tuple[int, ...] = (after,)
        if insn.is_jump:
            goal = insn.target(slot)
            targets = (goal,) if insn.is_unconditional else (after, goal)
        for goal in targets:
            if goal == count and goal == after and not insn.is_jump:
                raise RefusedError(f"{what}: control falls off the end behind instruction {slot}")
            if not 0 <= goal < count or not begins[goal]:
                raise RefusedError(
                    f"{what}: instruction {slot} leads to {goal}, outside the program"
                )
        result.append(targets)
    return result


@dataclass(slots=True)
class _Reach:
    """The lowest stack offset seen so far, and what may be lying spilled in memory."""

    low: int = 0
    depth: int = 0
    at: int | None = None
    spilled: int | None = None
    fresh_spill: bool = field(default=False)

    def see(self, low: int, slot: int) -> None:
        if low >= -STACK_SIZE:
            self.depth = max(self.depth, -low)
        elif self.at is None:
            self.at = slot
        self.low = min(self.low, low)

    def spill(self, low: int) -> None:
        if low < -2 * STACK_SIZE:  # a pointer that sinks through memory would sink for ever
            low = _UNBOUNDED
        if self.spilled is None or low < self.spilled:
            self.spilled = low
            self.fresh_spill = True


def analyse(
    insns: list[Insn],
    *,
    what: str,
    relocated: Mapping[int, bool],
    adjusted: frozenset[int] = frozenset(),
) -> Flow:
    """Analyse one function.

    ``relocated`` are the slots a relocation applies to (its value: whether it gives the address of
    a function); ``adjusted`` those a CO-RE relocation applies to: the loader may change their
    immediate and offset, so nothing is known of them.
    """
    if not insns:
        raise RefusedError(f"{what}: there are no instructions")
    following = control_flow(insns, what=what)
    takes_callbacks = any(relocated.values()) or any(
        insn.wide and insn.src == isa.PSEUDO_FUNC for insn in insns
    )
    reach = _Reach()
    states: dict[int, _State] = {}
    for passes in count():
        if passes == _PASSES:  # a pointer that sinks a little with every pass: give its bound up
            reach.spilled = _UNBOUNDED
        reach.fresh_spill = False
        states = _fixpoint(insns, following, relocated, adjusted, takes_callbacks, reach)
        if not reach.fresh_spill:
            break
    exits = []
    for slot, state in sorted(states.items()):
        if insns[slot].opcode == isa.EXIT:
            r0 = state[0]
            code = signed32(r0.value) if isinstance(r0, _Const) else None
            held = frozenset(i for i in range(10) if state[i] is _CONTEXT)
            exits.append(Exit(slot, code, held))
    bounded = reach.low >= -STACK_SIZE
    return Flow(
        exits=tuple(exits),
        lowest=reach.low if bounded else None,
        depth=reach.depth,
        unbounded_at=None if bounded else reach.at,
        registers=_registers(insns),
        calls=any(insn.opcode in (isa.CALL, isa.CALLX) for insn in insns),
    )


def _registers(insns: list[Insn]) -> frozenset[int]:
    named: set[int] = set()
    for insn in insns:
        if insn.opcode in (isa.CALL, isa.EXIT, 0) or insn.is_unconditional:
            continue
        named.add(insn.dst)
        if not insn.wide:
            named.add(insn.src)
    # an instruction without a source register says r0 there; r0 is never free anyway
    return frozenset(named)


def _fixpoint(
    insns: list[Insn],
    following: list[tuple[int, ...]],
    relocated: Mapping[int, bool],
    adjusted: frozenset[int],
    takes_callbacks: bool,
    reach: _Reach,
) -> dict[int, _State]:
    entry: list[_Value] = [None] * 11
    entry[1] = _CONTEXT
    entry[_FRAME_POINTER] = _Stack(0)
    states: dict[int, _State] = {0: tuple(entry)}
    work = [0]
    while work:
        slot = work.pop()
        out = _step(insns, slot, states[slot], relocated, adjusted, takes_callbacks, reach)
        for goal in following[slot]:
            known = states.get(goal)
            merged = out if known is None else _merge(known, out)
            if known is None or merged != known:
                states[goal] = merged
                work.append(goal)
    return states


def _merge(left: _State, right: _State) -> _State:
    if left == right:
        return left
    return tuple(_join(a, b) for a, b in zip(left, right, strict=True))


def _join(a: _Value, b: _Value) -> _Value:
    if a == b:
        return a
    if isinstance(a, _Stack) or isinstance(b, _Stack):
        low = min(value.low for value in (a, b) if isinstance(value, _Stack))
        # a pointer that sinks round a loop would sink for ever: cut it off
        if low < -2 * STACK_SIZE:
            low = _UNBOUNDED
        return _Stack(low)
    return None


def _step(
    insns: list[Insn],
    slot: int,
    state: _State,
    relocated: Mapping[int, bool],
    adjusted: frozenset[int],
    takes_callbacks: bool,
    reach: _Reach,
) -> _State:
    insn = insns[slot]
    out = list(state)
    klass = insn.klass
    if klass == isa.STX and insn.opcode & 0xE0 == isa.ATOMIC and insn.imm == isa.LOAD_ACQUIRE:
        klass = isa.LDX  # it is written as a store, and loads
    moved_offset = slot in adjusted
    if klass in (isa.ALU64, isa.ALU32):
        out[insn.dst] = _alu(insn, state, slot, adjusted, relocated)
        value = out[insn.dst]
        if isinstance(value, _Stack):
            reach.see(value.low, slot)
    elif klass == isa.LDX:
        _touch(state[insn.src], insn.offset, moved_offset, slot, reach)
        # a 64-bit load may bring back a stack pointer that was stored before
        whole = insn.opcode & isa.SIZE == isa.DW and insn.opcode & 0xE0 != isa.MEMSX
        out[insn.dst] = _Stack(reach.spilled) if whole and reach.spilled is not None else None
    elif klass in (isa.ST, isa.STX):
        _touch(state[insn.dst], insn.offset, moved_offset, slot, reach)
        if klass == isa.STX:
            source = state[insn.src]
            if isinstance(source, _Stack):
                reach.spill(source.low)
            if insn.opcode & 0xE0 == isa.ATOMIC:  # atomic: fetches write the source register, or r0
                out[insn.src] = out[0] = (
                    _Stack(reach.spilled) if reach.spilled is not None else None
                )
    elif insn.wide:
        known = slot not in relocated and slot not in adjusted and insn.src == 0
        high = insns[slot + 1].imm & 0xFFFF_FFFF
        out[insn.dst] = _Const(high << 32 | insn.imm & 0xFFFF_FFFF) if known else None
    elif klass == isa.LD:  # LD_ABS, LD_IND: like a call
        out[0:6] = [None] * 6
    elif insn.opcode in (isa.CALL, isa.CALLX):
        _call(insn, state, slot, takes_callbacks, reach)
        out[0:6] = [None] * 6
    return tuple(out)


_CALLBACK_HELPERS = frozenset({164, 170, 180, 181, 209})
"""for_each_map_elem, timer_set_callback, find_vma, loop, user_ringbuf_drain."""


def _call(insn: Insn, state: _State, slot: int, takes_callbacks: bool, reach: _Reach) -> None:
    """A stack pointer handed to a helper is used upwards; handed to a function, anywhere."""
    plain_helper = insn.opcode == isa.CALL and insn.src == 0 and insn.imm not in _CALLBACK_HELPERS
    plain_kfunc = (
        insn.opcode == isa.CALL and insn.src == isa.PSEUDO_KFUNC_CALL and not takes_callbacks
    )
    for value in state[1:6]:
        if isinstance(value, _Stack):
            low = value.low if plain_helper or plain_kfunc else _UNBOUNDED
            reach.see(low, slot)


def _touch(base: _Value, offset: int, moved: bool, slot: int, reach: _Reach) -> None:
    if isinstance(base, _Stack):
        reach.see(_UNBOUNDED if moved else base.low + offset, slot)


def _alu(
    insn: Insn, state: _State, slot: int, adjusted: frozenset[int], relocated: Mapping[int, bool]
) -> _Value:
    operation, register = insn.opcode & 0xF0, bool(insn.opcode & 8)
    operand: _Value
    if register:
        operand = state[insn.src]
    elif slot in adjusted or slot in relocated:
        operand = None
    else:
        operand = _Const(insn.imm & 0xFFFF_FFFF_FFFF_FFFF)
    if operation == 0xB0:  # mov
        if register and insn.offset:  # movsx, addr_space_cast
            return None
        if insn.klass == isa.ALU64:
            return operand
        return _Const(operand.value & 0xFFFF_FFFF) if isinstance(operand, _Const) else None
    target = state[insn.dst]
    if operation not in (0x00, 0x10):
        return None  # the verifier lets nobody dereference the result
    if not isinstance(target, _Stack) and not (register and isinstance(operand, _Stack)):
        return None
    # add and sub move a stack pointer; by how much must be a constant
    if insn.klass == isa.ALU64 and isinstance(target, _Stack) and isinstance(operand, _Const):
        by = operand.value - (1 << 64) if operand.value >> 63 else operand.value
        return _Stack(target.low + (by if operation == 0x00 else -by))
    if operation == 0x00 and isinstance(target, _Const) and isinstance(operand, _Stack):
        by = target.value - (1 << 64) if target.value >> 63 else target.value
        return _Stack(operand.low + by)
    return _Stack(_UNBOUNDED)

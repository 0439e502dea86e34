"""A tiny interpreter for added code, to run telling codes one by one against ``verify.reference``.

It exists so that a mistake in the symbolic execution or in the predicates cannot hide: it shares
neither with them, nor with the engines. Pointers are numbers from ranges of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, cast

from bpfchain.transform.codes import CODE_MAX, CODE_MIN
from bpfchain.verify.reference import ReferenceLink, low32, step
from bpfchain.verify.static.insns import Insn
from bpfchain.verify.static.intent import Intent

__all__ = ["CONTEXT", "FRAME_TOP", "Outcome", "Stuck", "expected", "interesting", "run"]

CONTEXT, FRAME_TOP, VALUE, MAPS = 0xC0DE_0000_0010, 0x57AC_0000_0200, 0x5A7E_0000_0008, 0x3A90_0000
_STEPS = 4096
_SIZES = (4, 2, 1, 8)


class Stuck(Exception):  # noqa: N818 - the code did what it must not do
    """Why the code cannot go on."""


class Outcome(NamedTuple):
    """What one run did."""

    result: int | None
    """The result's low 32 bits, signed; None where it reached the body."""
    slot: int | None = None
    """The slot of the tail call that was made (and failed)."""
    saved: int = 0
    """What the saved code's map holds at the end."""


@dataclass(slots=True)
class _Machine:
    registers: list[int | None]
    memory: dict[int, int]
    """Bytes by address."""
    maps: Mapping[int, str]
    intent: Intent
    lookup_fails: bool
    slot: int | None = None
    body_result: int | None = None
    names: dict[int, str] = field(default_factory=dict)

    def get(self, register: int) -> int:
        value = self.registers[register]
        if value is None:
            raise Stuck(f"r{register} is not set")
        return value

    def load(self, address: int, size: int, order: str) -> int:
        try:
            raw = bytes(self.memory[address + n] for n in range(size))
        except KeyError:
            raise Stuck("reads what was not written") from None
        return int.from_bytes(raw, "little" if order == "<" else "big")

    def store(self, address: int, size: int, value: int, order: str) -> None:
        in_frame = FRAME_TOP - 512 <= address <= FRAME_TOP - size
        if not in_frame and not (address == VALUE and size == 8):
            raise Stuck("writes outside of its memory")
        raw = (value & (1 << 8 * size) - 1).to_bytes(size, "little" if order == "<" else "big")
        for n, byte in enumerate(raw):
            self.memory[address + n] = byte


def run(
    insns: tuple[Insn, ...],
    start: int,
    *,
    intent: Intent,
    order: str,
    maps: Mapping[int, str],
    registers: Mapping[int, int],
    cells: Mapping[int, int],
    body: int = -1,
    body_calls: frozenset[int] = frozenset(),
    body_result: int = 0,
    saved: int = 0,
    lookup_fails: bool = False,
) -> Outcome:
    """Run from ``start`` to the exit. ``cells`` are 8-byte values at offsets from r10. Raises Stuck."""
    held: list[int | None] = [registers.get(n) for n in range(11)]
    held[10] = FRAME_TOP
    machine = _Machine(held, {}, maps, intent, lookup_fails)
    for offset, value in cells.items():
        machine.store(FRAME_TOP + offset, 8, value, order)
    machine.store(VALUE, 8, saved, order)
    at = start
    for _ in range(_STEPS):
        if at == body:
            return Outcome(None)
        if not 0 <= at < len(insns):
            raise Stuck("leaves the code")
        insn = insns[at]
        if insn.code == 0x95:
            result = low32(machine.get(0))
            return Outcome(result, machine.slot, machine.load(VALUE, 8, order))
        if at in body_calls:
            if machine.get(1) != CONTEXT:
                raise Stuck("calls the body without the context")
            machine.registers[0:6] = [body_result & (1 << 64) - 1, *[None] * 5]
            at += 1
            continue
        at = _one(machine, insns, at, order)
    raise Stuck("does not end")


def _one(m: _Machine, insns: tuple[Insn, ...], at: int, order: str) -> int:
    """Run one instruction; the slot that follows."""
    insn = insns[at]
    kind = insn.code & 7
    if kind in (4, 7):
        width = 64 if kind == 7 else 32
        mask = (1 << width) - 1
        operand = (m.get(insn.src) if insn.code & 8 else insn.imm) & mask
        operation = insn.code >> 4
        before = 0 if operation == 0xB else m.get(insn.dst) & mask
        m.registers[insn.dst] = _compute(operation, before, operand, width) & mask
        return at + 1
    if insn.code == 0x18:
        if at in m.maps:
            address = MAPS + 0x1000 * at
            m.names[address] = m.maps[at]
            m.registers[insn.dst] = address
        else:
            m.registers[insn.dst] = (insns[at + 1].imm & 0xFFFFFFFF) << 32 | insn.imm & 0xFFFFFFFF
        return at + 2
    if insn.code == 0x05:
        return at + 1 + insn.off
    if insn.code == 0x06:
        return at + 1 + insn.imm
    if insn.code == 0x85:
        _helper(m, insn.imm, order)
        return at + 1
    if kind in (5, 6):
        width = 64 if kind == 5 else 32
        mask = (1 << width) - 1
        operand = (m.get(insn.src) if insn.code & 8 else insn.imm) & mask
        holds = _holds(insn.code >> 4, m.get(insn.dst) & mask, operand, width)
        return at + 1 + (insn.off if holds else 0)
    size = _SIZES[insn.code >> 3 & 3]
    if kind == 1 and insn.code >> 5 == 3:
        m.registers[insn.dst] = m.load(m.get(insn.src) + insn.off, size, order)
    elif kind == 2 and insn.code >> 5 == 3:
        m.store(m.get(insn.dst) + insn.off, size, insn.imm, order)
    elif kind == 3 and insn.code >> 5 == 3:
        m.store(m.get(insn.dst) + insn.off, size, m.get(insn.src), order)
    else:
        raise Stuck(f"opcode {insn.code:#x}")
    return at + 1


def _helper(m: _Machine, number: int, order: str) -> None:
    result: int | None = None
    if number == 12:
        if m.get(1) != CONTEXT or m.names.get(m.get(2)) != m.intent.slots_map or m.slot is not None:
            raise Stuck("tail call with wrong arguments")
        m.slot = m.get(3) & 0xFFFF_FFFF
    elif number == 1:
        key = m.load(m.get(2), 4, order)
        if m.names.get(m.get(1)) != m.intent.saved_map or key:
            raise Stuck("lookup of something else")
        result = 0 if m.lookup_fails else VALUE
    else:
        raise Stuck(f"calls helper {number}")
    m.registers[0:6] = [result, None, None, None, None, None]


def _negative(value: int, width: int) -> int:
    return value - (1 << width) if value >> (width - 1) else value


def _compute(operation: int, a: int, b: int, width: int) -> int:
    shift = b % width
    if operation == 0xB:
        return b
    if operation == 0x0:
        return a + b
    if operation == 0x1:
        return a - b
    if operation == 0x4:
        return a | b
    if operation == 0x5:
        return a & b
    if operation == 0xA:
        return a ^ b
    if operation == 0x6:
        return a << shift
    if operation == 0x7:
        return a >> shift
    if operation == 0xC:
        return _negative(a, width) >> shift
    raise Stuck(f"ALU operation {operation:#x}")


def _holds(operation: int, a: int, b: int, width: int) -> bool:
    x, y = _negative(a, width), _negative(b, width)
    table = {
        0x1: a == b, 0x5: a != b, 0x2: a > b, 0x3: a >= b, 0xA: a < b, 0xB: a <= b,
        0x4: a & b != 0, 0x6: x > y, 0x7: x >= y, 0xC: x < y, 0xD: x <= y,
    }  # fmt: skip
    if operation not in table:
        raise Stuck(f"jump {operation:#x}")
    return table[operation]


def interesting(intent: Intent) -> Iterator[int]:
    """Return values (64 bits) around every edge of the sets, with clean and with dirty upper halves."""
    codes = {0, 1, -1, CODE_MIN, CODE_MAX, CODE_MIN + 1, CODE_MAX - 1, *intent.saved}
    for known in (intent.success, intent.redirect):
        for low, high in known.ranges:
            codes |= {low - 1, low, low + 1, high - 1, high, high + 1}
    for code in sorted(codes):
        if CODE_MIN <= code <= CODE_MAX:
            low = code & 0xFFFF_FFFF
            for upper in (0, 0xFFFF_FFFF, 1, 0x8000_0000):
                yield upper << 32 | low


def expected(
    intent: Intent, state: int | None, returned: int, saved: int, *, lookup_fails: bool = False
) -> Outcome:
    """What the reference says of one return value, where no next link answers."""
    in_map = intent.mode == "map"
    before = state
    if in_map:
        known = saved >> 32 == 1 and intent.index > 0 and not lookup_fails
        before = low32(saved) if known else None
    link = cast("ReferenceLink", (intent.success, intent.redirect))
    goes_on, after = step(link, before, returned)
    code = low32(returned)
    if not goes_on:
        return Outcome(code, None, saved)
    result = code if after is None else after
    if intent.ends:
        return Outcome(result, None, saved)
    if not in_map:
        return Outcome(result, intent.hook.slot(after, intent.index + 1), saved)
    held = saved
    if not lookup_fails:
        if code in intent.redirect:
            held = 1 << 32 | code & 0xFFFF_FFFF
        elif intent.index == 0:
            held = 0
    return Outcome(result, intent.index + 1, held)

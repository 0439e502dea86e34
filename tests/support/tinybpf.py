"""A tiny interpreter of BPF for tests, written from RFC 9669 and nothing else: arithmetic, jumps, stack, calls.

Values are 64-bit integers. The frame pointer is ``FRAME``; memory below it is the stack, and every
access to it is recorded. The context, maps and whatever calls return are plain numbers too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bpfchain.transform.isa import Insn

__all__ = ["CONTEXT", "FRAME", "StuckError", "Tiny"]

FRAME = 0x7000_0000_0000
CONTEXT = 0x6000_0000_0000
_M64, _M32 = (1 << 64) - 1, (1 << 32) - 1
_SIZES = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}


class StuckError(Exception):
    """The program did something that this interpreter, or the verifier, knows not of."""


def _signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


@dataclass(slots=True)
class Tiny:
    """One run. ``call(helper, machine)`` gives r0 and clobbers r1 to r5 itself if it wishes."""

    insns: Sequence[Insn]
    call: Callable[[int, Tiny, int], int] | None = None
    """Called with the helper's number, the machine and the slot of the call; gives r0."""
    registers: list[int] = field(default_factory=lambda: [0xDEAD_0000 + i for i in range(11)])
    memory: dict[int, int] = field(default_factory=dict)
    maps: dict[int, int] = field(default_factory=dict)
    """Slots of ldimm64 that a relocation gives a map: its number."""
    visited: set[int] = field(default_factory=set)
    touched: list[tuple[int, int]] = field(default_factory=list)
    """Stack accesses: offset from r10, size."""
    other_load: Callable[[int, int], int] | None = None
    """Loads from elsewhere: address, size."""
    steps: int = 10_000

    def load(self, address: int, size: int) -> int:
        self._note(address, size)
        if not self._on_stack(address) and self.other_load is not None:
            return self.other_load(address, size)
        raw = bytes(self.memory.get(address + i, 0xA5) for i in range(size))
        return int.from_bytes(raw, "little")

    def store(self, address: int, size: int, value: int) -> None:
        self._note(address, size)
        for i, byte in enumerate((value & (1 << 8 * size) - 1).to_bytes(size, "little")):
            self.memory[address + i] = byte

    def _on_stack(self, address: int) -> bool:
        return FRAME - 8192 <= address < FRAME + 8192

    def _note(self, address: int, size: int) -> None:
        if self._on_stack(address):
            self.touched.append((address - FRAME, size))

    def run(self, slot: int = 0) -> int:
        """Run from a slot to an exit; gives r0 (64 bits) and leaves the exit's slot in ``at``."""
        r = self.registers
        r[10] = FRAME
        for _ in range(self.steps):
            if not 0 <= slot < len(self.insns):
                raise StuckError(f"control left the code, to {slot}")
            insn = self.insns[slot]
            self.visited.add(slot)
            op, klass = insn.opcode, insn.opcode & 7
            following = slot + 1
            if op == 0x95:
                self.exit_slot = slot
                return r[0]
            if op == 0x18:
                self.visited.add(slot + 1)
                low, high = insn.imm & _M32, self.insns[slot + 1].imm & _M32
                r[insn.dst] = self.maps.get(slot, high << 32 | low)
                following += 1
            elif op == 0x85:
                if self.call is None:
                    raise StuckError(f"a call at {slot}")
                r[0] = self.call(insn.imm, self, slot) & _M64
            elif op == 0x05:
                following += insn.offset
            elif op == 0x06:
                following += insn.imm
            elif klass in (5, 6):
                if self._holds(insn, 64 if klass == 5 else 32):
                    following += insn.offset
            elif klass in (4, 7):
                r[insn.dst] = self._alu(insn, 64 if klass == 7 else 32)
            elif klass == 1 and op & 0xE0 == 0x60:
                r[insn.dst] = self.load((r[insn.src] + insn.offset) & _M64, _SIZES[op & 0x18])
            elif klass in (2, 3) and op & 0xE0 == 0x60:
                value = insn.imm & _M64 if klass == 2 else r[insn.src]
                self.store((r[insn.dst] + insn.offset) & _M64, _SIZES[op & 0x18], value)
            else:
                raise StuckError(f"opcode {op:#x} at {slot}")
            slot = following
        raise StuckError("it does not end")

    exit_slot: int = -1

    def _operand(self, insn: Insn, bits: int) -> int:
        value = self.registers[insn.src] if insn.opcode & 8 else insn.imm
        return value & (1 << bits) - 1

    def _holds(self, insn: Insn, bits: int) -> bool:
        a, b = self.registers[insn.dst] & (1 << bits) - 1, self._operand(insn, bits)
        sa, sb = _signed(a, bits), _signed(b, bits)
        table: dict[int, bool] = {
            0x10: a == b, 0x20: a > b, 0x30: a >= b, 0x40: bool(a & b), 0x50: a != b, 0x60: sa > sb,
            0x70: sa >= sb, 0xA0: a < b, 0xB0: a <= b, 0xC0: sa < sb, 0xD0: sa <= sb,
        }  # fmt: skip
        return table[insn.opcode & 0xF0]

    def _alu(self, insn: Insn, bits: int) -> int:
        a, b = self.registers[insn.dst] & (1 << bits) - 1, self._operand(insn, bits)
        shift = b & (bits - 1)
        match insn.opcode & 0xF0:
            case 0x00:
                value = a + b
            case 0x10:
                value = a - b
            case 0x20:
                value = a * b
            case 0x30:
                value = a // b if b else 0
            case 0x40:
                value = a | b
            case 0x50:
                value = a & b
            case 0x60:
                value = a << shift
            case 0x70:
                value = a >> shift
            case 0x80:
                value = -a
            case 0x90:
                value = a % b if b else a
            case 0xA0:
                value = a ^ b
            case 0xB0:
                value = b
            case 0xC0:
                value = _signed(a, bits) >> shift
            case _:
                raise StuckError(f"opcode {insn.opcode:#x}")
        return value & (1 << bits) - 1

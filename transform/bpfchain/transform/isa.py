"""Instructions: the 64-bit slots of RFC 9669, decoded and encoded without loss.

A wide instruction (``ldimm64``) is two slots here as it is in the file; the second has opcode 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from struct import Struct
from typing import NamedTuple

from .errors import RefusedError

__all__ = [
    "ALU32", "ALU64", "CALL", "EXIT", "INSN_SIZE", "JA", "JA32", "JMP", "JMP32", "LDDW",
    "LD_ABS_IND", "PSEUDO_CALL", "PSEUDO_FUNC", "PSEUDO_KFUNC_CALL", "TAIL_CALL", "Insn", "decode",
    "encode",
]  # fmt: skip

INSN_SIZE = 8

# instruction classes (RFC 9669, section 3.3)
LD, LDX, ST, STX, ALU32, JMP, JMP32, ALU64 = range(8)

JA = 0x05
JA32 = 0x06
"""``gotol``: the offset is in imm."""
CALL = 0x85
CALLX = 0x8D
GOTOX = 0x0D
EXIT = 0x95
LDDW = 0x18
MAY_GOTO = 0xE5
LD_ABS_IND = frozenset({0x20, 0x28, 0x30, 0x40, 0x48, 0x50})
"""Legacy packet loads; r6 is an implicit operand, and a failure leaves the program."""

PSEUDO_CALL = 1
"""Source register of a call to a bpf function."""
PSEUDO_KFUNC_CALL = 2
PSEUDO_FUNC = 4
"""Source register of a ``ldimm64`` that loads a function's address."""
ATOMIC, MEMSX = 0xC0, 0x80
"""Modes of loads and stores (RFC 9669, section 5)."""
LOAD_ACQUIRE = 0x100
"""Immediate of an ATOMIC store that loads: dst = *(src + offset)."""
SIZE, DW = 0x18, 0x18
TAIL_CALL = 12
"""Helper number of bpf_tail_call."""


class Insn(NamedTuple):
    """One slot. ``offset`` and ``imm`` are signed."""

    opcode: int
    dst: int = 0
    src: int = 0
    offset: int = 0
    imm: int = 0

    @property
    def klass(self) -> int:
        """The instruction class, the low three bits of the opcode."""
        return self.opcode & 7

    @property
    def wide(self) -> bool:
        """Whether a second slot belongs to this one."""
        return self.opcode == LDDW

    @property
    def is_call(self) -> bool:
        """Any call by immediate: helper, bpf function or kfunc."""
        return self.opcode == CALL

    @property
    def is_jump(self) -> bool:
        """Whether control may continue elsewhere in the function (calls and exit are no jumps)."""
        return self.klass in (JMP, JMP32) and self.opcode not in (CALL, CALLX, EXIT)

    @property
    def is_unconditional(self) -> bool:
        """``ja`` or ``gotol``."""
        return self.opcode in (JA, JA32)

    def target(self, at: int) -> int:
        """The slot to which this jump, standing at slot ``at``, goes when taken."""
        return at + 1 + (self.imm if self.opcode == JA32 else self.offset)


_SLOT = {"<": Struct("<BBhi"), ">": Struct(">BBhi")}


def decode(data: bytes, order: str, *, what: str = "code") -> list[Insn]:
    """The slots of ``data``. Raises RefusedError where it is not a whole number of them."""
    if len(data) % INSN_SIZE:
        raise RefusedError(f"{what}: {len(data)} bytes are not whole 8-byte instructions")
    if order == "<":
        return [Insn(op, regs & 15, regs >> 4, off, imm) for op, regs, off, imm in
                _SLOT["<"].iter_unpack(data)]  # fmt: skip
    # big-endian objects swap the two register nibbles (RFC 9669, section 3.1)
    return [Insn(op, regs >> 4, regs & 15, off, imm) for op, regs, off, imm in
            _SLOT[">"].iter_unpack(data)]  # fmt: skip


def encode(insns: Iterable[Insn], order: str) -> bytes:
    """The bytes of ``insns``, as they were before ``decode``."""
    pack = _SLOT[order].pack
    if order == "<":
        return b"".join(pack(op, dst | src << 4, off, imm) for op, dst, src, off, imm in insns)
    return b"".join(pack(op, dst << 4 | src, off, imm) for op, dst, src, off, imm in insns)


def starts(insns: Sequence[Insn]) -> list[bool]:
    """For each slot whether an instruction starts there (not the second half of a ldimm64)."""
    flags = [True] * len(insns)
    i = 0
    while i < len(insns):
        if insns[i].wide:
            if i + 1 >= len(insns) or insns[i + 1].opcode:
                raise RefusedError(f"instruction {i}: a ldimm64 without its second half")
            flags[i + 1] = False
            i += 1
        i += 1
    return flags

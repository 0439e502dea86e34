"""A small assembler for the instructions that the patch adds: labels, jumps, references to maps."""

from __future__ import annotations

from dataclasses import dataclass, field

from . import isa
from .errors import RefusedError
from .isa import Insn

__all__ = ["Emitter", "Fragment", "Reference"]

MOV64_IMM, MOV64_REG, MOV32_REG = 0xB7, 0xBF, 0xBC
LSH64_IMM, ARSH64_IMM, AND64_IMM, ADD64_IMM = 0x67, 0xC7, 0x57, 0x07
LDX_DW, STX_DW, ST_W = 0x79, 0x7B, 0x62
JEQ, JNE, JGT, JGE, JSGT, JSGE = 0x15, 0x55, 0x25, 0x35, 0x65, 0x75
"""Compares with an immediate in the JMP class; the JMP32 twin has the class bits changed."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What a relocation of an added instruction points at: a map, or the body's function."""

    slot: int
    target: str


@dataclass(frozen=True, slots=True)
class Fragment:
    """Finished instructions with labels resolved to slots."""

    insns: tuple[Insn, ...]
    references: tuple[Reference, ...]
    labels: dict[str, int]


@dataclass(slots=True)
class Emitter:
    """Collects instructions; ``finish`` resolves the jumps."""

    _insns: list[Insn] = field(default_factory=list)
    _references: list[Reference] = field(default_factory=list)
    _labels: dict[str, int] = field(default_factory=dict)
    _jumps: list[tuple[int, str]] = field(default_factory=list)

    def label(self, name: str) -> None:
        """Name the place of the next instruction."""
        self._labels[name] = len(self._insns)

    def add(self, opcode: int, dst: int = 0, src: int = 0, offset: int = 0, imm: int = 0) -> None:
        """Append one instruction."""
        self._insns.append(Insn(opcode, dst, src, offset, imm))

    def move(self, dst: int, src: int) -> None:
        """``dst = src``, left out where they are the same register."""
        if dst != src:
            self.add(MOV64_REG, dst, src)

    def constant(self, dst: int, value: int) -> None:
        """``dst = value`` (signed 32 bits)."""
        self.add(MOV64_IMM, dst, imm=value)

    def wide(self, dst: int, value: int) -> None:
        """``dst = value ll``."""
        low = value & 0xFFFF_FFFF
        high = value >> 32 & 0xFFFF_FFFF
        self.add(isa.LDDW, dst, imm=low - (low >> 31 << 32))
        self.add(0, imm=high - (high >> 31 << 32))

    def map(self, dst: int, name: str) -> None:
        """``dst = map ll``, by relocation."""
        self._references.append(Reference(len(self._insns), name))
        self.add(isa.LDDW, dst)
        self.add(0)

    def call(self, helper: int) -> None:
        """Call a helper by its number."""
        self.add(isa.CALL, imm=helper)

    def exit(self) -> None:
        """``exit``."""
        self.add(isa.EXIT)

    def jump(self, label: str, opcode: int = isa.JA, dst: int = 0, imm: int = 0) -> None:
        """Jump to ``label``, on the condition that ``opcode`` names."""
        self._jumps.append((len(self._insns), label))
        self.add(opcode, dst, imm=imm)

    def finish(self) -> Fragment:
        """The instructions with every jump resolved."""
        insns = list(self._insns)
        for slot, label in self._jumps:
            distance = self._labels[label] - slot - 1
            if not -0x8000 <= distance < 0x8000:
                raise RefusedError(f"the added code needs a jump of {distance} instructions")
            insns[slot] = insns[slot]._replace(offset=distance)
        return Fragment(tuple(insns), tuple(self._references), dict(self._labels))

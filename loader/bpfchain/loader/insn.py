"""Single instructions for the few programs that the loader makes itself."""

from __future__ import annotations

import struct
import sys
from typing import Final

CALL: Final = 0x85
LD_IMM64: Final = 0x18
LDX_DW: Final = 0x79
MOV_IMM, MOV_REG = 0xB7, 0xBF
EXIT: Final = 0x95
PSEUDO_MAP_FD, PSEUDO_CALL = 1, 1
TAIL_CALL: Final = 12
"""The number of bpf_tail_call."""


def insn(code: int, dst: int = 0, src: int = 0, *, offset: int = 0, imm: int = 0) -> bytes:
    """One instruction in the host's byte order, which also decides the order of the registers."""
    registers = dst | src << 4 if sys.byteorder == "little" else dst << 4 | src
    return struct.pack("=BBhi", code, registers, offset, imm)


def map_address(dst: int, fd: int) -> bytes:
    """``dst = map`` (two instructions' room)."""
    return insn(LD_IMM64, dst, PSEUDO_MAP_FD, imm=fd) + bytes(8)

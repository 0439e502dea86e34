"""Numbers that a program compares with: what a random packet hits last, and a parser branches on."""

from __future__ import annotations

import struct
from collections.abc import Iterable

__all__ = ["compared_numbers", "dictionary"]

_JMP, _JMP32, _ALU, _ALU64, _LDDW = 0x05, 0x06, 0x04, 0x07, 0x18
_NO_COMPARISON = frozenset((0x00, 0x80, 0x90, 0xE0))
"""goto, call, exit, may_goto: jump operations without two operands."""
_TRIVIAL = frozenset((b"\0", b"\0\0", b"\0\0\0\0", b"\xff" * 4))
_AND = 0x50


def compared_numbers(code: bytes) -> tuple[int, ...]:
    """Immediates that the instructions (little-endian, 8 bytes each) compare with, as unsigned 32
    bits, in ascending order, each once.

    Compilers move what they compare with into registers, add it (``x - 80 < 4``) or mask bits, so
    64-bit constants and the operands of mov, add and and count as well.
    """
    found: set[int] = set()
    wide = False
    for at in range(0, len(code) - 7, 8):
        if wide:  # the second half of a 64-bit constant
            wide = False
            continue
        opcode, registers, _, number = struct.unpack_from("<BBhI", code, at)
        kind, operation, from_register = opcode & 0x07, opcode & 0xF0, opcode & 0x08
        if opcode == _LDDW:
            wide = True
            if registers >> 4 == 0:  # else a map, a variable or a function
                high = struct.unpack_from("<I", code, at + 12)[0] if len(code) >= at + 16 else 0
                found |= {number, high}
        elif from_register:
            continue
        elif kind in (_JMP, _JMP32) and operation not in _NO_COMPARISON:
            found.add(number)
        elif kind in (_ALU, _ALU64) and operation in (0xB0, 0x00, _AND):
            # mov, add (of the negative), and
            found.add(-number & 0xFFFF_FFFF if operation == 0 else number)
    return tuple(sorted(found))


def dictionary(codes: Iterable[bytes]) -> tuple[bytes, ...]:
    """What to write into packets and map contents, of all programs' instructions: each compared
    number, and its neighbours, in both byte orders, in the widths that hold it (1, 2, 4 bytes)."""
    found: set[bytes] = set()
    for code in codes:
        for number in compared_numbers(code):
            for value in (number, (number + 1) & 0xFFFF_FFFF, (number - 1) & 0xFFFF_FFFF):
                found |= _forms(value)
    return tuple(sorted(found - _TRIVIAL, key=lambda value: (len(value), value)))


def _forms(value: int) -> set[bytes]:
    narrow = {bytes([value])} if value < 1 << 8 else set()
    if value < 1 << 16:
        narrow |= {struct.pack("<H", value), struct.pack(">H", value)}
    return narrow | {struct.pack("<I", value), struct.pack(">I", value)}

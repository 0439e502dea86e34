"""The checker's own reading of a .BTF.ext section: func_info, line_info and core_relo by section.

Written from the kernel's Documentation/bpf/btf.rst, section 3.3. Offsets count bytes from the start
of the section that a record belongs to.
"""

from __future__ import annotations

from struct import Struct, error
from typing import Final, NamedTuple

from bpfchain.verify.static.btf import MAGIC, Btf
from bpfchain.verify.static.model import Unreadable

__all__ = ["CORE", "FUNC", "LINE", "NAMES", "BtfExt", "Part", "read_btf_ext"]

FUNC, LINE, CORE = 0, 1, 2
NAMES: Final = ("func_info", "line_info", "core_relo")
SIZES: Final = (8, 16, 16)
"""Bytes of one record, as every loader knows them."""


class Block(NamedTuple):
    """The records of one section, as words: the first is the byte offset of the instruction."""

    section: str
    records: tuple[tuple[int, ...], ...]


class Part(NamedTuple):
    """One of the three kinds. ``record_size`` 0: the part has no bytes at all."""

    record_size: int
    blocks: tuple[Block, ...] = ()


class BtfExt(NamedTuple):
    """A whole section."""

    header_size: int
    flags: int
    parts: tuple[Part, Part, Part]

    def of(self, number: int, section: str) -> tuple[tuple[int, ...], ...]:
        """All records of one kind for the section of that name, in file order."""
        return tuple(
            record
            for block in self.parts[number].blocks if block.section == section
            for record in block.records
        )  # fmt: skip


def read_btf_ext(data: bytes, order: str, btf: Btf) -> BtfExt:
    """Decode a .BTF.ext section. Raises Unreadable with the place of what is wrong."""
    try:
        magic, version, flags, header = Struct(order + "HBBI").unpack_from(data)
    except error:
        raise Unreadable(f"section .BTF.ext: {len(data)} bytes are no header") from None
    if magic != MAGIC or version != 1 or header not in (24, 32) or len(data) < header:
        raise Unreadable(f"section .BTF.ext: magic {magic:#x}, header {header} is not known")
    spans = list(Struct(order + "II").iter_unpack(data[8:header]))
    parts, covered = [], 0
    for number, (at, length) in enumerate(spans):
        if header + at + length > len(data):
            raise Unreadable(f"section .BTF.ext: {NAMES[number]} is cut short")
        if at != covered and (at or length):
            raise Unreadable(f"section .BTF.ext: {NAMES[number]} does not follow what is before it")
        parts.append(_part(data[header + at : header + at + length], order, btf, NAMES[number]))
        covered += length
    if covered != len(data) - header:
        raise Unreadable("section .BTF.ext: bytes that belong to no part, or to two")
    parts += [Part(0)] * (3 - len(parts))
    return BtfExt(header, flags, (parts[0], parts[1], parts[2]))


def _part(data: bytes, order: str, btf: Btf, name: str) -> Part:
    if not data:
        return Part(0)
    if len(data) % 4:
        raise Unreadable(f"section .BTF.ext: {name} is cut short")
    words = Struct(f"{order}{len(data) // 4}I").unpack(data)
    size, at, blocks = words[0], 1, []
    if size % 4 or not 8 <= size <= 252:
        raise Unreadable(f"section .BTF.ext: {name} has records of {size} bytes")
    step = size // 4
    while at < len(words):
        if at + 2 > len(words) or at + 2 + step * words[at + 1] > len(words):
            raise Unreadable(f"section .BTF.ext: {name} is cut short")
        section, count = btf.name(words[at]), words[at + 1]
        at += 2
        records = tuple(words[i : i + step] for i in range(at, at + step * count, step))
        blocks.append(Block(section, records))
        at += step * count
    return Part(size, tuple(blocks))

"""Finds BPF objects (ELF64, machine 247) inside other files and says where each one ends.

Programs built with a libbpf skeleton carry their object as a string constant, so the object
starts at any offset and nothing around it says how long it is. Its own header does: the object
ends where the last of its section header table, program header table and section contents ends.
Standard library only, because `fetch.py` runs before any virtual environment exists.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

EM_BPF = 247  # elf.h
_SHT_NOBITS = 8
_EHDR_SIZE = 64
_SHDR_SIZE = 64
_PHDR_SIZE = 56


class CarveError(ValueError):
    """A BPF ELF header was found whose tables cannot be followed; the text says where and why."""


@dataclass(frozen=True, slots=True)
class Found:
    """One object inside a larger file: its first byte, its length in bytes, its byte order."""

    offset: int
    size: int
    big_endian: bool


def find_objects(data: bytes) -> Iterator[Found]:
    """Yields every BPF object in `data`, in order of offset.

    Raises `CarveError` for a BPF header whose section table is missing or leaves the file: a
    damaged object would otherwise disappear from the tests without a word.
    """
    start = data.find(b"\x7fELF")
    while start >= 0:
        found = _object_at(data, start)
        if found is not None:
            yield found
        start = data.find(b"\x7fELF", start + (found.size if found else 4))


def _object_at(data: bytes, start: int) -> Found | None:
    """The object whose ELF magic is at `start`; None if that is no ELF64 BPF header at all."""
    header = data[start : start + _EHDR_SIZE]
    if len(header) < _EHDR_SIZE or header[4] != 2 or header[5] not in (1, 2) or header[6] != 1:
        return None
    big_endian = header[5] == 2
    order = ">" if big_endian else "<"
    _, machine, _, _, phoff, shoff, _, ehsize, phentsize, phnum, shentsize, shnum, _ = (
        struct.unpack_from(order + "HHIQQQIHHHHHH", header, 16)
    )
    if machine != EM_BPF:
        return None
    where = f"BPF object at offset {start:#x}"
    if ehsize != _EHDR_SIZE or shoff == 0 or shnum == 0 or shentsize != _SHDR_SIZE:
        raise CarveError(f"{where}: no usable section header table (shoff {shoff}, shnum {shnum})")
    if phnum and phentsize != _PHDR_SIZE:
        raise CarveError(f"{where}: program header entries of {phentsize} bytes")
    end = max(_EHDR_SIZE, shoff + shnum * _SHDR_SIZE, phoff + phnum * _PHDR_SIZE)
    if start + end > len(data):
        raise CarveError(f"{where}: its tables end {start + end - len(data)} bytes past the file")
    for index in range(shnum):
        kind, _, _, offset, size = struct.unpack_from(
            order + "IQQQQ", data, start + shoff + index * _SHDR_SIZE + 4
        )
        if index and kind != _SHT_NOBITS:
            end = max(end, offset + size)
    if start + end > len(data):
        raise CarveError(f"{where}: a section ends {start + end - len(data)} bytes past the file")
    return Found(start, end, big_endian)

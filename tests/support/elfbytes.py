"""Editing an object file by its bytes: for faults that no model of ours would write.

Offsets come from pyelftools; nothing of the transformer or of the checker is used.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from struct import Struct

from elftools.elf.elffile import ELFFile

__all__ = ["ElfBytes"]


class ElfBytes:
    """One file being edited in place."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.elf = ELFFile(io.BytesIO(data))
        self.order = "<" if self.elf.little_endian else ">"
        self.sections = list(self.elf.iter_sections())

    def index(self, section: str) -> int:
        """The index of the section of that name."""
        return next(i for i, one in enumerate(self.sections) if one.name == section)

    def content(self, section: str) -> bytes:
        """The section's bytes as they are now."""
        header = self.sections[self.index(section)].header
        return bytes(self.data[header["sh_offset"] :][: header["sh_size"]])

    def put(self, section: str, at: int, new: bytes) -> None:
        """Overwrite bytes of a section."""
        header = self.sections[self.index(section)].header
        assert at >= 0
        assert at + len(new) <= header["sh_size"]
        start = header["sh_offset"] + at
        assert self.data[start : start + len(new)] != new, "the fault changes nothing"
        self.data[start : start + len(new)] = new

    def word(self, section: str, at: int, change: Callable[[int], int], form: str = "I") -> None:
        """Change one number of a section."""
        one = Struct(self.order + form)
        (was,) = one.unpack_from(self.content(section), at)
        self.put(section, at, one.pack(change(was)))

    def header(self, section: str, field: str, value: int) -> None:
        """Change a field of a section header."""
        places = {"flags": (8, "Q"), "size": (32, "Q"), "info": (44, "I"), "align": (48, "Q")}
        at, form = places[field]
        start = self.elf.header["e_shoff"] + 64 * self.index(section) + at
        Struct(self.order + form).pack_into(self.data, start, value)

    def symbol(self, name: str) -> int:
        """The index of the symbol of that name."""
        table = self.elf.get_section_by_name(".symtab")
        return next(i for i, one in enumerate(table.iter_symbols()) if one.name == name)

    def symbol_field(self, name: str, field: str, change: Callable[[int], int]) -> None:
        """Change a field of a symbol."""
        places = {"info": (4, "B"), "other": (5, "B"), "value": (8, "Q"), "size": (16, "Q")}
        at, form = places[field]
        self.word(".symtab", 24 * self.symbol(name) + at, change, form)

    def relocation(self, section: str, symbol: str, nth: int = 0) -> int:
        """The number of the nth relocation of ``section`` against ``symbol``."""
        wanted = self.symbol(symbol)
        group = self.elf.get_section_by_name(f".rel{section}").iter_relocations()
        return [i for i, one in enumerate(group) if one["r_info_sym"] == wanted][nth]

    def relocate_to(self, section: str, number: int, symbol: str) -> None:
        """Let a relocation refer to another symbol; its kind stays."""
        index = self.symbol(symbol)
        self.word(f".rel{section}", 16 * number + 8, lambda v: index << 32 | v & 0xFFFF_FFFF, "Q")

    def text(self, section: str, old: bytes, new: bytes) -> None:
        """Replace a string that occurs once by one of the same length."""
        assert len(old) == len(new)
        content = self.content(section)
        assert content.count(old) == 1, (section, old, content.count(old))
        self.put(section, content.index(old), new)

    # BTF: Documentation/bpf/btf.rst

    def btf_types(self) -> list[tuple[int, int, str, int]]:
        """(offset in .BTF, kind, name, vlen) of each type, by id; type 0 is void."""
        data = self.content(".BTF")
        word = Struct(self.order + "III")
        header = Struct(self.order + "HBBIIIII").unpack_from(data)
        at, end, strings = 24 + header[4], 24 + header[4] + header[5], 24 + header[6]
        tails = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0),
                 15: (0, 12), 17: (4, 0), 19: (0, 12)}  # fmt: skip
        found = [(0, 0, "", 0)]
        while at < end:
            name, info, _ = word.unpack_from(data, at)
            kind, vlen = info >> 24 & 31, info & 0xFFFF
            text = data[strings + name : data.index(b"\0", strings + name)].decode()
            found.append((at, kind, text, vlen))
            fixed, each = tails.get(kind, (0, 0))
            at += 12 + fixed + each * vlen
        return found

    def btf_type(self, kind: int, name: str) -> int:
        """Offset in .BTF of the type of that kind and name."""
        return next(at for at, k, n, _ in self.btf_types() if (k, n) == (kind, name))

    def map_number(self, name: str, member: str) -> int:
        """Offset in .BTF of the array length that is a number of a map's definition."""
        types, data = self.btf_types(), self.content(".BTF")
        word = Struct(self.order + "I")
        strings = 24 + Struct(self.order + "HBBIIIII").unpack_from(data)[6]
        (struct,) = word.unpack_from(data, self.btf_type(14, name) + 8)
        at, _, _, count = types[struct]
        for i in range(count):
            name_at, pointer, _ = Struct(self.order + "III").unpack_from(data, at + 12 + 12 * i)
            if data[strings + name_at :].startswith(member.encode() + b"\0"):
                (array,) = word.unpack_from(data, types[pointer][0] + 8)
                place: int = types[array][0] + 12 + 8
                return place
        raise LookupError(f"map {name} has no {member}")

    def records(self, part: int, section: str) -> tuple[int, int, int]:
        """Where the records of a section lie in .BTF.ext: (offset, bytes of one, how many)."""
        data, types = self.content(".BTF.ext"), self.content(".BTF")
        word = Struct(self.order + "I")
        strings = 24 + Struct(self.order + "HBBIIIII").unpack_from(types)[6]
        start, length = Struct(self.order + "II").unpack_from(data, 8 + 8 * part)
        at, end = 32 + start, 32 + start + length
        (size,) = word.unpack_from(data, at)
        at += 4
        while at < end:
            name, count = Struct(self.order + "II").unpack_from(data, at)
            if types[strings + name :].startswith(section.encode() + b"\0"):
                return at + 8, size, count
            at += 8 + size * count
        raise LookupError(f"no records of part {part} for {section}")

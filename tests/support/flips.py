"""Single bytes of a patched object, changed: where each lies, and whether the change means anything.

The judge of "means anything" is a reading of its own (ELF by struct): whoever reads names, sections,
symbols and contents sees the same. What is left are words that tell and do not bind, by name.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct, error

__all__ = ["Flip", "flips", "harmless"]

_STRTAB, _NOBITS, _SYMTAB, _REL, _INFO_LINK = 3, 8, 2, 9, 0x40
_BTF_MAGIC = (b"\x9f\xeb", b"\xeb\x9f")
_BEHIND = {1: 1, 3: 3, 14: 1, 17: 1}
_MEMBER = {4: 3, 5: 3, 6: 2, 13: 2, 15: 3, 19: 3}
"""Words behind a type of that kind, and of each of its members."""
_NAMED = (4, 5, 6, 13, 19)
_TELLING = (b"tool=", b"why=")
"""What .bpfchain says for people: who made the patch, and why so."""


@dataclass(frozen=True, slots=True)
class Flip:
    """Byte ``at`` of the object becomes ``value``."""

    at: int
    value: int

    def of(self, data: bytes) -> bytes:
        """The changed object."""
        changed = bytearray(data)
        changed[self.at] = self.value
        return bytes(changed)


def flips(data: bytes, *, seed: int, count: int | None = None) -> Iterator[Flip]:
    """``count`` places at random (all of them: None), each with a bit turned and with another value."""
    chance = random.Random(seed)
    places = range(len(data)) if count is None else chance.sample(range(len(data)), count)
    for at in places:
        values = {data[at] ^ 1 << chance.randrange(8), chance.randrange(256)} - {data[at]}
        yield from (Flip(at, value) for value in sorted(values))


def _seen(data: bytes) -> tuple[object, ...]:
    """All that a loader could look at; section contents by name, but for tables of names."""
    order = "<" if data[5] == 1 else ">"
    fields = Struct(order + "HHIQQQIHHHHHH").unpack_from(data, 16)
    start, size, count, names_at = fields[5], fields[10], fields[11], fields[12]
    rows = [Struct(order + "IIQQQQIIQQ").unpack_from(data, start + n * size) for n in range(count)]

    def text(table: int, offset: int) -> bytes:
        base = rows[table][4]
        return data[base + offset : data.index(b"\0", base + offset)]

    found: list[object] = [data[:16], fields[:5], fields[6:]]
    for _, kind, flagged, addr, at, length, link, info, align, entsize in rows:
        own = b"" if kind in (_NOBITS, 0, _STRTAB) else data[at : at + length]
        if kind == _SYMTAB:
            for entry in range(0, length, 24):
                name, *rest = Struct(order + "IBBHQQ").unpack_from(data, at + entry)
                found.append((text(link, name), *rest))
            own = b""
        # "sh_info is a section": of relocations it always is
        flags = flagged & ~_INFO_LINK if kind == _REL else flagged
        found.append((kind, flags, addr, length if kind != _STRTAB else 0, link, info, align))
        found.append((entsize, _types(own, order) if own[:2] in _BTF_MAGIC else own))
    found += [text(names_at, row[0]) for row in rows]
    found += [
        data[row[4] : row[4] + row[5]]
        for row in rows if row[1] == _STRTAB and text(names_at, row[0]) == b".bpfchain"
    ]  # fmt: skip
    return tuple(found)


def _types(data: bytes, order: str) -> object:
    """A .BTF section with every name in the place of its offset (.BTF.ext stays as it is)."""
    word = Struct(order + "I")
    header, start, length, strings, room = Struct(order + "5I").unpack_from(data, 4)
    if header != 24 or start or strings != length or header + length + room != len(data):
        return data
    names = data[header + strings :]
    found: list[object] = [data[:header], len(names)]
    at = header
    while at < header + length:
        name, info, third = Struct(order + "3I").unpack_from(data, at)
        kind = info >> 24 & 0x1F
        count = _BEHIND.get(kind, 0) + _MEMBER.get(kind, 0) * (info & 0xFFFF)
        tail = [word.unpack_from(data, at + 12 + 4 * n)[0] for n in range(count)]
        step = _MEMBER[kind] if kind in _NAMED else 0
        told = [
            names[w : names.index(b"\0", w)] if step and w and n % step == 0 else w
            for n, w in enumerate(tail)
        ]
        found.append((name and names[name : names.index(b"\0", name)], info, third, told))
        at += 12 + 4 * count
    return *found, names


def _string_around(data: bytes, at: int) -> bytes:
    return data[data.rfind(b"\0", 0, at) + 1 : data.find(b"\0", at)]


def harmless(data: bytes, flip: Flip) -> str | None:
    """Why nobody can tell the two objects apart by what they do; None where somebody could."""
    changed = flip.of(data)
    try:
        if _seen(changed) == _seen(data):
            return "nobody reads it"
    except (error, ValueError, IndexError):
        return None
    was, now = (_string_around(one, flip.at) for one in (data, changed))
    if was.startswith(b"bpfchain: "):
        return "the text of an added line"
    for word in _TELLING:
        if was.startswith(word) and now.startswith(word):
            return "told to people"
    if was.startswith((b"success=", b"redirect=")) and was.lower() == now.lower():
        return "the same word in capitals"
    for word in (b"slots=", b"index="):
        if was.startswith(word) and now.startswith(word) and b"\0last=yes\0" in data:
            return "the last link's code has no slot in it"
    return _same_number(data, flip)


def _same_number(data: bytes, flip: Flip) -> str | None:
    """An array that counts (a map's number) may count in any type of integer."""
    order = "<" if data[5] == 1 else ">"
    word = Struct(order + "I")
    magic = data.find(Struct(order + "HBB").pack(0xEB9F, 1, 0) + word.pack(24))
    if magic < 0:
        return None
    length = word.unpack_from(data, magic + 12)[0]
    at, end, sizes, kind_id = magic + 24, magic + 24 + length, {}, 0
    hit: tuple[int, int] | None = None
    while at < end:
        kind_id += 1
        _, info, third = Struct(order + "3I").unpack_from(data, at)
        kind = info >> 24 & 0x1F
        if kind == 1:
            sizes[kind_id] = third
        if kind == 3 and at + 12 <= flip.at < at + 20:
            place = at + 12 + (flip.at - at - 12) // 4 * 4
            hit = place, word.unpack_from(flip.of(data), place)[0]
        at += 12 + 4 * (_BEHIND.get(kind, 0) + _MEMBER.get(kind, 0) * (info & 0xFFFF))
    if hit is not None and sizes.get(hit[1]) == 4:
        return "another integer of 32 bits to count with"
    return None

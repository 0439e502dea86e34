"""The checker's own reading of a .BTF section: types with kinds, names and members, and the strings.

Written from the kernel's Documentation/bpf/btf.rst. Type ids count from 1; 0 is void.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from struct import Struct, error
from typing import Final, NamedTuple

from bpfchain.verify.static.model import Unreadable

__all__ = ["Btf", "BtfType", "read_btf"]

MAGIC: Final = 0xEB9F
(
    INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC,
    FUNC_PROTO, VAR, DATASEC, FLOAT, DECL_TAG, TYPE_TAG, ENUM64,
) = range(1, 20)  # fmt: skip
MODIFIERS: Final = frozenset((TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG))
STATIC, GLOBAL = 0, 1
"""Linkage of a FUNC (in vlen) and of a VAR (in its tail)."""
_WORDS_BEHIND: Final = {INT: 1, ARRAY: 3, VAR: 1, DECL_TAG: 1}
_WORDS_PER_MEMBER: Final = {
    STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, DATASEC: 3, ENUM64: 3,
}  # fmt: skip
_NAMED_MEMBERS: Final = frozenset((STRUCT, UNION, ENUM, FUNC_PROTO, ENUM64))
_REFERS: Final = frozenset(
    (PTR, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DECL_TAG, TYPE_TAG)
)
"""Kinds whose third word is a type id (for others it is a size, or nothing)."""


class BtfType(NamedTuple):
    """One type as it is on the wire: ``tail`` holds the words behind its first three."""

    name_offset: int
    info: int
    third: int
    """A size in bytes, or a type id."""
    tail: tuple[int, ...] = ()

    @property
    def kind(self) -> int:
        """BTF_KIND_*."""
        return self.info >> 24 & 0x1F

    @property
    def vlen(self) -> int:
        """The number of members, or a FUNC's linkage."""
        return self.info & 0xFFFF

    @property
    def members(self) -> Iterator[tuple[int, ...]]:
        """The words of each member, by the kind's layout."""
        size = _WORDS_PER_MEMBER.get(self.kind, 0)
        return (self.tail[i : i + size] for i in range(0, size * self.vlen, size or 1))


_VOID: Final = BtfType(0, 0, 0)


@dataclass(frozen=True)
class Btf:
    """All types of one object. ``types[0]`` is void."""

    types: tuple[BtfType, ...]
    strings: bytes
    flags: int = 0

    def name(self, offset: int) -> str:
        """The string at an offset. Raises Unreadable where it is outside of the strings."""
        known = self._names.get(offset)
        if known is None:
            end = self.strings.find(b"\0", offset)
            if end < 0:
                raise Unreadable(f"section .BTF: no string at {offset}")
            known = self.strings[offset:end].decode("utf-8", "backslashreplace")
            self._names[offset] = known
        return known

    @cached_property
    def _names(self) -> dict[int, str]:
        return {}

    def name_of(self, type_id: int) -> str:
        """The name of a type."""
        return self.name(self.type(type_id).name_offset)

    def type(self, type_id: int) -> BtfType:
        """The type of that id. Raises Unreadable where there is none."""
        if not 0 <= type_id < len(self.types):
            raise Unreadable(f"section .BTF: no type {type_id}")
        return self.types[type_id]

    def ids(self, kind: int, name: str) -> list[int]:
        """The types of that kind and name."""
        return [
            i for i, one in enumerate(self.types)
            if one.kind == kind and self.name(one.name_offset) == name
        ]  # fmt: skip

    def told(self, type_id: int) -> tuple[object, ...]:
        """The type with every string in the place of its offset: equal in two files exactly where
        it is the same type by the same ids. Offset 0 is no name at all, which the kernel tells from
        an empty one elsewhere."""
        one = self.type(type_id)
        tail: tuple[object, ...] = one.tail
        if one.kind in _NAMED_MEMBERS:
            tail = tuple((self.text(member[0]), *member[1:]) for member in one.members)
        return self.text(one.name_offset), one.info, one.third, tail

    def text(self, offset: int) -> str | None:
        """The string at an offset, None for offset 0."""
        return self.name(offset) if offset else None

    def references(self, type_id: int) -> list[int]:
        """The type ids that a type names."""
        one = self.type(type_id)
        found = [one.third] if one.kind in _REFERS else []
        if one.kind in (STRUCT, UNION, FUNC_PROTO):
            found += [member[1] for member in one.members]
        elif one.kind == DATASEC:
            found += [member[0] for member in one.members]
        elif one.kind == ARRAY:
            found += one.tail[:2]
        return found

    def plain(self, type_id: int) -> int:
        """The type behind typedefs and qualifiers. Raises Unreadable for a circle."""
        for _ in range(64):
            one = self.type(type_id)
            if one.kind not in MODIFIERS:
                return type_id
            type_id = one.third
        raise Unreadable(f"section .BTF: type {type_id} refers to itself")


def read_btf(data: bytes, order: str) -> Btf:
    """Decode a .BTF section. Raises Unreadable with the place of what is wrong."""
    try:
        magic, version, flags, header, type_at, type_len, text_at, text_len = Struct(
            order + "HBBIIIII"
        ).unpack_from(data)
    except error:
        raise Unreadable(f"section .BTF: {len(data)} bytes are no header") from None
    if magic != MAGIC or version != 1 or header < 24:
        raise Unreadable(f"section .BTF: magic {magic:#x} version {version} is not known")
    types_end, text_end = header + type_at + type_len, header + text_at + text_len
    if max(types_end, text_end) > len(data) or type_len % 4 or type_at % 4:
        raise Unreadable("section .BTF: its parts reach behind its end")
    if text_at != type_at + type_len or text_end != len(data):
        raise Unreadable("section .BTF: bytes that belong to no part")
    strings = data[header + text_at : text_end]
    if not strings or strings[0] or strings[-1]:
        raise Unreadable("section .BTF: its strings do not begin and end with a NUL")
    words = Struct(f"{order}{type_len // 4}I").unpack_from(data, header + type_at)
    return Btf(tuple(_types(words)), strings, flags)


def _types(words: tuple[int, ...]) -> Iterator[BtfType]:
    yield _VOID
    at, end = 0, len(words)
    while at < end:
        if at + 3 > end:
            raise Unreadable("section .BTF: the last type is cut short")
        name, info, third = words[at : at + 3]
        at += 3
        kind = info >> 24 & 0x1F
        if not INT <= kind <= ENUM64:
            raise Unreadable(f"section .BTF: a type of kind {kind} is not known")
        behind = _WORDS_BEHIND.get(kind, 0) + _WORDS_PER_MEMBER.get(kind, 0) * (info & 0xFFFF)
        if at + behind > end:
            raise Unreadable("section .BTF: the last type is cut short")
        yield BtfType(name, info, third, words[at : at + behind])
        at += behind

"""BTF type information: a lossless model, and types and strings added behind what is there.

Type ids never change: types are only appended, or changed in place, so everything that names a
type (``.BTF.ext``, CO-RE, other types) stays right. Layouts: Documentation/bpf/btf.rst,
include/uapi/linux/btf.h.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from struct import Struct

from .errors import RefusedError

__all__ = ["Btf", "BtfType", "Kind", "read_btf", "write_btf"]

MAGIC = 0xEB9F
HEADER_SIZE = 24


class Kind:
    """BTF_KIND_*."""

    INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = 1, 2, 3, 4, 5, 6, 7, 8
    VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, DATASEC = 9, 10, 11, 12, 13, 14, 15
    FLOAT, DECL_TAG, TYPE_TAG, ENUM64 = 16, 17, 18, 19
    MODIFIERS = (TYPEDEF, VOLATILE, CONST, RESTRICT, TYPE_TAG)


# bytes behind the 12-byte record: fixed, or a number for each of vlen members
_FIXED = {Kind.INT: 4, Kind.ARRAY: 12, Kind.VAR: 4, Kind.DECL_TAG: 4}
_PER_MEMBER = {
    Kind.STRUCT: 12, Kind.UNION: 12, Kind.ENUM: 8, Kind.FUNC_PROTO: 8, Kind.DATASEC: 12,
    Kind.ENUM64: 12,
}  # fmt: skip
FUNC_STATIC, FUNC_GLOBAL = 0, 1
VAR_GLOBAL = 1


@dataclass(frozen=True, slots=True)
class BtfType:
    """One type record. ``size_or_type`` and ``tail`` mean what the kind says."""

    name_offset: int
    kind: int
    vlen: int
    kind_flag: bool
    size_or_type: int
    tail: bytes = b""


@dataclass(frozen=True)
class Btf:
    """A .BTF section. ``types[0]`` is type id 1; id 0 is void."""

    order: str
    types: tuple[BtfType, ...]
    strings: bytes
    flags: int = 0

    @cached_property
    def words(self) -> Struct:
        """Three 32-bit words: a type record, an array, a member, a DATASEC entry."""
        return Struct(self.order + "III")

    def type(self, type_id: int) -> BtfType:
        """The type of that id. Raises RefusedError for an id that does not exist."""
        if not 0 < type_id <= len(self.types):
            raise RefusedError(
                f"section .BTF: type id {type_id} of {len(self.types)} does not exist"
            )
        return self.types[type_id - 1]

    def name(self, offset: int) -> str:
        """The string at ``offset``."""
        end = self.strings.find(b"\0", offset)
        if offset >= len(self.strings) or end < 0:
            raise RefusedError(f"section .BTF: string offset {offset} is outside the strings")
        return self.strings[offset:end].decode("utf-8", "backslashreplace")

    def find(self, kind: int, name: str) -> tuple[int, ...]:
        """Ids of the types of that kind and name, in order."""
        offsets = self.offsets_of(name)
        return tuple(
            i + 1
            for i, known in enumerate(self.types)
            if known.kind == kind and known.name_offset in offsets
        )

    def offsets_of(self, name: str) -> frozenset[int]:
        """Every offset at which the string may be named (tails of longer strings too)."""
        return _offsets_of(self.strings, name)

    def with_string(self, text: str) -> tuple[Btf, int]:
        """The BTF that holds ``text``, and where; an equal string is reused."""
        if not text:
            return self, 0
        wanted = text.encode() + b"\0"
        at = self.strings.find(b"\0" + wanted)
        if at >= 0:
            return self, at + 1
        return replace(self, strings=self.strings + wanted), len(self.strings)

    def with_type(
        self, kind: int, name: str = "", size_or_type: int = 0, *, vlen: int = 0, tail: bytes = b""
    ) -> tuple[Btf, int]:
        """The BTF with one more type, and its id."""
        grown, at = self.with_string(name)
        added = BtfType(at, kind, vlen, False, size_or_type, tail)
        return replace(grown, types=(*grown.types, added)), len(grown.types) + 1

    def with_changed(self, type_id: int, changed: BtfType) -> Btf:
        """The BTF where one type is another; its id stays."""
        i = type_id - 1
        return replace(self, types=(*self.types[:i], changed, *self.types[i + 1 :]))

    def members(self, known: BtfType) -> tuple[tuple[int, int, int], ...]:
        """The word triples of a STRUCT (name, type, bit offset) or DATASEC (type, offset, size)."""
        return tuple(self.words.iter_unpack(known.tail))


@lru_cache(maxsize=256)
def _offsets_of(strings: bytes, name: str) -> frozenset[int]:
    wanted = name.encode() + b"\0"
    offsets, at = set(), strings.find(wanted)
    while at >= 0:
        offsets.add(at)
        at = strings.find(wanted, at + 1)
    return frozenset(offsets)


def read_btf(data: bytes, order: str) -> Btf:
    """Decode a .BTF section. Raises RefusedError for a layout that could not be given back."""
    if len(data) < HEADER_SIZE:
        raise RefusedError(f"section .BTF: {len(data)} bytes are no header")
    magic, version, flags, hdr_len, type_off, type_len, str_off, str_len = Struct(
        order + "HBBIIIII"
    ).unpack_from(data)
    if magic != MAGIC or version != 1:
        raise RefusedError(f"section .BTF: magic {magic:#x} version {version} is not known")
    if hdr_len != HEADER_SIZE or type_off or str_off != type_len or type_len % 4:
        raise RefusedError("section .BTF: header and parts do not follow each other as usual")
    if HEADER_SIZE + type_len + str_len != len(data):
        raise RefusedError(f"section .BTF: parts of {type_len}+{str_len} bytes in {len(data)}")
    strings = data[HEADER_SIZE + type_len :]
    if not strings or strings[0] or strings[-1]:
        raise RefusedError("section .BTF: the strings do not begin and end with a zero byte")
    types = _read_types(data[HEADER_SIZE : HEADER_SIZE + type_len], order)
    return Btf(order=order, types=tuple(types), strings=strings, flags=flags)


def _read_types(data: bytes, order: str) -> list[BtfType]:
    record = Struct(order + "III")
    types: list[BtfType] = []
    at, end = 0, len(data)
    while at < end:
        if at + 12 > end:
            raise RefusedError(f"section .BTF: type {len(types) + 1} is cut short")
        name, info, size_or_type = record.unpack_from(data, at)
        kind, vlen, flag = info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31)
        if not Kind.INT <= kind <= Kind.ENUM64 or info & 0x60FF0000:
            raise RefusedError(f"section .BTF: type {len(types) + 1} is of unknown kind {kind}")
        size = _FIXED.get(kind, 0) + _PER_MEMBER.get(kind, 0) * vlen
        at += 12
        if at + size > end:
            raise RefusedError(f"section .BTF: type {len(types) + 1} is cut short")
        types.append(BtfType(name, kind, vlen, flag, size_or_type, data[at : at + size]))
        at += size
    return types


def write_btf(btf: Btf) -> bytes:
    """Encode; the inverse of ``read_btf``."""
    record = Struct(btf.order + "III")
    parts = []
    for known in btf.types:
        info = known.kind << 24 | known.vlen | (0x8000_0000 if known.kind_flag else 0)
        parts.append(record.pack(known.name_offset, info, known.size_or_type))
        parts.append(known.tail)
    types = b"".join(parts)
    header = Struct(btf.order + "HBBIIIII").pack(
        MAGIC, 1, btf.flags, HEADER_SIZE, 0, len(types), len(types), len(btf.strings)
    )
    return header + types + btf.strings

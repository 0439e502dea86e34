"""BTF for lookups: of an object, or of a whole kernel (150,000 types read in a tenth of a second).

Nothing is kept of a type but where its record begins; names are read when they are asked for.
Layout: Documentation/bpf/btf.rst, include/uapi/linux/btf.h. ``transform.btf`` is the lossless model
that is edited; this one only answers.
"""

from __future__ import annotations

import io
import struct
from functools import cached_property
from struct import Struct

from bpfchain.transform.btf import Kind
from bpfchain.transform.errors import RefusedError

__all__ = ["Member", "Types", "essential", "read_target"]

MAGIC = 0xEB9F
_HEAD, _INFO, _PAIR, _WORD = Struct("<III"), Struct("<4xI"), Struct("<II"), Struct("<I")
_ENUM = Struct("<Ii")
_ADDED = {Kind.INT: 4, Kind.ARRAY: 12, Kind.VAR: 4, Kind.DECL_TAG: 4}
_PER_MEMBER = {
    Kind.STRUCT: 12, Kind.UNION: 12, Kind.ENUM: 8, Kind.FUNC_PROTO: 8, Kind.DATASEC: 12,
    Kind.ENUM64: 12,
}  # fmt: skip
_SIZED = frozenset(
    {Kind.INT, Kind.STRUCT, Kind.UNION, Kind.ENUM, Kind.ENUM64, Kind.FLOAT, Kind.DATASEC}
)
_FOLLOWED = frozenset({*Kind.MODIFIERS, Kind.VAR})
_DEPTH = 64
"""No sound chain of types is longer; a circle is."""

Member = tuple[int, int, int]
"""STRUCT, UNION: name, type, bit offset; DATASEC: type, offset, size."""


class Types:
    """The types of a little-endian .BTF section. Type 0 is void (kind 0).

    Raises RefusedError, beginning with ``what``, for bytes that are no BTF.
    """

    def __init__(self, data: bytes, what: str = "section .BTF") -> None:
        self.what = what
        if len(data) < 24:
            raise RefusedError(f"{what}: {len(data)} bytes are no BTF")
        magic, version, _, head, at, size, strings, strings_size = Struct("<HBBIIIII").unpack_from(
            data
        )
        if magic != MAGIC or version != 1:
            raise RefusedError(
                f"{what}: magic {magic:#x} version {version} is no BTF that runs here"
            )
        if head + at + size > len(data) or head + strings + strings_size > len(data):
            raise RefusedError(f"{what}: the BTF is cut short")
        self._data = data[head + at : head + at + size]
        self._strings = data[head + strings : head + strings + strings_size]
        self._starts = self._walk()

    def _walk(self) -> list[int]:
        sizes = [
            (12 + _ADDED.get(kind, 0), _PER_MEMBER.get(kind, 0)) for kind in range(Kind.ENUM64 + 1)
        ]
        data, unpack = self._data, _INFO.unpack_from
        starts, at, end = [-1], 0, len(self._data)
        try:
            while at < end:
                starts.append(at)
                (info,) = unpack(data, at)
                fixed, each = sizes[info >> 24 & 0x1F]
                at += fixed + each * (info & 0xFFFF)
        except (IndexError, struct.error) as error:
            raise RefusedError(f"{self.what}: type {len(starts) - 1} is not readable") from error
        if at != end:
            raise RefusedError(f"{self.what}: type {len(starts) - 1} is cut short")
        return starts

    def __len__(self) -> int:
        return len(self._starts)

    def head(self, type_id: int) -> tuple[int, int, int]:
        """Name offset, info, and size or type. Raises RefusedError for an unknown id."""
        if not 0 < type_id < len(self._starts):
            if type_id == 0:
                return 0, 0, 0
            raise RefusedError(f"{self.what}: type {type_id} does not exist")
        return _HEAD.unpack_from(self._data, self._starts[type_id])

    def kind(self, type_id: int) -> int:
        """``Kind``, 0 for void."""
        return self.head(type_id)[1] >> 24 & 0x1F

    def vlen(self, type_id: int) -> int:
        """How many members, enumerators or parameters; a FUNC's or its linkage."""
        return self.head(type_id)[1] & 0xFFFF

    def flag(self, type_id: int) -> bool:
        """``kind_flag``."""
        return bool(self.head(type_id)[1] >> 31)

    def target(self, type_id: int) -> int:
        """The type that a PTR, modifier, TYPEDEF, VAR, FUNC or FUNC_PROTO names."""
        return self.head(type_id)[2]

    def string(self, offset: int) -> str:
        """The string at ``offset``."""
        end = self._strings.find(b"\0", offset)
        if end < 0:
            raise RefusedError(f"{self.what}: string {offset} is outside the strings")
        return self._strings[offset:end].decode("utf-8", "backslashreplace")

    def name(self, type_id: int) -> str:
        """Empty for anonymous types."""
        return self.string(self.head(type_id)[0])

    def words(self, type_id: int, count: int = 1) -> tuple[int, ...]:
        """What follows the record: an INT's encoding, an ARRAY's element, index type and length,
        a VAR's linkage."""
        return Struct(f"<{count}I").unpack_from(self._data, self._starts[type_id] + 12)

    def members(self, type_id: int) -> list[Member]:
        """Of a STRUCT, UNION or DATASEC."""
        start = self._starts[type_id] + 12
        return list(_HEAD.iter_unpack(self._data[start : start + 12 * self.vlen(type_id)]))

    def parameters(self, type_id: int) -> list[int]:
        """Types of a FUNC_PROTO's parameters."""
        start = self._starts[type_id] + 12
        part = self._data[start : start + 8 * self.vlen(type_id)]
        return [kind for _, kind in _PAIR.iter_unpack(part)]

    def enumerators(self, type_id: int) -> list[tuple[str, int]]:
        """Of an ENUM or ENUM64: name and value, signed where the type is (an ENUM's always)."""
        start = self._starts[type_id] + 12
        count = self.vlen(type_id)
        if self.kind(type_id) == Kind.ENUM:
            part = self._data[start : start + 8 * count]
            return [(self.string(name), value) for name, value in _ENUM.iter_unpack(part)]
        found = []
        for name, low, high in _HEAD.iter_unpack(self._data[start : start + 12 * count]):
            value = high << 32 | low
            if self.flag(type_id) and value >> 63:
                value -= 1 << 64
            found.append((self.string(name), value))
        return found

    def bits(self, type_id: int, member: Member) -> tuple[int, int]:
        """A member's bit offset, and its bit field's width (0: none)."""
        if self.flag(type_id):
            return member[2] & 0xFF_FFFF, member[2] >> 24
        return member[2], 0

    def plain(self, type_id: int) -> int:
        """The type behind typedefs and modifiers."""
        for _ in range(_DEPTH):
            if self.kind(type_id) not in Kind.MODIFIERS:
                return type_id
            type_id = self.target(type_id)
        raise RefusedError(f"{self.what}: type {type_id} is defined by itself")

    def size(self, type_id: int) -> int:
        """Bytes. Raises RefusedError for what has no size (void, functions, forward ones)."""
        count = 1
        for _ in range(_DEPTH):
            kind = self.kind(type_id)
            if kind in _SIZED:
                return count * self.head(type_id)[2]
            if kind == Kind.PTR:
                return count * 8
            if kind in _FOLLOWED:
                type_id = self.target(type_id)
            elif kind == Kind.ARRAY:
                type_id, _, length = self.words(type_id, 3)
                count *= length
            else:
                raise RefusedError(
                    f"{self.what}: type {type_id} ({self.name(type_id)}) has no size"
                )
        raise RefusedError(f"{self.what}: type {type_id} is defined by itself")

    def align(self, type_id: int) -> int:
        """Alignment in bytes of a number, a pointer, an enumeration, or an array of them."""
        for _ in range(_DEPTH):
            kind = self.kind(type_id)
            if kind == Kind.ARRAY:
                type_id = self.words(type_id, 3)[0]
            elif kind in _FOLLOWED:
                type_id = self.target(type_id)
            elif kind in (Kind.STRUCT, Kind.UNION):
                return max((self.align(m[1]) for m in self.members(type_id)), default=1)
            else:
                return min(self.size(type_id), 8)
        raise RefusedError(f"{self.what}: type {type_id} is defined by itself")

    @cached_property
    def _by_name(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        unpack, data = _WORD.unpack_from, self._data
        for type_id, start in enumerate(self._starts[1:], 1):
            (name,) = unpack(data, start)
            if name:
                found.setdefault(name, []).append(type_id)
        return found

    def _offsets(self, text: bytes) -> list[int]:
        """Where strings begin that begin with ``text`` (also inside longer strings)."""
        found, at = [], self._strings.find(text)
        while at >= 0:
            found.append(at)
            at = self._strings.find(text, at + 1)
        return found

    def named(self, name: str) -> list[int]:
        """All types of exactly that name, in order."""
        known = self._by_name
        return sorted(i for at in self._offsets(name.encode() + b"\0") for i in known.get(at, ()))

    def flavours(self, name: str) -> list[int]:
        """All types whose name but for a flavour (``___x``) is ``name``, in order."""
        known, text = self._by_name, name.encode()
        offsets = [*self._offsets(text + b"\0"), *self._offsets(text + b"___")]
        return sorted(
            i for at in offsets for i in known.get(at, ()) if essential(self.string(at)) == name
        )


def essential(name: str) -> str:
    """The name without its flavour: ``task_struct`` of ``task_struct___old``.

    As libbpf: the last ``___`` counts that has a character before and behind it other than ``_``.
    """
    if "___" not in name:
        return name
    for at in range(len(name) - 5, -1, -1):
        if name[at] != "_" and name[at + 1 : at + 4] == "___" and name[at + 4] != "_":
            return name[: at + 1]
    return name


def read_target(data: bytes, what: str = "--btf") -> Types:
    """The types of a raw BTF file (``/sys/kernel/btf/vmlinux``) or of an ELF file's .BTF section."""
    if data[:4] != b"\x7fELF":
        return Types(data, what)
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        section = ELFFile(io.BytesIO(data)).get_section_by_name(".BTF")
        body = section.data() if section is not None else None
    except (ELFError, ValueError) as error:
        raise RefusedError(f"{what}: not a readable ELF file: {error}") from None
    if body is None:
        raise RefusedError(f"{what}: the ELF file has no section .BTF")
    return Types(body, what)

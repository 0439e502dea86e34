"""BTF.ext: which function, source line and CO-RE relocation stand at which instruction.

Records belong to a section and hold byte offsets into it; the kernel and every loader want them
sorted, one block a section (research, loaders-and-verifier.md, section 1).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from struct import Struct

from .errors import RefusedError

__all__ = ["BtfExt", "Record", "Subsection", "read_btf_ext", "write_btf_ext"]

MAGIC = 0xEB9F
HEADER_SIZE = 32
FUNC_INFO, LINE_INFO, CORE_RELO = 0, 1, 2
_NAMES = ("func_info", "line_info", "core_relo")
RECORD_SIZES = (8, 16, 16)


@dataclass(frozen=True, slots=True)
class Record:
    """One record: a byte ``offset`` into its section, and what follows it on the wire."""

    offset: int
    rest: bytes


@dataclass(frozen=True, slots=True)
class Subsection:
    """The records of one kind, in blocks by the name of the section they belong to.

    Blocks stay packed until somebody asks for a section's records: a large object has many more
    than one edit looks at.
    """

    order: str
    record_size: int
    packed: tuple[tuple[int, bytes], ...] = ()
    """Pairs of section name (offset into the BTF strings) and its records' bytes."""

    @property
    def blocks(self) -> tuple[tuple[int, tuple[Record, ...]], ...]:
        """All blocks, decoded."""
        return tuple((name, self._decode(data)) for name, data in self.packed)

    def of(self, names: frozenset[int]) -> tuple[Record, ...]:
        """All records of a section, whose name may be spelt by several string offsets."""
        found = [rec for name, data in self.packed if name in names for rec in self._decode(data)]
        return tuple(sorted(found, key=lambda rec: rec.offset))

    def with_records(
        self, names: frozenset[int], name: int, records: Iterable[Record]
    ) -> Subsection:
        """The subsection where a section has exactly these records, in one sorted block.

        ``name`` is how the section is spelt where it has no block yet.
        """
        word = Struct(self.order + "I")
        ordered = sorted(records, key=lambda rec: rec.offset)
        block = b"".join(word.pack(record.offset) + record.rest for record in ordered)
        kept = [known for known in self.packed if known[0] not in names]
        spelt = [known[0] for known in self.packed if known[0] in names]
        at = len(kept)
        if spelt:
            first = next(i for i, known in enumerate(self.packed) if known[0] in names)
            at = sum(1 for known in self.packed[:first] if known[0] not in names)
        if block:
            kept.insert(at, (spelt[0] if spelt else name, block))
        return replace(self, packed=tuple(kept))

    def _decode(self, data: bytes) -> tuple[Record, ...]:
        size = self.record_size
        fields = Struct(f"{self.order}I{size - 4}s")
        return tuple(Record(offset, rest) for offset, rest in fields.iter_unpack(data))


@dataclass(frozen=True, slots=True)
class BtfExt:
    """A .BTF.ext section: ``func_info``, ``line_info`` and ``core_relo``.

    ``header_size`` is 24 where the compiler knew no CO-RE; written back so only without edits.
    """

    order: str
    parts: tuple[Subsection, Subsection, Subsection]
    flags: int = 0
    header_size: int = HEADER_SIZE
    present: tuple[bool, bool, bool] = (True, True, True)
    """Whether a part was in the file at all (an empty part may still hold its record size)."""

    def with_part(self, number: int, part: Subsection) -> BtfExt:
        """The same information with one of the three parts replaced (and a header of 32 bytes)."""
        parts = list(self.parts)
        parts[number] = part
        present = list(self.present)
        present[number] = bool(part.packed)
        return replace(
            self,
            parts=(parts[0], parts[1], parts[2]),
            present=(present[0], present[1], present[2]),
            header_size=HEADER_SIZE,
        )


def read_btf_ext(data: bytes, order: str) -> BtfExt:
    """Decode a .BTF.ext section. Raises RefusedError with the place of what is wrong."""
    if len(data) < 24:
        raise RefusedError(f"section .BTF.ext: {len(data)} bytes are no header")
    magic, version, flags, hdr_len = Struct(order + "HBBI").unpack_from(data)
    if magic != MAGIC or version != 1:
        raise RefusedError(f"section .BTF.ext: magic {magic:#x} version {version} is not known")
    if hdr_len not in (24, 32) or len(data) < hdr_len:
        raise RefusedError(f"section .BTF.ext: a header of {hdr_len} bytes is not known")
    count = (hdr_len - 8) // 8
    spans = list(Struct(order + "II").iter_unpack(data[8:hdr_len])) + [(0, 0)] * (3 - count)
    body = data[hdr_len:]
    expected = 0
    parts, present = [], []
    for number, (offset, length) in enumerate(spans):
        if length and offset != expected:
            raise RefusedError(
                f"section .BTF.ext: {_NAMES[number]} does not follow what is before it"
            )
        if offset + length > len(body):
            raise RefusedError(f"section .BTF.ext: {_NAMES[number]} is cut short")
        expected = max(expected, offset + length) if length else expected
        parts.append(_read_part(body[offset : offset + length], order, number))
        present.append(bool(length))
    if expected != len(body):
        raise RefusedError(f"section .BTF.ext: {len(body) - expected} bytes belong to no part")
    return BtfExt(
        order, (parts[0], parts[1], parts[2]), flags, hdr_len, (present[0], present[1], present[2])
    )


def _read_part(data: bytes, order: str, number: int) -> Subsection:
    if not data:
        return Subsection(order, RECORD_SIZES[number])
    what = f"section .BTF.ext: {_NAMES[number]}"
    word, pair = Struct(order + "I"), Struct(order + "II")
    if len(data) < 4:
        raise RefusedError(f"{what} is cut short")
    (size,) = word.unpack_from(data)
    if not RECORD_SIZES[number] <= size <= 252 or size % 4:
        raise RefusedError(f"{what} has records of {size} bytes")
    blocks, at = [], 4
    while at < len(data):
        if at + 8 > len(data):
            raise RefusedError(f"{what} is cut short")
        name, count = pair.unpack_from(data, at)
        at += 8
        if at + count * size > len(data):
            raise RefusedError(f"{what}: a block of {count} records is cut short")
        blocks.append((name, data[at : at + count * size]))
        at += count * size
    return Subsection(order, size, tuple(blocks))


def write_btf_ext(ext: BtfExt) -> bytes:
    """Encode; the inverse of ``read_btf_ext``. A part without records has length 0."""
    bodies = [_write_part(ext, number) for number in range(3)]
    count = (ext.header_size - 8) // 8
    spans, at = [], 0
    for body in bodies[:count]:
        spans += [at, len(body)]
        at += len(body)
    header = Struct(ext.order + "HBBI").pack(MAGIC, 1, ext.flags, ext.header_size)
    return header + Struct(f"{ext.order}{len(spans)}I").pack(*spans) + b"".join(bodies)


def _write_part(ext: BtfExt, number: int) -> bytes:
    part = ext.parts[number]
    if not ext.present[number]:
        return b""
    out = [Struct(ext.order + "I").pack(part.record_size)]
    for name, data in part.packed:
        out += (Struct(ext.order + "II").pack(name, len(data) // part.record_size), data)
    return b"".join(out)

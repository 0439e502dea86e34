"""ELF64 BPF objects as readable values, for tests: what a section, symbol or relocation says is written down
field by field and packed here, with nothing of the transformer's own reader or writer.

Sections are numbered from 1 in the order they are given; ``.rel*``, ``.symtab`` and ``.strtab``
follow in that order. Layouts: System V ABI (gabi), chapter 4; BTF: Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

__all__ = [
    "Built", "Insns", "Obj", "Rel", "Sec", "Sym", "btf", "btf_ext", "build", "insn", "lddw",
]  # fmt: skip

PROGBITS, SYMTAB, STRTAB, NOBITS, REL = 1, 2, 3, 8, 9
ALLOC_EXEC, ALLOC_WRITE, ALLOC = 6, 3, 2
LOCAL, GLOBAL, WEAK = 0, 1, 2
NOTYPE, OBJECT, FUNC, SECTION = 0, 1, 2, 3
R_64_64, R_64_ABS64, R_64_32 = 1, 2, 10
Insns = bytes


@dataclass(frozen=True, slots=True)
class Sec:
    """A section. ``size`` is for NOBITS only; ``gap`` are the bytes put before it in the file."""

    name: str
    data: bytes = b""
    type: int = PROGBITS
    flags: int = 0
    align: int = 1
    entsize: int = 0
    size: int | None = None
    gap: bytes = b""


@dataclass(frozen=True, slots=True)
class Sym:
    """A symbol; ``section`` is a section's number, or one of the SHN_* specials."""

    name: str
    section: int
    value: int = 0
    size: int = 0
    bind: int = GLOBAL
    type: int = FUNC
    other: int = 0


@dataclass(frozen=True, slots=True)
class Rel:
    """A relocation: ``symbol`` is a place in ``Obj.symbols`` (0 is the first that was given)."""

    offset: int
    symbol: int
    type: int = R_64_64


@dataclass(frozen=True, slots=True)
class Obj:
    """A whole object. ``file_order`` is a permutation of all parts: section numbers, those of the
    generated sections included, and 0 for the section header table; None is the order given."""

    sections: tuple[Sec, ...]
    symbols: tuple[Sym, ...] = ()
    relocations: tuple[tuple[int, tuple[Rel, ...]], ...] = ()
    order: str = "<"
    file_order: tuple[int, ...] | None = None
    tail: bytes = b""
    extra_strings: tuple[str, ...] = ()
    table_gap: bytes = field(default=b"")

    @property
    def parts(self) -> int:
        """How many parts ``file_order`` permutes: the sections and the header table."""
        return len(self.sections) + len(self.relocations) + 3


@dataclass(frozen=True, slots=True)
class Built:
    """The object's bytes, and where things came to lie."""

    data: bytes
    offsets: tuple[int, ...]
    """File offset of each section; section 0 has 0."""
    shoff: int


def build(obj: Obj) -> Built:
    """Pack the object. Symbols must come with local ones first."""
    strings = bytearray(b"\0")

    def name(text: str) -> int:
        at = strings.find(b"\0" + text.encode() + b"\0")
        if not text:
            return 0
        if at >= 0:
            return at + 1
        strings.extend(text.encode() + b"\0")
        return len(strings) - len(text.encode()) - 1

    count = len(obj.sections)
    symtab_at = count + len(obj.relocations) + 1
    strtab_at = symtab_at + 1
    sym = struct.Struct(obj.order + "IBBHQQ")
    rel = struct.Struct(obj.order + "QQ")
    for text in obj.extra_strings:
        name(text)
    table = bytearray(sym.size)
    for s in obj.symbols:
        table += sym.pack(name(s.name), s.bind << 4 | s.type, s.other, s.section, s.value, s.size)
    local = 1 + sum(s.bind == LOCAL for s in obj.symbols)
    rows: list[tuple[Sec, int, int]] = [(s, 0, 0) for s in obj.sections]
    for target, items in obj.relocations:
        body = b"".join(rel.pack(i.offset, (i.symbol + 1) << 32 | i.type) for i in items)
        rows.append(
            (Sec(f".rel{obj.sections[target - 1].name}", body, REL, 0, 8, 16), symtab_at, target)
        )
    rows.append((Sec(".symtab", bytes(table), SYMTAB, 0, 8, 24), strtab_at, local))
    names = [name(row[0].name) for row in rows] + [name(".strtab")]
    rows.append((Sec(".strtab", bytes(strings), STRTAB), 0, 0))
    return _place(obj, rows, names)


def _place(obj: Obj, rows: list[tuple[Sec, int, int]], names: list[int]) -> Built:
    order = obj.file_order if obj.file_order is not None else (*range(1, len(rows) + 1), 0)
    assert sorted(order) == list(range(len(rows) + 1)), "file_order is no permutation"
    image = bytearray(64)
    offsets = [0] * (len(rows) + 1)
    shoff = 0
    for part in order:
        if part == 0:
            image += obj.table_gap
            shoff = len(image)
            image += bytes(64 * (len(rows) + 1))
            continue
        section = rows[part - 1][0]
        image += section.gap
        if not section.gap:
            image += bytes(-len(image) % max(section.align, 1))
        offsets[part] = len(image)
        image += section.data
    image += obj.tail
    header = struct.Struct(obj.order + "IIQQQQIIQQ")
    headers = bytearray(64)
    for (section, link, info), at, offset in zip(rows, names, offsets[1:], strict=True):
        size = section.size if section.size is not None else len(section.data)
        headers += header.pack(
            at, section.type, section.flags, 0, offset, size, link, info, section.align,
            section.entsize,
        )  # fmt: skip
    image[shoff : shoff + len(headers)] = headers
    ident = b"\x7fELF\2" + (b"\1" if obj.order == "<" else b"\2") + b"\1" + bytes(9)
    struct.pack_into(
        obj.order + "16sHHIQQQIHHHHHH", image, 0, ident, 1, 247, 1, 0, 0, shoff, 0, 64, 0, 0, 64,
        len(rows) + 1, len(rows),
    )  # fmt: skip
    return Built(bytes(image), tuple(offsets), shoff)


def insn(
    opcode: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0, *, order: str = "<"
) -> Insns:
    """One instruction (RFC 9669, section 3)."""
    registers = dst | src << 4 if order == "<" else dst << 4 | src
    return struct.pack(order + "BBhi", opcode, registers, off, imm)


def lddw(dst: int, value: int = 0, src: int = 0, *, order: str = "<") -> Insns:
    """A 64-bit immediate load; with a relocation on it, a map."""
    low, high = struct.unpack(
        order + "ii", struct.pack(order + "II", value & 0xFFFF_FFFF, value >> 32)
    )
    return insn(0x18, dst, src, 0, low, order=order) + insn(0, imm=high, order=order)


def btf(types: Iterable[tuple[str, int, int, int, Sequence[int]]], order: str = "<", *,
        strings: Iterable[str] = ()) -> tuple[bytes, dict[str, int]]:  # fmt: skip
    """A .BTF section of (name, kind, vlen, size or type, further words); and its string offsets."""
    pool = bytearray(b"\0")
    known: dict[str, int] = {"": 0}

    def name(text: str) -> int:
        if text not in known:
            known[text] = len(pool)
            pool.extend(text.encode() + b"\0")
        return known[text]

    body = b""
    for text, kind, vlen, size, words in types:
        body += struct.pack(order + "III", name(text), kind << 24 | vlen, size)
        body += struct.pack(f"{order}{len(words)}I", *words)
    for text in strings:
        name(text)
    header = struct.pack(order + "HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(pool))
    return header + body + bytes(pool), known


def btf_ext(
    parts: Sequence[tuple[int, Sequence[tuple[int, Sequence[Sequence[int]]]]] | None],
    order: str = "<",
    *,
    header: int = 32,
) -> bytes:
    """A .BTF.ext section of three parts: record size in bytes and (section name, records as words)
    blocks; None is a part of length 0."""
    body, spans = b"", []
    for part in parts[: (header - 8) // 8]:
        start = len(body)
        if part is not None:
            size, blocks = part
            body += struct.pack(order + "I", size)
            for section, records in blocks:
                body += struct.pack(order + "II", section, len(records))
                for record in records:
                    body += struct.pack(f"{order}{size // 4}I", *record)
        spans += [start, len(body) - start]
    head = struct.pack(order + "HBBI", 0xEB9F, 1, 0, header)
    return head + struct.pack(f"{order}{len(spans)}I", *spans) + body

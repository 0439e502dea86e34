"""Reading an object file through LIEF: the second opinion on what ``read`` saw.

Imported only when asked for; LIEF's import takes 0.4 s.
"""

from __future__ import annotations

from bpfchain.verify.result import Finding
from bpfchain.verify.static.model import (
    SHT_NOBITS,
    SHT_NULL,
    SHT_REL,
    STT_SECTION,
    Obj,
    Relocation,
    Section,
    Symbol,
    Unreadable,
    differs,
)

__all__ = ["disagreements", "read_object"]


def read_object(data: bytes) -> Obj:
    """Read one ELF64 object. Raises Unreadable with what is wrong."""
    import lief

    lief.logging.disable()
    binary = lief.ELF.parse(data)
    if binary is None or not isinstance(binary, lief.ELF.Binary):
        raise Unreadable("LIEF cannot read it")
    header = binary.header
    if header.identity_class != lief.ELF.Header.CLASS.ELF64:
        raise Unreadable("LIEF: not an ELF64 object")
    order = "<" if header.identity_data == lief.ELF.Header.ELF_DATA.LSB else ">"
    sections = []
    for index, one in enumerate(binary.sections):
        kind = int(one.type) & 0xFFFF_FFFF  # bits above tell the architecture
        body = b"" if kind in (SHT_NOBITS, SHT_NULL) else bytes(one.content)
        sections.append(
            Section(
                index, str(one.name), kind, int(one.flags), one.alignment, one.entry_size, body,
                one.size, one.link, one.information, one.virtual_address, one.file_offset,
            )
        )  # fmt: skip
    symbols = tuple(
        Symbol(
            index, str(one.name), int(one.shndx), one.value, one.size, int(one.type.value),
            int(one.binding.value), one.other,
        )
        for index, one in enumerate(binary.symtab_symbols)
    )  # fmt: skip
    targets = {one.info for one in sections if one.type == SHT_REL}
    relocations: dict[int, list[Relocation]] = {target: [] for target in targets}
    places = {one.offset: index for index, one in enumerate(binary.sections) if one.size}
    for item in binary.object_relocations:
        place = item.section
        if place is None:
            raise Unreadable(f"LIEF knows no section of the relocation at {item.address}")
        target = places.get(place.offset, -1)
        relocations.setdefault(target, []).append(
            Relocation(item.address, item.info, item.r_info(header.identity_class) & 0xFFFF_FFFF)
        )
    fields = (
        ("e_type", int(header.file_type.value)), ("e_machine", int(header.machine_type.value)),
        ("e_version", int(header.object_file_version.value)), ("e_entry", header.entrypoint),
        ("e_flags", header.processor_flag), ("e_phoff", header.program_header_offset),
        ("e_phentsize", header.program_header_size), ("e_phnum", header.numberof_segments), ("e_ehsize", header.header_size),
        ("e_shentsize", header.section_header_size),
        ("e_ident", int.from_bytes(bytes(header.identity), "big")),
    )  # fmt: skip
    return Obj(
        order, fields, tuple(sections), symbols,
        {target: tuple(group) for target, group in relocations.items()}, "lief",
    )  # fmt: skip


def disagreements(one: Obj, other: Obj, file: str) -> list[Finding]:
    """What two readers of the same file see differently. ``file`` is ``in`` or ``out``."""
    found = []

    def say(what: str, a: object, b: object) -> None:
        found.append(
            differs("readers", f"{file}: {what}: {one.reader} reads {a}, {other.reader} {b}")
        )

    if one.order != other.order:
        say("byte order", one.order, other.order)
    for (name, was), (_, now) in zip(one.header, other.header, strict=True):
        if was != now:
            say(name, was, now)
    if len(one.sections) != len(other.sections):
        say("sections", len(one.sections), len(other.sections))
    for left, right in zip(one.sections, other.sections, strict=False):
        if left != right:
            for name, mine, theirs in zip(left._fields, left, right, strict=True):
                if mine != theirs:
                    say(f"section {left.index} {left.name}: {name}", _short(mine), _short(theirs))
    if len(one.symbols) != len(other.symbols):
        say("symbols", len(one.symbols), len(other.symbols))
    for known, again in zip(one.symbols, other.symbols, strict=False):
        # a section's symbol has no name of its own; readers may lend it the section's
        a, b = (s._replace(name="") if s.type == STT_SECTION else s for s in (known, again))
        if a != b:
            say(f"symbol {known.index} {known.name}", a[2:], b[2:])
    for target in sorted(one.relocations.keys() | other.relocations.keys()):
        mine_r = sorted(one.relocations.get(target, ()))
        theirs_r = sorted(other.relocations.get(target, ()))
        if mine_r != theirs_r:
            name = one.sections[target].name if 0 <= target < len(one.sections) else str(target)
            say(f"relocations of {name}", len(mine_r), f"{len(theirs_r)}, or others")
    return found


def _short(value: object) -> str:
    return f"{len(value)} bytes, or others" if isinstance(value, bytes) else str(value)

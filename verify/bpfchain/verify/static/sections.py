"""Accounting of the ELF header and of sections: each of IN is in OUT as it was, but for what the
patch may change; none is added that the patch does not need.
"""

from __future__ import annotations

from typing import Final

from bpfchain.verify.static.intent import SECTION as PROVENANCE
from bpfchain.verify.static.model import (
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_WRITE,
    SHT_GROUP,
    SHT_LLVM_ADDRSIG,
    SHT_NULL,
    SHT_PROGBITS,
    SHT_REL,
    SHT_STRTAB,
    SHT_SYMTAB,
    SHT_SYMTAB_SHNDX,
    STB_LOCAL,
    Obj,
    Section,
)
from bpfchain.verify.static.pair import LEGACY_MAPS, Pair

__all__ = ["check_sections"]

SHF_INFO_LINK: Final = 0x40
_DEBUG: Final = (".debug_", ".rel.debug_")
_BTF: Final = (".BTF", ".BTF.ext")


def check_sections(pair: Pair) -> None:
    """Every rule of this module."""
    _header(pair)
    _dropped(pair)
    _added(pair)
    _order_of_symbols(pair)
    for section in pair.before.sections:
        other = pair.sections.get(section.index)
        if other is not None:
            _attributes(pair, section, pair.after.sections[other])
            _content(pair, section, pair.after.sections[other])
            pair.counted["sections"] += 1


def _header(pair: Pair) -> None:
    if pair.before.order != pair.after.order:
        pair.say("header", "the byte order is another one")
    for (name, was), (_, now) in zip(pair.before.header, pair.after.header, strict=True):
        if was != now:
            pair.say("header", f"ELF header: {name} was {was:#x} and is {now:#x}")


def _dropped(pair: Pair) -> None:
    """Only DWARF may go (all of it or nothing), and relocations of BTF that was written anew."""
    gone = [s for s in pair.before.sections if s.index not in pair.sections]
    debug = [s for s in gone if s.name.startswith(_DEBUG)]
    for section in gone:
        if section.name.startswith(_DEBUG):
            continue
        target = pair.before.sections[section.info] if section.type == SHT_REL else None
        if target is not None and target.name in _BTF:
            now = pair.sections.get(target.index)
            if now is not None and pair.after.sections[now].data != target.data:
                continue  # the values are final where every section begins at 0
        pair.say("section", f"section {section.name} is missing")
    kept = [s for s in pair.before.sections if s.name.startswith(_DEBUG) and s not in debug]
    if debug and kept:
        pair.say(
            "debug",
            f"DWARF is dropped in part: {debug[0].name} is missing and {kept[0].name} is not",
        )
    told = pair.intent.debug
    real = "dropped" if debug else "kept" if kept else "none"
    if told != real:
        pair.say("provenance", f"section {PROVENANCE}: debug={told}, but DWARF is {real}")


def _added(pair: Pair) -> None:
    """What the patch may add, each with the attributes that loaders expect, behind all others."""
    executable = SHF_ALLOC | SHF_EXECINSTR
    last = max(pair.sections.values(), default=0)
    names: set[str] = set()
    for section in pair.added_sections:
        what = f"section {section.name}"
        if section.index < last or section.name in names:
            pair.say("section", f"{what} is added before others, or twice")
        names.add(section.name)
        if section.type == SHT_REL:
            _added_relocations(pair, section)
            continue
        form = (section.type, section.flags)
        absent = pair.before.named(section.name) is None
        if section.name == PROVENANCE:
            right = form == (SHT_STRTAB, SHF_ALLOC)
        elif section.name == ".text":
            right = form == (SHT_PROGBITS, executable) and section.align == 8 and pair.shared
        elif section.name == ".maps":
            right = form == (SHT_PROGBITS, SHF_WRITE | SHF_ALLOC) and section.align == 8
        elif section.name == ".BTF":
            right = form == (SHT_PROGBITS, 0)
        else:
            right = False
        odd = section.entsize or section.address or section.align not in (1, 4, 8)
        if not right or not absent or odd or section.offset % section.align:
            pair.say("section", f"{what} is added (type {section.type}, flags {section.flags:#x})")
        if section.link or section.info:
            pair.say("section", f"{what} is added with links to other sections")


def _added_relocations(pair: Pair, section: Section) -> None:
    target = pair.after.sections[section.info]
    symtab = next((s.index for s in pair.after.sections if s.type == SHT_SYMTAB), 0)
    needed = section.info in (pair.home, pair.text) or target.name == ".maps"
    right = (
        needed
        and section.name == f".rel{target.name}"
        and section.flags in (0, SHF_INFO_LINK)
        and (section.align, section.entsize, section.link) == (8, 16, symtab)
        and section.address == 0
    )
    if not right:
        pair.say("section", f"section {section.name}, which relocates {target.name}, is added")


def _order_of_symbols(pair: Pair) -> None:
    """sh_info of a symbol table is the number of its local symbols, which come first."""
    if pair.before.symbols == pair.after.symbols:
        return  # as it was, whatever it is: `bpftool gen object` does not sort
    for section in pair.after.sections:
        if section.type == SHT_SYMTAB:
            locals_ = [s.binding == STB_LOCAL for s in pair.after.symbols]
            if section.info != sum(locals_) or not all(locals_[: section.info]):
                pair.say("section", f"section {section.name}: local symbols do not come first")


def _attributes(pair: Pair, section: Section, other: Section) -> None:
    if section.name == LEGACY_MAPS and other.name == ".maps":
        wanted = section._replace(name=".maps", flags=SHF_WRITE | SHF_ALLOC, align=8)
    else:
        wanted = section
    if section.type == SHT_NULL and section.size != other.size:
        pair.say("section", f"section 0: its size was {section.size}, is {other.size}")
    aligned = section.align <= 1 or section.offset % section.align == 0
    if aligned and other.data and other.align > 1 and other.offset % other.align:
        pair.say(
            "section", f"section {other.name}: at {other.offset}, not aligned to {other.align}"
        )
    link = pair.sections.get(section.link) if section.link else 0
    info: int | None = section.info
    if section.type in (SHT_REL, SHT_GROUP) and section.info:
        table = pair.sections if section.type == SHT_REL else pair.symbols
        info = table.get(section.info)
    elif section.type == SHT_SYMTAB:
        info = other.info if pair.before.symbols != pair.after.symbols else section.info
    for name, was, now in (
        ("flags", wanted.flags, other.flags),
        ("alignment", wanted.align, other.align),
        ("entry size", wanted.entsize, other.entsize),
        ("address", wanted.address, other.address),
        ("link", link, other.link),
        ("info", info, other.info),
    ):
        if was != now:
            pair.say("section", f"section {other.name}: its {name} should be {was} and is {now}")


def _content(pair: Pair, section: Section, other: Section) -> None:
    """Sections that nothing else accounts for keep their bytes."""
    if section.type in (SHT_NULL, SHT_SYMTAB, SHT_REL) or section.executable:
        return  # by symbols, by relocations, by the alignment of instructions
    if section.name in (*_BTF, ".maps", LEGACY_MAPS, PROVENANCE):
        return  # each has rules of its own
    if section.index in _name_tables(pair.before) and other.index in _name_tables(pair.after):
        return  # names are compared where they are used
    if section.type == SHT_LLVM_ADDRSIG:
        _addrsig(pair, section, other)
        return
    if section.type == SHT_GROUP:
        if section.data != other.data or pair.sections != {i: i for i in pair.sections}:
            pair.doubt("section", f"section {section.name}: a group of sections is not interpreted")
        return
    if section.type == SHT_SYMTAB_SHNDX:
        pair.doubt("section", f"section {section.name}: so many sections are not interpreted")
        return
    if section.size != other.size:
        pair.say("section", f"section {section.name}: its size was {section.size}, is {other.size}")
        return
    if section.data != other.data:
        _compare_bytes(pair, section, other)


def _compare_bytes(pair: Pair, section: Section, other: Section) -> None:
    """Bytes may differ only where a relocation's addend moved with the code it refers to."""
    relocated: set[int] = set()
    if not section.name.startswith(_DEBUG):  # kept only where no code has moved
        for item in pair.before.relocations.get(section.index, ()):
            relocated.update(range(item.offset, item.offset + 8))
    for offset, (was, now) in enumerate(zip(section.data, other.data, strict=True)):
        if was != now and offset not in relocated:
            pair.say(
                "content",
                f"section {section.name}: byte {offset} was {was:#04x} and is {now:#04x}",
            )
            return


def _name_tables(obj: Obj) -> set[int]:
    tables = {section.link for section in obj.sections if section.type == SHT_SYMTAB}
    # the table of section names has no reference that survives reading; it is the STRTAB by name
    return tables | {s.index for s in obj.sections if s.name in (".shstrtab", ".strtab")}


def _addrsig(pair: Pair, section: Section, other: Section) -> None:
    """``.llvm_addrsig`` lists symbol indexes as ULEB128; those of dropped symbols are left out."""
    before, after = _ulebs(section.data), _ulebs(other.data)
    if before is None or after is None:
        pair.doubt("section", f"section {section.name}: it is cut short")
        return
    wanted = [pair.symbols[index] for index in before if index in pair.symbols]
    if section.link == 0 and before == after:
        return  # a tool that did not know the section has left it stale (LLVM docs, Extensions)
    if wanted != after:
        pair.say("section", f"section {section.name}: it names other symbols than in IN")


def _ulebs(data: bytes) -> list[int] | None:
    found: list[int] = []
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            found.append(value)
            value = shift = 0
    return None if shift else found

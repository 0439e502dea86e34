"""What an object holds, by readers that share no code with the transformer: pyelftools and LIEF.

``read`` gives pyelftools' view with names in place of indexes, so that two objects can be compared
although their tables are numbered otherwise; ``disagreements`` holds LIEF's view against it.
"""

from __future__ import annotations

import io
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lief
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

SHF_EXECINSTR = 4


@dataclass(frozen=True, slots=True)
class SymbolView:
    """A symbol; ``section`` is the name of the section it is in, or UNDEF, ABS, COMMON."""

    name: str
    section: str
    value: int
    size: int
    type: str
    bind: str
    visibility: str

    @property
    def kind(self) -> tuple[str, str, str, str, str]:
        """All that does not depend on where things lie."""
        return (self.name, self.section, self.type, self.bind, self.visibility)


@dataclass(frozen=True, slots=True)
class RelocationView:
    """A relocation: where, of which type, against which symbol."""

    offset: int
    type: int
    symbol: SymbolView


@dataclass(frozen=True, slots=True)
class SectionView:
    """A section's header fields and bytes (relocations decoded apart)."""

    name: str
    type: str
    flags: int
    align: int
    entsize: int
    data: bytes
    target: str | None
    """The section that a relocation section is for."""
    link: str


@dataclass(frozen=True, slots=True)
class View:
    """An object as pyelftools reads it. Section names of BPF objects are unique."""

    sections: dict[str, SectionView]
    symbols: tuple[SymbolView, ...]
    relocations: dict[str, tuple[RelocationView, ...]]
    """By the section that they change, in the file's order."""

    def functions(self, section: str) -> list[SymbolView]:
        """FUNC symbols of a section, by address."""
        found = [s for s in self.symbols if s.type == "STT_FUNC" and s.section == section]
        return sorted(found, key=lambda symbol: symbol.value)

    def function(self, name: str) -> SymbolView:
        (found,) = [s for s in self.symbols if s.type == "STT_FUNC" and s.name == name]
        return found

    def code(self, name: str) -> bytes:
        symbol = self.function(name)
        return self.sections[symbol.section].data[symbol.value : symbol.value + symbol.size]

    def references(self, section: str, start: int, end: int) -> list[tuple[int, int, Any]]:
        """Relocations of a range: offset in it, type, the symbol's name and section."""
        return sorted(
            (item.offset - start, item.type, item.symbol.kind)
            for item in self.relocations.get(section, ())
            if start <= item.offset < end
        )

    def executable(self) -> list[str]:
        return [s.name for s in self.sections.values() if s.flags & SHF_EXECINSTR]


def read(data: bytes) -> View:
    """The object as pyelftools reads it."""
    elf = ELFFile(io.BytesIO(data))
    names = [section.name for section in elf.iter_sections()]
    assert len(set(names)) == len(names), f"two sections of one name: {names}"
    table = elf.get_section_by_name(".symtab")
    assert isinstance(table, SymbolTableSection)
    symbols = []
    for symbol in table.iter_symbols():
        place = symbol["st_shndx"]
        symbols.append(
            SymbolView(
                symbol.name, names[place] if isinstance(place, int) else place.removeprefix("SHN_"),
                symbol["st_value"], symbol["st_size"], symbol["st_info"]["type"],
                symbol["st_info"]["bind"], symbol["st_other"]["visibility"],
            )
        )  # fmt: skip
    sections, relocations = {}, {}
    for section in elf.iter_sections():
        target = None
        if isinstance(section, RelocationSection):
            target = names[section["sh_info"]]
            relocations[target] = tuple(
                RelocationView(item["r_offset"], item["r_info_type"], symbols[item["r_info_sym"]])
                for item in section.iter_relocations()
            )
        nobits = section["sh_type"] == "SHT_NOBITS"
        content = bytes(section["sh_size"]) if nobits else section.data()
        sections[section.name] = SectionView(
            section.name, str(section["sh_type"]), section["sh_flags"], section["sh_addralign"],
            section["sh_entsize"], content, target, names[section["sh_link"]],
        )  # fmt: skip
    return View(sections, tuple(symbols), relocations)


def disagreements(data: bytes, view: View) -> list[str]:
    """Where LIEF reads something else than pyelftools."""
    elf = lief.ELF.parse(list(data))
    if elf is None:
        return ["LIEF does not read it"]
    said = []
    theirs = [section.name for section in elf.sections]
    if theirs != list(view.sections):
        said.append(f"sections: LIEF {theirs}, pyelftools {list(view.sections)}")
    for section in elf.sections:
        mine = view.sections.get(str(section.name))
        if mine is None or mine.type in ("SHT_NOBITS", "SHT_NULL"):
            continue
        if bytes(section.content) != mine.data or int(section.alignment) != mine.align:
            said.append(f"section {mine.name}: bytes or alignment differ")
    count = len(view.symbols)
    table = [
        (str(s.name), s.value, s.size, int(s.binding), int(s.type)) for s in elf.symtab_symbols
    ]
    binds = {"STB_LOCAL": 0, "STB_GLOBAL": 1, "STB_WEAK": 2}
    types = {"STT_NOTYPE": 0, "STT_OBJECT": 1, "STT_FUNC": 2, "STT_SECTION": 3, "STT_FILE": 4}
    mine_table = [(s.name, s.value, s.size, binds[s.bind], types[s.type]) for s in view.symbols]
    # LIEF names section symbols after their sections.
    simple = [row if row[4] != 3 else ("", *row[1:]) for row in table]
    if simple != [row if row[4] != 3 else ("", *row[1:]) for row in mine_table]:
        said.append(f"symbols: LIEF reads {len(table)}, pyelftools {count}, not the same")
    return said


def btf_types(data: bytes, bpftool: list[str]) -> list[dict[str, Any]] | None:
    """The BTF types as bpftool (libbpf) reads them; None if there is no BTF."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.o"
        path.write_bytes(data)
        command = [*bpftool, "-j", "btf", "dump", "file", str(path), "format", "raw"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        assert b"\0.BTF\0" not in data, done.stderr + done.stdout
        return None
    types: list[dict[str, Any]] = json.loads(done.stdout)["types"]
    return types


def uleb128(data: bytes) -> list[int]:
    """The numbers in a section of ULEB128, as .llvm_addrsig is."""
    found, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            found.append(value)
            value = shift = 0
    return found

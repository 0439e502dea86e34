"""The corpus programs: all listed, rebuilt byte for byte, loaded as they are."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

PROGRAMS = Path(__file__).resolve().parents[2] / "corpus" / "programs"
ORDERS = ("el", "eb")
KEYS = {
    "name", "source", "feature", "sections", "program", "hook", "expect", "why", "inline",
    "subprog", "refused_programs", "loads", "load_type", "note",
}  # fmt: skip


def read_index() -> list[dict[str, Any]]:
    """The entries of corpus/programs/index.toml; its head explains the keys."""
    entries: list[dict[str, Any]] = tomllib.loads((PROGRAMS / "index.toml").read_text())["object"]
    return entries


INDEX = read_index()


def by_name(entry: dict[str, Any]) -> str:
    return str(entry["name"])


def entry_programs(entry: dict[str, Any]) -> list[str]:
    """Names of the programs that can be loaded: those outside .text."""
    return [
        program
        for section, programs in entry["sections"].items()
        if section != ".text"
        for program in programs
    ]


def functions(path: Path) -> dict[str, list[str]]:
    """Section name -> names of its functions in order of address, read with pyelftools."""
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        assert elf["e_machine"] == "EM_BPF"
        assert elf.little_endian == (path.parent.name == "el")
        table = elf.get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        symbols = [
            symbol for symbol in table.iter_symbols() if symbol["st_info"]["type"] == "STT_FUNC"
        ]
        found: dict[str, list[str]] = {}
        for symbol in sorted(symbols, key=lambda symbol: symbol["st_value"]):
            found.setdefault(elf.get_section(symbol["st_shndx"]).name, []).append(symbol.name)
        # Decoding every section's bytes is what finds a broken table.
        assert sum(len(section.data()) for section in elf.iter_sections()) > 0
    return found


def test_index_lists_exactly_the_objects() -> None:
    names = [entry["name"] for entry in INDEX]
    assert len(names) == len(set(names))
    assert len(names) > 50
    for order in ORDERS:
        assert {path.stem for path in (PROGRAMS / order).iterdir()} == set(names)
        assert {path.suffix for path in (PROGRAMS / order).iterdir()} == {".o"}
    sources = {path.name for path in PROGRAMS.glob("*.c")}
    assert {entry["source"] for entry in INDEX} == sources


@pytest.mark.parametrize("entry", INDEX, ids=by_name)
def test_entry(entry: dict[str, Any]) -> None:
    assert set(entry) <= KEYS
    assert entry["expect"] in ("link", "refused")
    assert ("why" in entry) == (entry["expect"] == "refused")
    programs = entry_programs(entry)
    assert "program" in entry or len(programs) == 1, "name the program to patch"
    assert entry.get("program", programs[0]) in programs
    assert set(entry.get("refused_programs", {})) <= set(programs)
    for key, kinds in (("loads", "never|no"), ("inline", "no"), ("subprog", "no")):
        assert key not in entry or re.match(rf"({kinds}): \S", entry[key])
    source = (PROGRAMS / entry["source"]).read_text()
    licence, comment = source.splitlines()[:2]
    assert licence == "// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)"
    assert comment.startswith("/* Feature: ")


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("entry", INDEX, ids=by_name)
def test_object_holds_what_the_index_says(entry: dict[str, Any], order: str) -> None:
    assert functions(PROGRAMS / order / f"{entry['name']}.o") == entry["sections"]


def recorded() -> dict[str, str]:
    """Tool -> version that built the committed objects (corpus/programs/COMPILER)."""
    lines = (PROGRAMS / "COMPILER").read_text().splitlines()
    return dict(line.split(": ", 1) for line in lines)


def why_no_rebuild() -> str:
    """Why this machine cannot build the same bytes; empty if it should."""
    for tool in ("clang", "llvm-strip", "make", "dpkg-query"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    here = subprocess.run(
        ["make", "-s", "-C", PROGRAMS, "-f", "Makefile", "versions"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    installed = dict(line.split(": ", 1) for line in here.splitlines())
    for tool in ("clang", "llvm-strip", "libbpf-dev"):
        if installed.get(tool) != recorded()[tool]:
            return f"{tool} is {installed.get(tool)!r}, the objects come from {recorded()[tool]!r}"
    return ""


def test_rebuild_is_identical(tmp_path: Path) -> None:
    """In another folder, from copies: neither the folder nor what lies around it may show."""
    if reason := why_no_rebuild():
        pytest.skip(reason)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(PROGRAMS, elsewhere, ignore=shutil.ignore_patterns("*.o"))
    subprocess.run(
        ["make", "-s", "-j2", "-C", elsewhere], check=True, capture_output=True, text=True
    )
    different = [
        f"{order}/{entry['name']}.o"
        for order in ORDERS
        for entry in INDEX
        if (elsewhere / order / f"{entry['name']}.o").read_bytes()
        != (PROGRAMS / order / f"{entry['name']}.o").read_bytes()
    ]
    assert not different, f"recorded: {recorded()}"


LOADED_BY_DEFAULT = [entry for entry in INDEX if not entry.get("loads", "").startswith("no:")]


@pytest.mark.parametrize("entry", LOADED_BY_DEFAULT, ids=by_name)
def test_loads_unpatched(entry: dict[str, Any], bpffs: Path) -> None:
    """With plain bpftool; where the index says never, it must fail."""
    if shutil.which("bpftool") is None:
        pytest.skip("bpftool is not installed")
    path = PROGRAMS / "el" / f"{entry['name']}.o"
    command = ["bpftool", "prog", "loadall", str(path), str(bpffs / "o")]
    if "load_type" in entry:
        command += ["type", entry["load_type"]]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    said = done.stdout + done.stderr
    if "loads" in entry:
        assert done.returncode != 0, f"{entry['loads']}\n{said}"
        return
    assert done.returncode == 0, said
    assert "BTF is optional, ignoring" not in said, said
    pins = {path.name for path in (bpffs / "o").iterdir()}
    # libbpf 1.x pins by the program's name.
    assert pins == set(entry_programs(entry)), said


def test_what_was_not_tried_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """What this machine's loader or kernel may refuse: printed with its reason, and few."""
    left_out = [entry for entry in INDEX if entry not in LOADED_BY_DEFAULT]
    with capsys.disabled():
        for entry in left_out:
            print(f"\nnot loaded: {entry['name']}: {entry['loads'].removeprefix('no: ')}", end="")
    assert len(left_out) < len(INDEX) // 8

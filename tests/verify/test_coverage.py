"""Coverage: merged from runs, summed by line; lines and functions as LLVM reads them from DWARF."""

from __future__ import annotations

import posixpath
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bpfchain.transform.errors import RefusedError
from bpfchain.verify.coverage import lines_of, listing_of, merge, sources_of, with_sources
from bpfchain.verify.result import ProgramCoverage
from support import sample_reports as samples

PROGRAMS = Path(__file__).parents[2] / "corpus" / "programs"
WITH_DWARF = [PROGRAMS / order / f"{name}.o" for order in ("el", "eb")
              for name in ("filter", "two_progs", "static_subprog")]  # fmt: skip
named = pytest.mark.parametrize("path", WITH_DWARF, ids=lambda p: f"{p.parent.name}/{p.stem}")


def from_dwarf(path: Path) -> dict[tuple[str, int], tuple[str, int]]:
    """(section, instruction) -> (file, line), by llvm-objdump."""
    text = subprocess.run(["llvm-objdump", "-dl", path], capture_output=True, text=True, check=True)
    found, section, line = {}, "", ("", 0)
    for row in text.stdout.splitlines():
        if match := re.fullmatch(r"Disassembly of section (.*):", row):
            section = match[1]
        elif match := re.fullmatch(r"; (.*):(\d+)", row):
            line = posixpath.normpath(match[1]), int(match[2])
        elif match := re.match(r" +(\d+):\t[0-9a-f]{2} ", row):
            found[section, int(match[1])] = line
    return found


@named
def test_lines_are_those_of_dwarf(path: Path) -> None:
    dwarf = from_dwarf(path)
    sources = sources_of(path.read_bytes())
    ours = {
        place: (posixpath.normpath(file), line) for place, (file, line) in sources.lines.items()
    }
    assert len(dwarf) > 20
    # llvm-objdump goes on with the line before where the compiler says "no line" (0); we say none
    assert len(set(dwarf) - set(ours)) <= len(dwarf) // 10
    for place, line in ours.items():
        if place in dwarf and dwarf[place] != line:
            # a function may begin on its own line in BTF, and on its body's first in DWARF
            begin = min(at for at, name in sources.functions.items()
                        if name == sources.functions[place] and at[0] == place[0])  # fmt: skip
            assert ours[begin] == line == (dwarf[place][0], dwarf[place][1] - 1), place


@named
def test_functions_are_those_of_the_symbols(path: Path) -> None:
    text = subprocess.run(
        ["llvm-readelf", "-sW", "--section-mapping", path], capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    symbols = re.findall(r"(\d+) FUNC +\S+ +\S+ +\d+ (\S+)$", text, re.MULTILINE)
    ours = sources_of(path.read_bytes()).functions
    counted = {name: list(ours.values()).count(name) for name in set(ours.values())}
    assert counted == {name: int(size) // 8 for size, name in symbols}


def test_line_texts_are_those_of_the_source() -> None:
    sources = sources_of((PROGRAMS / "el" / "filter.o").read_bytes())
    assert len(sources.texts) > 10
    for (file, line), text in sources.texts.items():
        whole = (PROGRAMS / posixpath.normpath(file)).read_text().splitlines()
        assert whole[line - 1].strip() == text


@pytest.mark.parametrize("name", ["nobtf", "legacy_maps"])
def test_without_btf_there_are_functions_only(name: str) -> None:
    data = (PROGRAMS / "el" / f"{name}.o").read_bytes()
    sources = sources_of(data)
    assert sources.lines == {}
    assert sources.texts == {}
    assert set(sources.functions) >= set(listing_of(data))


@pytest.mark.parametrize("path", sorted(PROGRAMS.glob("e[lb]/*.o")), ids=lambda p: p.stem)
def test_every_object_of_the_corpus_is_read(path: Path) -> None:
    data = path.read_bytes()
    sources, listing = sources_of(data), listing_of(data)
    assert listing
    assert set(listing) <= set(sources.functions)
    assert set(sources.lines) <= set(sources.functions)


def test_the_listing_names_what_is_referred_to() -> None:
    listing = listing_of((PROGRAMS / "el" / "filter.o").read_bytes())
    texts = list(listing.values())
    assert listing["xdp", 0] == "r2 = *(u32 *)(r1 + 4)"
    assert "r1 = map[blocked] ll" in texts
    assert any("goto +77 -> 82" in text for text in texts)


def test_an_object_tells_all_about_a_bare_coverage() -> None:
    data = (PROGRAMS / "el" / "filter.o").read_bytes()
    bare = ProgramCoverage(
        program="filter", section="xdp", edges={("xdp", 4, True): True},
        instructions={("xdp", 0): True, ("xdp", 4): True, ("xdp", 5): False},
    )  # fmt: skip
    full = with_sources(bare, data)
    assert (full.instructions, full.edges) == (bare.instructions, bare.edges)
    assert full.sources["xdp", 0][1] == 20
    assert full.functions["xdp", 5] == "filter"
    assert full.listing["xdp", 4].startswith("if r3 > r2 goto")
    assert set(full.sources) == set(full.listing) == set(bare.instructions)
    assert set(full.texts) <= set(full.sources.values())


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(RefusedError):
        sources_of(b"\x7fELF")
    with pytest.raises(RefusedError):
        listing_of(b"")


def test_merging_is_or_and_does_not_depend_on_the_order() -> None:
    whole = samples.coverage()
    left = replace(whole, instructions={k: k[1] < 4 for k in whole.instructions},
                   edges=dict.fromkeys(whole.edges, False))  # fmt: skip
    right = replace(whole, instructions={k: k[1] > 8 for k in whole.instructions}, sources={})
    for parts in ((left, right), (right, left)):
        merged = merge(parts)
        assert merged is not None
        assert [seen for _, seen in sorted(merged.instructions.items())] == [
            at < 4 or at > 8 for at in range(12)
        ]
        assert merged.edges == whole.edges
        assert merged.sources == whole.sources
    assert merge([whole]) == whole
    assert merge([]) is None


def test_coverage_of_two_programs_is_not_merged() -> None:
    with pytest.raises(ValueError, match="xdp/filter and of xdp/metrics"):
        merge([samples.coverage("filter"), samples.coverage("metrics")])


def test_lines_sum_up_their_instructions() -> None:
    lines = {line.line: line for line in lines_of(samples.coverage())}
    assert list(lines) == [20, 21, 22, 23, 24, 25, 26]
    assert (lines[24].executed, len(lines[24].instructions)) == (0, 2)
    assert lines[23].edges == ((("xdp", 7), False, False), (("xdp", 7), True, True))
    assert lines[20].edges == ()

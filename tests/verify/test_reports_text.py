"""The summary in a terminal: read by eye once (``reports/*.txt``, 80 columns), and its rules."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from bpfchain.verify.reports.columns import fold, width_of
from bpfchain.verify.reports.text import render
from bpfchain.verify.reports.words import links_text, number, seconds_text
from bpfchain.verify.result import Outcome, Report
from support import sample_reports as samples

SEEN = Path(__file__).parent / "reports"


@pytest.mark.parametrize("name", [name for name in samples.ALL if name != "hostile"])
def test_as_it_was_read(name: str) -> None:
    assert render(samples.ALL[name](), width=80) + "\n" == (SEEN / f"{name}.txt").read_text()


def test_a_terminal_that_does_not_know_its_width_has_80() -> None:
    assert render(samples.equal(), width=0) == render(samples.equal(), width=80)
    assert render(samples.equal(), width=3) == render(samples.equal(), width=20)


@pytest.mark.parametrize("name", samples.ALL)
@pytest.mark.parametrize("width", [24, 40, 80, 200])
def test_nothing_is_wider_than_the_terminal(name: str, width: int) -> None:
    for verbose in (False, True):
        for line in render(samples.ALL[name](), width=width, verbose=verbose).splitlines():
            assert width_of(line) <= width, line


@pytest.mark.parametrize("name", samples.ALL)
def test_verdict_first_then_what_was_not_checked_then_the_table(name: str) -> None:
    report = samples.ALL[name]()
    lines = render(report).splitlines()
    words = {Outcome.NOT_RUN: "not run", Outcome.EQUAL: "equal", Outcome.UNMODELLED: "unmodelled",
             Outcome.INCONCLUSIVE: "inconclusive", Outcome.NOT_EQUAL: "not equal"}  # fmt: skip
    assert lines[0].startswith(words[report.outcome] + "   ")
    kinds = [
        "gap" if line.startswith("  not checked: ") or line == "  nothing was left out"
        else "table" if re.match(r"  (link  program|\d+ )", line) else "other"
        for line in lines[1:]
    ]  # fmt: skip
    assert "gap" in kinds
    if report.links:
        assert max(n for n, kind in enumerate(kinds) if kind == "gap") < kinds.index("table")
        assert kinds.count("table") == 1 + len(report.links)


@pytest.mark.parametrize("name", samples.ALL)
def test_no_name_reaches_the_terminal_raw(name: str) -> None:
    text = render(samples.ALL[name](), width=80, verbose=True)
    assert all(line.isprintable() for line in text.split("\n"))
    text.encode()


def test_a_pipe_gets_one_line_for_each_thing() -> None:
    lines = render(samples.not_equal()).splitlines()
    assert "  not checked: link 1: redirect (the kernel does not tell redirect targets)" in lines
    assert "  not checked: 12 packets of small.pcap (over 3 520 bytes)" in lines
    assert (
        "  link 1 (filter): packet 17 of small.pcap, after 2 others: verdict PASS, was DROP"
        in lines
    )


def test_colour_only_where_asked_and_it_changes_nothing_else() -> None:
    for make in samples.ALL.values():
        plain = render(make(), width=80)
        painted = render(make(), width=80, colour=True)
        assert "\x1b" not in plain
        assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == plain
    assert render(samples.equal(), colour=True).startswith("\x1b[1;32mequal\x1b[0m   chain edge")
    assert render(samples.not_equal(), colour=True).startswith("\x1b[1;31mnot equal\x1b[0m")
    assert render(samples.inconclusive(), colour=True).startswith("\x1b[1;33minconclusive")


def test_more_than_a_page_of_gaps_is_counted_not_hidden() -> None:
    report = replace(samples.equal(), not_checked=tuple(f"thing {n}" for n in range(20)))
    short, whole = render(report, width=80), render(report, width=80, verbose=True)
    assert "and 14 more, see -v" in " ".join(short.split())
    assert all(f"thing {n}" in " ".join(whole.split()) for n in range(20))
    assert all(f"  not checked: thing {n}" in render(report).splitlines() for n in range(20))


def test_no_reason_given_is_said() -> None:
    (link,) = samples.not_equal().links
    bare = replace(link, static=samples.static(Outcome.INCONCLUSIVE), dynamic=samples.dynamic())
    text = render(Report(subject="link1.o", links=(bare,)))
    assert "link 1 (filter): static check: inconclusive, no reason was given" in text


def test_a_link_without_packets_is_not_called_equal() -> None:
    none = samples.dynamic(packets=0, codes={}, coverage=None, corpora=())
    text = render(Report(subject="link0.o", links=(samples.link(0, "filter", dynamic=none),)))
    assert "proved  no packets" in text
    assert "not checked: link 0: runs on packets (there was no packet)" in text


def test_verbose_tells_what_was_read_and_run() -> None:
    text = render(samples.equal(), verbose=True)
    for part in (
        "sha256 " + "01" * 32 + "  filter.o",
        "sha256 " + "67" * 32 + "  link2.o",
        "recording small.pcap: 6 400 packets",
        "edge xdp+7 (src/route.c:23): always taken",
        "ubpf 1.0.693",
        "seed 7",
        "instructions 112 → 130",
        "engines ubpf, kernel; stack filled with 0x00, 0xa5",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("indexes", "text"),
    [([2], "link 2"), ([1, 0], "links 0, 1"), ([0, 1, 2, 5], "links 0-2, 5")],
)
def test_links_are_named_in_ranges(indexes: list[int], text: str) -> None:
    assert links_text(indexes) == text


def test_numbers() -> None:
    assert [number(n).replace("\xa0", " ") for n in (0, 999, 6811, 1234567)] == [
        "0", "999", "6 811", "1 234 567",
    ]  # fmt: skip
    assert [seconds_text(s).replace("\xa0", " ") for s in (0.0, 0.052, 0.0949, 0.2, 59.97, 72.4, 125.2)] == [
        "0 ms", "52 ms", "95 ms", "0.2 s", "1 min 0 s", "1 min 12 s", "2 min 5 s",
    ]  # fmt: skip


def test_folding() -> None:
    assert fold("a bb ccc", 4) == ["a bb", "ccc"]
    assert fold("abcdefgh", 3, first="> ", rest="  ") == ["> a", "  b", "  c", "  d", "  e", "  f", "  g", "  h"]  # fmt: skip
    assert fold("表表表", 4) == ["表表", "表"]
    assert fold("", 4, first="x") == ["x"]
    assert fold("a b", None, first="x ") == ["x a b"]

"""The lcov report, read by lcov and genhtml: lines, branches, functions add up."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bpfchain.verify.reports.lcov import has_lines, render
from bpfchain.verify.result import Report
from support import sample_reports as samples

lcov = pytest.mark.skipif(shutil.which("lcov") is None, reason="needs Debian's lcov")


def run(*command: str, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@lcov
def test_lcov_sums_it_up_as_we_do(tmp_path: Path) -> None:
    (tmp_path / "out.info").write_text(render(samples.equal()) + "\n")
    said = run("lcov", "--summary", "out.info", "--rc", "lcov_branch_coverage=1", cwd=tmp_path)
    # three programs of 7 lines, 1 function, 3 jumps; one line and one edge of each not seen
    assert re.search(r"lines\.+: .*\(18 of 21 lines\)", said), said
    assert re.search(r"functions\.+: .*\(3 of 3 functions\)", said), said
    assert re.search(r"branches\.+: .*\(15 of 18 branches\)", said), said


@lcov
@pytest.mark.parametrize("name", ["equal", "hostile", "full"])
def test_genhtml_draws_it(name: str, tmp_path: Path) -> None:
    report = samples.ALL[name]()
    text = render(report)
    (tmp_path / "out.info").write_text(text + "\n")
    (tmp_path / "src").mkdir()
    for path in re.findall(r"^SF:src/(.*)$", text, re.MULTILINE):
        (tmp_path / "src" / path).write_text("int line;\n" * 30)
    missing = ["--ignore-errors", "source"] if name == "hostile" else []
    run("genhtml", "out.info", "-o", "page", "--branch-coverage", *missing, cwd=tmp_path)
    assert (tmp_path / "page" / "index.html").is_file()


def test_the_records_of_a_file() -> None:
    (link,) = samples.inconclusive().links
    assert render(Report(subject="link0.o", links=(link,))).splitlines() == [
        "TN:link0_o",
        "SF:src/count.c",
        "FN:20,count",
        "FNDA:1,count",
        "FNF:1",
        "FNH:1",
        "BRDA:21,0,0,1",
        "BRDA:21,0,1,1",
        "BRDA:22,0,0,1",
        "BRDA:22,0,1,1",
        "BRDA:23,0,0,0",
        "BRDA:23,0,1,1",
        "BRF:6",
        "BRH:5",
        "DA:20,1",
        "DA:21,1",
        "DA:22,1",
        "DA:23,1",
        "DA:24,0",
        "DA:25,1",
        "DA:26,1",
        "LF:7",
        "LH:6",
        "end_of_record",
    ]


def test_a_jump_never_reached_has_no_counts() -> None:
    whole = samples.coverage("count")
    edges = {**whole.edges, ("xdp", 7, True): False}
    covered = replace(whole, edges=edges)
    link = samples.link(0, "count", dynamic=samples.dynamic(coverage=covered))
    text = render(Report(subject="x", links=(link,)))
    assert "BRDA:23,0,0,-\nBRDA:23,0,1,-\n" in text


def test_the_same_object_in_two_links_counts_once_and_together() -> None:
    whole = samples.coverage("count")
    half = replace(whole, edges=dict.fromkeys(whole.edges, False),
                   instructions={key: key[1] in (8, 9) for key in whole.instructions})  # fmt: skip
    links = tuple(
        replace(
            samples.link(n, "count", dynamic=samples.dynamic(coverage=covered)), input_sha256="a"
        )
        for n, covered in enumerate((whole, half))
    )
    lines = render(Report(subject="x", links=links)).splitlines()
    assert "LH:7" in lines
    assert "BRF:6" in lines


def test_no_lines_is_told() -> None:
    assert has_lines(samples.equal())
    assert not has_lines(samples.static_refused())
    bare = replace(samples.coverage(), sources={})
    link = samples.link(0, "filter", dynamic=samples.dynamic(coverage=bare))
    report = Report(subject="x", links=(link,))
    assert not has_lines(report)
    assert render(report) == "TN:x"


def test_no_name_breaks_a_line() -> None:
    for line in render(samples.hostile()).splitlines():
        assert re.fullmatch(r"(TN|SF|FN|FNDA|FNF|FNH|BRDA|BRF|BRH|DA|LF|LH):.*|end_of_record", line)
        assert line.isprintable()

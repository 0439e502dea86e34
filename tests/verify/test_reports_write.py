"""Report files: the option's text, errors before any work, no half file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bpfchain.transform.errors import HostError, UsageError
from bpfchain.verify.reports.write import (
    KINDS,
    ReportFile,
    parse_report_option,
    write_report,
    write_reports,
)
from support import sample_reports as samples


def test_every_kind_is_written(tmp_path: Path) -> None:
    files = [parse_report_option(f"{kind}={tmp_path / kind}") for kind in KINDS]
    assert write_reports(samples.equal(), files) == []
    starts = {"html": "<!doctype html>", "json": "{", "junit": "<?xml ", "lcov": "TN:"}
    assert sorted(starts) == sorted(KINDS)
    for kind, start in starts.items():
        text = (tmp_path / kind).read_text()
        assert text.startswith(start)
        assert text.endswith("\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(KINDS)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("htm=a.html", "no report of kind 'htm'", "did you mean html=a.html?"),
        ("xml=a", "no report of kind 'xml'", "did you mean junit=a?"),
        ("sarif=a", "no report of kind 'sarif'", "html=FILE, json=FILE, junit=FILE, lcov=FILE"),
        ("out.html", "no report of kind 'out.html'", "did you mean html=out.html?"),
        ("=a", "no report of kind 'nothing'", "html=FILE"),
        ("", "no report of kind 'nothing'", "html=FILE"),
        ("JSON=a", "no report of kind 'JSON'", "did you mean json=a?"),
        ("html=", "the file is missing", "html=FILE"),
        ("html", "the file is missing", "html=FILE"),
        ("json=-", "needs a file of its own", "--json"),
        ("json=/", "/ is a folder", "/report.json"),
        ("json=/no/such/a.json", "there is no folder /no/such", None),
    ],
)
def test_what_makes_no_sense_is_told_before_any_work(
    text: str, message: str, hint: str | None
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_report_option(text)
    assert message in caught.value.message
    assert (hint or "") in (caught.value.hint or "")


def test_a_name_may_hold_an_equals_sign(tmp_path: Path) -> None:
    assert parse_report_option(f"json={tmp_path}/a=b").name == f"{tmp_path}/a=b"


def test_an_older_file_stays_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(HostError, match="no space left on device"):
        write_report(samples.equal(), ReportFile("json", str(path)))
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.json"]


def test_a_link_stays_a_link_and_a_pipe_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real.json")
    write_report(samples.equal(), ReportFile("json", str(tmp_path / "link")))
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())["outcome"] == "equal"
    write_report(samples.equal(), ReportFile("json", os.devnull))
    assert not os.path.isfile(os.devnull)


def test_a_folder_that_is_gone_is_the_hosts_fault(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no such file"):
        write_report(samples.equal(), ReportFile("json", str(tmp_path / "gone" / "a.json")))


def test_coverage_without_lines_is_told(tmp_path: Path) -> None:
    (note,) = write_reports(
        samples.static_refused(), [ReportFile("lcov", str(tmp_path / "out.info"))]
    )
    assert "holds no lines" in note

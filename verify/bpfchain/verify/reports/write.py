"""Report files: ``--report html=out.html`` read, and each file written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from bpfchain.transform.errors import HostError, UsageError, nearest

from ..result import Report
from .lcov import has_lines

__all__ = ["KINDS", "ReportFile", "parse_report_option", "write_report", "write_reports"]

KINDS = ("html", "json", "junit", "lcov")


@dataclass(frozen=True, slots=True)
class ReportFile:
    """One report that was asked for."""

    kind: str
    """One of KINDS."""
    name: str


def parse_report_option(text: str) -> ReportFile:
    """``html=out.html`` as kind and file.

    Raises UsageError: for a kind that does not exist with the nearest that does, for a file that
    could not be written, before any work.
    """
    kind, equals, name = text.partition("=")
    listed = ", ".join(f"{known}=FILE" for known in KINDS)
    if kind not in KINDS:
        by_suffix = kind.rpartition(".")[2] if not equals else kind.lower()
        close = _ALSO.get(by_suffix) or nearest(by_suffix, KINDS)
        hint = f"did you mean {close}={name or kind}?" if close else f"one of {listed}"
        raise UsageError(f"--report {text}: no report of kind {kind or 'nothing'!r}", hint)
    if not name:
        raise UsageError(f"--report {text}: the file is missing", f"one of {listed}")
    if name == "-":
        raise UsageError(
            f"--report {text}: a report needs a file of its own",
            "name a file; `--json` prints the JSON report on stdout",
        )
    if os.path.isdir(name):
        inside = os.path.join(name, f"report.{_SUFFIXES[kind]}")
        raise UsageError(f"--report {text}: {name} is a folder", f"name a file in it: {inside}")
    folder = os.path.dirname(name) or "."
    if not os.path.isdir(folder):
        raise UsageError(f"--report {text}: there is no folder {folder}")
    return ReportFile(kind, name)


_ALSO = {"xml": "junit", "info": "lcov"}
"""What the files are often called."""
_SUFFIXES = {"html": "html", "json": "json", "junit": "xml", "lcov": "info"}


def write_reports(report: Report, files: Iterable[ReportFile]) -> list[str]:
    """Write all of them; returns what is to be said about them, a line each. Raises HostError."""
    return [note for file in files if (note := write_report(report, file)) is not None]


def write_report(report: Report, file: ReportFile) -> str | None:
    """Draw and write one; returns a line where it holds less than asked for. Raises HostError."""
    _replace(file.name, (_renderer(file.kind)(report) + "\n").encode("utf-8", "backslashreplace"))
    if file.kind == "lcov" and not has_lines(report):
        return f"{file.name} holds no lines: no program that was run has line records (clang -g)"
    return None


def _renderer(kind: str) -> Callable[[Report], str]:
    """Its module is imported when it is needed: start-up is short."""
    name = {"json": "json_report"}.get(kind, kind)
    render: Callable[[Report], str] = import_module(f"{__package__}.{name}").render
    return render


def _replace(name: str, data: bytes) -> None:
    """Write under a temporary name beside it and rename; an older file stays until then."""
    special = os.path.exists(name) and not os.path.isfile(name)
    try:
        if special:  # /dev/null, a pipe: there is nothing to replace
            Path(name).write_bytes(data)
            return
        target = os.path.realpath(name)
        folder, base = os.path.split(target)
        temporary = Path(folder, f".{base[:200]}.{os.getpid()}.tmp")
        try:
            with open(temporary, "xb") as file:
                file.write(data)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise HostError(f"{name}: {(error.strerror or str(error)).lower()}") from None

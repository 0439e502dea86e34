"""Coverage as an lcov tracefile: source lines, branches and functions, by the line records.

The format is that of geninfo(1). Counts are 0 or 1: whether something was executed, not how often.
Instructions without a line record are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..coverage import lines_of, merge
from ..result import ProgramCoverage, Report
from . import words

__all__ = ["has_lines", "render"]


@dataclass(slots=True)
class _File:
    """What is known of one source file."""

    lines: dict[int, bool] = field(default_factory=dict)
    functions: dict[str, tuple[int, bool]] = field(default_factory=dict)
    """Name -> (line, executed)."""
    jumps: dict[int, list[tuple[bool, bool]]] = field(default_factory=dict)
    """Line -> (not taken, taken) of each conditional jump on it."""


def has_lines(report: Report) -> bool:
    """Whether any program's coverage has source lines: without, the tracefile is empty."""
    return any(coverage.sources for coverage in _coverages(report))


def render(report: Report) -> str:
    """The tracefile, without a newline at the end."""
    files: dict[str, _File] = {}
    for coverage in _coverages(report):
        _collect(coverage, files)
    name = "".join(c if c.isascii() and c.isalnum() else "_" for c in report.subject)
    blocks = [f"TN:{name}"]
    for path in sorted(files):
        blocks += _record(path, files[path])
    return "\n".join(blocks)


def _coverages(report: Report) -> list[ProgramCoverage]:
    """Coverage by program: one object may stand in several links."""
    groups: dict[tuple[str, str, str], list[ProgramCoverage]] = {}
    for link in report.links:
        covered = link.dynamic.coverage
        if covered is not None:
            key = (link.input_sha256, covered.section, covered.program)
            groups.setdefault(key, []).append(covered)
    merged = (merge(group) for group in groups.values())
    return [coverage for coverage in merged if coverage is not None]


def _collect(coverage: ProgramCoverage, files: dict[str, _File]) -> None:
    for line in lines_of(coverage):
        known = files.setdefault(line.file, _File())
        known.lines[line.line] = known.lines.get(line.line, False) or line.executed > 0
        ways: dict[tuple[str, int], dict[bool, bool]] = {}
        for place, taken, seen in line.edges:
            ways.setdefault(place, {})[taken] = seen
        for way in ways.values():
            both = (way.get(False, False), way.get(True, False))
            known.jumps.setdefault(line.line, []).append(both)
    begun = set()
    for place in sorted(coverage.instructions):
        function = coverage.functions.get(place)
        if function is None or (place[0], function) in begun:
            continue
        begun.add((place[0], function))  # its first instruction: later ones may be inlined code
        if place in coverage.sources:
            file, at = coverage.sources[place]
            functions = files.setdefault(file, _File()).functions
            before, executed = functions.get(function, (at, False))
            functions[function] = (min(before, at), executed or coverage.instructions[place])


def _record(path: str, known: _File) -> list[str]:
    lines = [f"SF:{words.printable(path)}"]
    functions = sorted(known.functions.items(), key=lambda item: (item[1][0], item[0]))
    lines += [f"FN:{line},{words.printable(name)}" for name, (line, _) in functions]
    lines += [f"FNDA:{executed:d},{words.printable(name)}" for name, (_, executed) in functions]
    lines += [f"FNF:{len(functions)}", f"FNH:{sum(seen for _, (_, seen) in functions)}"]
    found = hit = 0
    for line, jumps in sorted(known.jumps.items()):
        for block, ways in enumerate(jumps):
            for branch, seen in enumerate(ways):
                count = f"{seen:d}" if any(ways) else "-"  # "-": the jump was never reached
                lines.append(f"BRDA:{line},{block},{branch},{count}")
                found += 1
                hit += seen
    lines += [f"BRF:{found}", f"BRH:{hit}"]
    lines += [f"DA:{line},{executed:d}" for line, executed in sorted(known.lines.items())]
    lines += [f"LF:{len(known.lines)}", f"LH:{sum(known.lines.values())}", "end_of_record"]
    return lines

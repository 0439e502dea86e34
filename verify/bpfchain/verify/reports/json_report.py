"""The report as canonical JSON: the form of ``schema/report-1.json``, the same bytes for equal values.

Bytes are hexadecimal text. The major version changes where a reader of the old one would misread it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ..coverage import lines_of
from ..result import (
    ChainResult,
    Counterexample,
    DynamicResult,
    Finding,
    LinkResult,
    Place,
    ProgramCoverage,
    Report,
    StaticResult,
)
from . import words

__all__ = ["VERSION", "render", "to_json"]

VERSION = 1


def render(report: Report) -> str:
    """The report as JSON text, without a newline at the end: keys sorted, indented by two."""
    return json.dumps(to_json(report), indent=2, sort_keys=True, ensure_ascii=False)


def to_json(report: Report) -> dict[str, Any]:
    """The report as values that JSON knows."""
    found = {
        "version": VERSION,
        "subject": report.subject,
        "outcome": report.outcome.word,
        "reason": words.reason(report),
        "not_checked": list(words.not_checked(report)),
        "waivers": list(report.waivers),
        "links": [_link(link) for link in report.links],
        "chain": None if report.chain is None else _chain(report.chain),
        "versions": dict(report.versions),
        "seed": report.seed,
        "seconds": round(report.seconds, 3),
        "rerun": report.rerun,
    }
    cleaned: dict[str, Any] = _cleaned(found)
    return cleaned


def _cleaned(value: Any) -> Any:
    """The same without halves of surrogate pairs, and with plain spaces in our own numbers."""
    if isinstance(value, str):
        return words.clean(value).replace(words.NO_BREAK, " ")
    if isinstance(value, dict):
        return {_cleaned(key): _cleaned(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return value


def _link(link: LinkResult) -> dict[str, Any]:
    before, after = link.instructions
    return {
        "index": link.index,
        "program": link.program,
        "hook": link.hook,
        "outcome": link.outcome.word,
        "input": {"name": link.input_name, "sha256": link.input_sha256},
        "output": {"name": link.output_name, "sha256": link.output_sha256},
        "success": link.success,
        "redirect": link.redirect,
        "strategy": link.strategy,
        "instructions": {"original": before, "patched": after},
        "maps": list(link.maps),
        "helpers": list(link.helpers),
        "static": _static(link.static),
        "dynamic": _dynamic(link.dynamic),
    }


def _static(result: StaticResult) -> dict[str, Any]:
    return {
        "outcome": result.outcome.word,
        "findings": [_finding(finding) for finding in result.findings],
        "readers": list(result.readers),
        "accounted_for": dict(result.counted),
        "residue": [
            {"place": _place(item.place), "offset": item.offset, "size": item.size, "how": item.how}
            for item in result.residue
        ],
    }


def _dynamic(result: DynamicResult) -> dict[str, Any]:
    executed = result.executed
    return {
        "outcome": result.outcome.word,
        "findings": [_finding(finding) for finding in result.findings],
        "engines": list(result.engines),
        "stack_fills": list(result.fills),
        "packets": result.packets,
        "recordings": [
            {
                "name": corpus.name,
                "sha256": corpus.sha256,
                "packets": corpus.packets,
                "skipped": [{"reason": why, "packets": n} for why, n in corpus.skipped],
            }
            for corpus in result.corpora
        ],
        "protocols": dict(result.protocols),
        "codes": dict(result.codes),
        "codes_never_seen": list(result.codes_unseen),
        "dimensions": dict(result.dimensions),
        "not_modelled": list(result.unmodelled),
        "nondeterministic": list(result.nondeterministic),
        "executed": executed and {"original": executed[0], "patched": executed[1]},
        "coverage": None if result.coverage is None else _coverage(result.coverage),
        "counterexample": result.counterexample and _counterexample(result.counterexample),
    }


def _chain(chain: ChainResult) -> dict[str, Any]:
    return {
        "name": chain.name,
        "outcome": chain.dynamic.outcome.word,
        "dynamic": _dynamic(chain.dynamic),
        "verdicts": [
            {"reference": reference, "chain": got, "packets": packets}
            for (reference, got), packets in sorted(chain.verdicts.items())
        ],
        "reached": [{"link": index, "packets": n} for index, n in sorted(chain.reached.items())],
        "tail_calls": chain.tail_calls,
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule,
        "outcome": finding.outcome.word,
        "message": finding.message,
        "place": _place(finding.place),
        "hint": finding.hint,
    }


def _place(place: Place | None) -> dict[str, Any] | None:
    if place is None:
        return None
    return {
        "file": place.file,
        "section": place.section,
        "instruction": place.instruction,
        "function": place.function,
        "source": place.source,
    }


def _counterexample(example: Counterexample) -> dict[str, Any]:
    after = example.after
    return {
        "recording": example.corpus,
        "packet": example.packet,
        "data": example.data.hex(),
        "context": example.context.hex(),
        "before": [packet.hex() for packet in example.before],
        "maps": [
            {"map": name, "key": key.hex(), "value": value.hex()}
            for name, key, value in example.maps
        ],
        "dimension": example.dimension,
        "expected": example.expected,
        "got": example.got,
        "after": after and {"original": after[0].hex(), "patched": after[1].hex()},
        "first_difference": _place(example.first_difference),
        "saved_as": example.saved_as,
    }


def _coverage(coverage: ProgramCoverage) -> dict[str, Any]:
    sections = sorted({section for section, _ in coverage.instructions})
    return {
        "program": coverage.program,
        "section": coverage.section,
        "instructions": {
            "all": len(coverage.instructions),
            "executed": sum(coverage.instructions.values()),
        },
        "edges": {"all": len(coverage.edges), "seen": coverage.edges_seen},
        "executed": {name: _ranges(_where(coverage, name, True)) for name in sections},
        "never_executed": {name: _ranges(_where(coverage, name, False)) for name in sections},
        "jumps": [
            {"section": section, "instruction": at, "taken": taken, "seen": seen}
            for (section, at, taken), seen in sorted(coverage.edges.items())
        ],
        "lines": [
            {
                "file": line.file,
                "line": line.line,
                "instructions": len(line.instructions),
                "executed": line.executed,
            }
            for line in lines_of(coverage)
        ],
    }


def _where(coverage: ProgramCoverage, section: str, executed: bool) -> list[int]:
    return sorted(
        at
        for (name, at), seen in coverage.instructions.items()
        if name == section and seen is executed
    )


def _ranges(ordered: Iterable[int]) -> list[list[int]]:
    """``[[0, 4], [7, 7]]``: first and last of each run of numbers."""
    found: list[list[int]] = []
    for number in ordered:
        if found and found[-1][1] == number - 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found

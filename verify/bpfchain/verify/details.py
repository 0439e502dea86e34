"""What reports add to a proof: source lines of the places that findings name, maps and helpers."""

from __future__ import annotations

from dataclasses import replace

from bpfchain.transform.errors import BpfchainError
from bpfchain.transform.helpers import HELPERS

from .coverage import Sources, sources_of, with_sources
from .result import DynamicResult, Finding, LinkResult, Place, StaticResult

__all__ = ["with_details", "with_lines"]

_CALL, _LDDW = 0x85, 0x18


def with_lines(result: LinkResult, original: bytes, patched: bytes) -> LinkResult:
    """The result whose findings and counterexample name source lines, where the objects have them."""
    try:
        sources = {"in": sources_of(original), "out": sources_of(patched)}
    except BpfchainError:  # what cannot be read has been said by the checker
        return result
    return replace(
        result,
        static=_static(result.static, sources),
        dynamic=_dynamic(result.dynamic, sources),
    )


def with_details(result: LinkResult, original: bytes) -> LinkResult:
    """The result with its coverage told by source lines, and the maps and helpers of the program."""
    covered = result.dynamic.coverage
    if covered is not None:
        result = replace(
            result, dynamic=replace(result.dynamic, coverage=with_sources(covered, original))
        )
    from bpfchain.emulator.link import link_object

    try:
        linked = link_object(original)
        image = linked.programs[result.program]
    except (BpfchainError, KeyError):  # not for this linker: the runs have said so
        return result
    return replace(
        result,
        maps=tuple(linked.maps[index].name for index in image.maps),
        helpers=_helpers(image.code),
    )


def _helpers(code: bytes) -> tuple[str, ...]:
    """Names of the helpers that the instructions call, in the order of their numbers."""
    found = set()
    at = 0
    while at + 8 <= len(code):
        if code[at] == _CALL and code[at + 1] >> 4 == 0:
            found.add(int.from_bytes(code[at + 4 : at + 8], "little"))
        at += 16 if code[at] == _LDDW else 8
    return tuple(
        f"bpf_{HELPERS[number - 1]}" if number <= len(HELPERS) else f"helper {number}"
        for number in sorted(found)
        if number > 0
    )


def _static(result: StaticResult, sources: dict[str, Sources]) -> StaticResult:
    return replace(
        result,
        findings=tuple(_finding(f, sources) for f in result.findings),
        residue=tuple(
            replace(r, place=_place(r.place, sources) or r.place) for r in result.residue
        ),
    )


def _dynamic(result: DynamicResult, sources: dict[str, Sources]) -> DynamicResult:
    example = result.counterexample
    if example is not None:
        example = replace(example, first_difference=_place(example.first_difference, sources))
    return replace(
        result,
        findings=tuple(_finding(f, sources) for f in result.findings),
        counterexample=example,
    )


def _finding(finding: Finding, sources: dict[str, Sources]) -> Finding:
    return replace(finding, place=_place(finding.place, sources))


def _place(place: Place | None, sources: dict[str, Sources]) -> Place | None:
    if place is None or place.source or place.file not in sources:
        return place
    known = sources[place.file]
    line = known.lines.get((place.section, place.instruction))
    return place if line is None else replace(place, source=f"{line[0]}:{line[1]}")

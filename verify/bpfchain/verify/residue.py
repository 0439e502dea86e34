"""Whether what a program does depends on what lay on its stack: two runs with different fills."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .engines.protocol import NO_MARKER, Inputs, Runs
from .isolated import Pair, differing_dimension
from .result import Place, Residue

__all__ = ["FoundResidue", "residue_finding"]


class FoundResidue(NamedTuple):
    """``decides``: the verdict, the packet or the context depends on it, not the maps or events
    alone."""

    message: str
    packet: int
    decides: bool
    place: Place | None


def residue_finding(
    pair: Pair, inputs: Inputs, first: Runs, other: Runs, number: int, residue: Sequence[Residue]
) -> FoundResidue | None:
    """Compare the original's runs with the first fill and with another one (world ``number``)."""
    place = residue[0].place if residue else None
    how = f": {_told(residue[0])}" if residue else ""
    same = first.codes == other.codes and first.ended == other.ended
    both = zip(first.codes, other.codes, first.ended, other.ended, strict=True)
    for position, (a, b, x, y) in enumerate(() if same else both):
        if x != y or (a != b and x == NO_MARKER):
            names = [pair.intent.hook.name_of(code) for code in (a, b)]
            got = "a fault" if x != y else f"{names[0]} or {names[1]}"
            return FoundResidue(
                f"the verdict depends on what lies on the stack: {got}{how}",
                inputs.origin[position], True, place,
            )  # fmt: skip
    differing = first.differing(other)
    told = [(n, differing_dimension(first, other, n)) for n in differing]
    for position, dimension in told:
        if dimension in ("packet", "metadata", "context"):
            return FoundResidue(
                f"the {dimension} depends on what lies on the stack{how}",
                inputs.origin[position], True, place,
            )  # fmt: skip
    for position, dimension in told:
        return FoundResidue(
            f"{dimension} depend on what lies on the stack{how}", inputs.origin[position], False,
            place,
        )  # fmt: skip
    for name in pair.maps:
        if pair.original(0).map_differs(0, name, pair.original(number), 0):
            return FoundResidue(
                f"the contents of map {name} depend on what lies on the stack{how}",
                inputs.origin[-1], False, place,
            )  # fmt: skip
    return None


def _told(residue: Residue) -> str:
    return (
        f"{residue.size} bytes at r10{residue.offset:+d} are read ({residue.how}) and never written"
    )

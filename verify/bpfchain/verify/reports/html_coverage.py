"""Coverage in the HTML page: source lines, and under each its instructions, coloured by what ran."""

from __future__ import annotations

from collections.abc import Iterator

from ..result import ProgramCoverage
from . import words
from .page import Html, details, element, join

__all__ = ["coverage_of"]

WHOLE = 500
"""Instructions of a program up to which all are shown; of a longer one only those not fully seen."""

Place = tuple[str, int]


def coverage_of(where: str, coverage: ProgramCoverage, *, open: bool) -> Html:
    """One program: the numbers, and on opening its lines."""
    executed = sum(coverage.instructions.values())
    summary = join(
        (
            element("strong", where),
            f" · {executed}/{len(coverage.instructions)} instructions, "
            f"{words.edges_text(coverage)} edges",
        )
    )
    rows = join(_rows(coverage), "\n")
    table = Html(
        '<div class="scroll"><table class="source"><thead><tr><th scope="col">at</th>'
        '<th scope="col">ran</th><th scope="col">edges</th><th scope="col"></th></tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )
    return details(summary, table, open=open)


def _rows(coverage: ProgramCoverage) -> Iterator[Html]:
    """Instructions in their order, with a row for each source line that begins among them."""
    edges = _edges(coverage)
    few = len(coverage.instructions) <= WHOLE
    title: tuple[str, str] | None = None
    for group in _groups(coverage):
        section = group[0][0]
        function = coverage.functions.get(group[0], "")
        source = coverage.sources.get(group[0])
        if (section, function) != title:
            title = (section, function)
            name = f"{function} in {section}" if function else section
            yield element(
                "tr", Html(f'<td colspan="4">{element("span", name)}</td>'), class_="title"
            )
        kinds = [_kind(coverage, place, edges) for place in group]
        if source is not None:
            yield _line(coverage, group, source, kinds, edges)
        hidden = 0
        for place, kind in zip(group, kinds, strict=True):
            if not few and kind == "seen":
                hidden += 1
            else:
                yield _instruction(coverage, place, kind, edges)
        if hidden and source is None:
            yield element(
                "tr", *(element("td", "") for _ in range(3)),
                element("td", f"… {words.plural(hidden, 'instruction')}, all seen"), class_="insn",
            )  # fmt: skip


def _groups(coverage: ProgramCoverage) -> Iterator[list[Place]]:
    """Runs of instructions of one section, function and source line."""
    group: list[Place] = []
    for place in sorted(coverage.instructions, key=lambda p: (p[0] != coverage.section, p)):
        if group and _belongs(coverage, place) != _belongs(coverage, group[-1]):
            yield group
            group = []
        group.append(place)
    if group:
        yield group


def _belongs(coverage: ProgramCoverage, place: Place) -> tuple[object, ...]:
    return place[0], coverage.functions.get(place), coverage.sources.get(place)


def _edges(coverage: ProgramCoverage) -> dict[Place, dict[bool, bool]]:
    found: dict[Place, dict[bool, bool]] = {}
    for (section, at, taken), seen in sorted(coverage.edges.items()):
        found.setdefault((section, at), {})[taken] = seen
    return found


def _kind(coverage: ProgramCoverage, place: Place, edges: dict[Place, dict[bool, bool]]) -> str:
    if not coverage.instructions[place]:
        return "unseen"
    return "seen" if all(edges.get(place, {}).values()) else "part"


def _line(
    coverage: ProgramCoverage,
    group: list[Place],
    source: tuple[str, int],
    kinds: list[str],
    edges: dict[Place, dict[bool, bool]],
) -> Html:
    kind = kinds[0] if len(set(kinds)) == 1 else "part"
    ways = [seen for place in group for seen in edges.get(place, {}).values()]
    ran = sum(coverage.instructions[place] for place in group)
    return element(
        "tr",
        element("td", f"{source[0].rsplit('/', 1)[-1]}:{source[1]}"),
        element("td", f"{ran}/{len(group)}", class_="num"),
        element("td", f"{sum(ways)}/{len(ways)}" if ways else ""),
        element("td", coverage.texts.get(source, "")),
        class_=f"line {kind}",
    )


def _instruction(
    coverage: ProgramCoverage, place: Place, kind: str, edges: dict[Place, dict[bool, bool]]
) -> Html:
    ways = edges.get(place, {})
    if not ways:
        said = ""
    elif all(ways.values()):
        said = "both ways"
    elif not any(ways.values()):
        said = "never"
    else:
        said = "always taken" if ways.get(True) else "never taken"
    return element(
        "tr",
        element("td", place[1], class_="num"),
        element("td", "yes" if coverage.instructions[place] else "no", class_="num"),
        element("td", Html(said.replace(" ", "&nbsp;"))),
        element("td", coverage.listing.get(place, "")),
        class_=f"insn {kind}",
    )

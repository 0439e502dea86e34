"""What all reports say in the same words: outcomes, numbers, reasons, and what was not checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..result import (
    ChainResult,
    CorpusUse,
    Counterexample,
    DynamicResult,
    Finding,
    LinkResult,
    Outcome,
    ProgramCoverage,
    Report,
)

__all__ = [
    "NOT_EQUAL_WORD", "NO_BREAK", "Trouble", "clean", "codes_text", "compared", "counterexample_text", "dynamic_word",
    "edges_text", "edges_unseen", "engines_of", "first_difference_text", "instructions_text", "links_text", "not_checked",
    "number", "packets_of", "plural", "printable", "reason", "recordings", "seconds_text", "static_word",
    "troubles", "verdict_word",
]  # fmt: skip

NO_BREAK = "\xa0"
"""The space in numbers; plain text shows it as any space."""
NOT_EQUAL_WORD = "not equal"
"""Of an outcome, and of a dimension that differed."""
_OUTCOMES = {
    Outcome.NOT_RUN: "not run",
    Outcome.EQUAL: "equal",
    Outcome.UNMODELLED: "unmodelled",
    Outcome.INCONCLUSIVE: "inconclusive",
    Outcome.NOT_EQUAL: NOT_EQUAL_WORD,
}


def verdict_word(outcome: Outcome) -> str:
    """The outcome as people read it."""
    return _OUTCOMES[outcome]


def static_word(outcome: Outcome) -> str:
    """The same for a static result: its "equal" is a proof."""
    return "proved" if outcome is Outcome.EQUAL else _OUTCOMES[outcome]


def dynamic_word(result: DynamicResult) -> str:
    """The same for runs: no packet, no claim."""
    if result.outcome is Outcome.EQUAL and not result.packets:
        return "no packets"
    return _OUTCOMES[result.outcome]


def number(value: int) -> str:
    """``6 811``, with a space at which no line breaks."""
    return f"{value:,}".replace(",", NO_BREAK)


def plural(count: int, thing: str) -> str:
    """``1 link``, ``6 811 packets``."""
    return f"{number(count)} {thing}{'' if count == 1 else 's'}"


def counted_text(counted: Mapping[str, int]) -> str:
    """``98 instructions, 1 entry``: what the static checker accounted for."""
    return ", ".join(f"{number(n)} {_one(what) if n == 1 else what}" for what, n in counted.items())


def _one(things: str) -> str:
    """``relocations added`` -> ``relocation added``."""
    noun, _, rest = things.partition(" ")
    noun = noun[:-3] + "y" if noun.endswith("ies") else noun.removesuffix("s")
    return f"{noun} {rest}".rstrip()


def seconds_text(seconds: float) -> str:
    """``40 ms``, ``1.9 s``, ``2 min 5 s``."""
    if seconds < 0.095:
        shown = f"{seconds * 1000:.0f} ms"
    elif seconds < 59.95:
        shown = f"{seconds:.1f} s"
    else:
        shown = f"{int(seconds + 0.5) // 60} min {int(seconds + 0.5) % 60} s"
    return shown.replace(" ", NO_BREAK)


def clean(text: str) -> str:
    """The text as UTF-8 can hold it: names come out of files that somebody else made."""
    return text.encode("utf-8", "backslashreplace").decode()


def printable(text: str) -> str:
    """The text with what would move a cursor, break a line or turn its direction shown escaped."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == NO_BREAK else c.encode("unicode_escape").decode() for c in text
    )


def links_text(indexes: Iterable[int]) -> str:
    """``link 2``, ``links 0, 2-5``."""
    ordered = sorted(set(indexes))
    parts: list[str] = []
    at = 0
    while at < len(ordered):
        end = at
        while end + 1 < len(ordered) and ordered[end + 1] == ordered[end] + 1:
            end += 1
        if end - at >= 2:
            parts.append(f"{ordered[at]}-{ordered[end]}")
        else:
            parts += [str(index) for index in ordered[at : end + 1]]
        at = end + 1
    return f"link{'' if len(ordered) == 1 else 's'} {', '.join(parts)}"


def codes_text(codes: Mapping[str, int], unseen: Iterable[str] = ()) -> str:
    """``PASS 5 102, DROP 1 709; never TX``: the most frequent first."""
    ordered = sorted(codes.items(), key=lambda item: (-item[1], item[0]))
    seen = ", ".join(f"{name} {number(count)}" for name, count in ordered)
    never = ", ".join(unseen)
    return "; ".join(part for part in (seen, f"never {never}" if never else "") if part) or "-"


def edges_text(coverage: ProgramCoverage | None) -> str:
    """``31/32``; ``0/0`` where nothing branches; ``-`` where it was not counted."""
    return "-" if coverage is None else f"{coverage.edges_seen}/{len(coverage.edges)}"


def edges_unseen(coverage: ProgramCoverage) -> list[str]:
    """``xdp+12 (fw.c:88): never taken``, one line a jump that did not go both ways."""
    lines = []
    for section, at in sorted({(section, at) for section, at, _ in coverage.edges}):
        ways = {
            taken: coverage.edges[section, at, taken]
            for taken in (False, True)
            if (section, at, taken) in coverage.edges
        }
        if all(ways.values()):
            continue
        source = coverage.sources.get((section, at))
        line = f" ({source[0]}:{source[1]})" if source else ""
        if not any(ways.values()):
            how = "never reached"
        else:
            how = "always taken" if ways.get(True) else "never taken"
        lines.append(f"{section}+{at}{line}: {how}")
    return lines


def instructions_text(link: LinkResult) -> str:
    """``41 → 48``; ``-`` where it was not counted."""
    before, after = link.instructions
    return f"{before} → {after}" if before or after else "-"


def packets_of(report: Report) -> int:
    """How many packets were run: the chain's, or those of the link that ran most."""
    if report.chain and report.chain.dynamic.packets:
        return report.chain.dynamic.packets
    return max((link.dynamic.packets for link in report.links), default=0)


def engines_of(report: Report) -> tuple[str, ...]:
    """The engines that ran anything, each once."""
    found = [engine for _, result in _runs(report) for engine in result.engines]
    return tuple(dict.fromkeys(found))


def recordings(report: Report) -> tuple[CorpusUse, ...]:
    """The recordings that were run, each once: by the link or chain that ran most of it."""
    found: dict[tuple[str, str], CorpusUse] = {}
    for _, result in _runs(report):
        for corpus in result.corpora:
            known = found.get((corpus.name, corpus.sha256))
            if known is None or known.packets < corpus.packets:
                found[corpus.name, corpus.sha256] = corpus
    return tuple(found.values())


@dataclass(frozen=True, slots=True)
class Trouble:
    """A finding with where it belongs: ``link 1 (metrics)`` or ``chain``, ``static`` or ``dynamic``."""

    where: str
    half: str
    finding: Finding

    @property
    def text(self) -> str:
        """``link 1 (metrics): an exit is left as it was, at instruction xdp+42 (fw.c:88)``."""
        at = f", at {self.finding.place}" if self.finding.place else ""
        return f"{self.where}: {self.finding.message}{at}"


def troubles(report: Report) -> tuple[Trouble, ...]:
    """All findings that keep the proof from being whole, the worst first; reasons for NOT_RUN and
    notes on what is equal are not among them."""
    found = []
    for link in report.links:
        for half, findings in (
            ("static", link.static.findings),
            ("dynamic", link.dynamic.findings),
        ):
            found += [Trouble(_link_name(link), half, finding) for finding in findings]
    if report.chain:
        found += [Trouble("chain", "dynamic", item) for item in report.chain.dynamic.findings]
    found = [item for item in found if item.finding.outcome >= Outcome.UNMODELLED]
    return tuple(sorted(found, key=lambda item: -item.finding.outcome))


def _link_name(link: LinkResult) -> str:
    return f"link {link.index} ({link.program})"


def reason(report: Report) -> str | None:
    """Why the verdict is not "equal", in one line; None where it is."""
    outcome = report.outcome
    if outcome is Outcome.EQUAL:
        return None
    if not report.links and report.chain is None:
        return None  # what was not checked tells it
    for item in troubles(report):
        if item.finding.outcome is outcome:
            return item.text
    for link in report.links:
        for half, its in (("static check", link.static.outcome), ("runs", link.dynamic.outcome)):
            if its is outcome:
                return f"{_link_name(link)}: {half}: {verdict_word(its)}, no reason was given"
    return f"chain: {verdict_word(outcome)}, no reason was given"


def counterexample_text(example: Counterexample) -> str:
    """``packet 17 of small.pcap, after 2 others: verdict PASS, was DROP``."""
    after = f", after {plural(len(example.before), 'other')}" if example.before else ""
    where = f"packet {example.packet} of {example.corpus}{after}"
    return f"{where}: {example.dimension} {example.got}, was {example.expected}"


def first_difference_text(example: Counterexample) -> str:
    """``first difference at instruction xdp+42 (fw.c:88)``."""
    if example.first_difference is None:
        return "first difference unknown"
    return f"first difference at {example.first_difference}"


def compared(what: str) -> bool:
    """Whether the text of a dimension says that it was compared (and not why it was not)."""
    return what == "equal" or what.startswith((NOT_EQUAL_WORD, "not-equal"))


def not_checked(report: Report) -> tuple[str, ...]:
    """What the verdict does not speak of, one line each: found in the values, then what the report
    itself names. Links of which the same is said share a line."""
    groups: dict[str, list[int]] = {}
    for link in report.links:
        for text in (*_static_gaps(link), *_dynamic_gaps(link.dynamic)):
            groups.setdefault(text, []).append(link.index)
    lines = [f"{links_text(indexes)}: {text}" for text, indexes in groups.items()]
    lines += _skipped(report)
    if report.chain:
        lines += _chain_gaps(report.chain)
    if not report.links and report.chain is None:
        lines.insert(0, "anything (there is no link)")
    return tuple(dict.fromkeys((*lines, *report.not_checked)))


def _static_gaps(link: LinkResult) -> list[str]:
    if link.static.outcome is not Outcome.NOT_RUN:
        return []
    return [f"static check{_why(link.static.findings)}"]


def _dynamic_gaps(result: DynamicResult) -> list[str]:
    if result.outcome is Outcome.NOT_RUN:
        return [f"runs on packets{_why(result.findings)}"]
    said = {finding.message for finding in result.findings}
    gaps = [what if what in said else f"{what} (not modelled)" for what in result.unmodelled]
    if result.nondeterministic:
        names = ", ".join(result.nondeterministic)
        gaps.append(f"other answers of {names} than the recorded or seeded ones")
    gaps += [
        f"{dimension} ({what})"
        for dimension, what in result.dimensions.items()
        if not compared(what)
    ]
    if not result.packets and result.outcome is Outcome.EQUAL:
        gaps.append("runs on packets (there was no packet)")
    return gaps


def _why(findings: tuple[Finding, ...]) -> str:
    reasons = [finding.message for finding in findings if finding.outcome is Outcome.NOT_RUN]
    return f" ({'; '.join(reasons)})" if reasons else ""


def _skipped(report: Report) -> list[str]:
    """Packets left out: said once where all links left them out alike."""
    groups: dict[tuple[str, str, int], list[int | None]] = {}
    ran = [index for index, result in _runs(report) if result.outcome is not Outcome.NOT_RUN]
    for index, result in _runs(report):
        for corpus in result.corpora:
            for why, count in corpus.skipped:
                if count:
                    groups.setdefault((corpus.name, why, count), []).append(index)
    lines = []
    for (name, why, count), indexes in groups.items():
        links = [index for index in indexes if index is not None]
        some = len(set(indexes)) < len(set(ran)) and links
        where = f"{links_text(links)}: " if some else ""
        lines.append(f"{where}{plural(count, 'packet')} of {name} ({why})")
    return lines


def _runs(report: Report) -> list[tuple[int | None, DynamicResult]]:
    found: list[tuple[int | None, DynamicResult]] = [
        (link.index, link.dynamic) for link in report.links
    ]
    if report.chain:
        found.append((None, report.chain.dynamic))
    return found


def _chain_gaps(chain: ChainResult) -> list[str]:
    gaps = [f"chain: {gap}" for gap in _dynamic_gaps(chain.dynamic)]
    never = [index for index, packets in chain.reached.items() if not packets]
    if never:
        gaps.append(f"chain: {links_text(never)} (reached by no packet)")
    return gaps

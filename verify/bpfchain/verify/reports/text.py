"""The summary in a terminal: the verdict, what was not checked, the table, where to look."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..result import ChainResult, Counterexample, DynamicResult, LinkResult, Outcome, Report
from . import words
from .columns import fold, table

__all__ = ["render"]

BOLD, DIM, RED, GREEN, YELLOW = "1", "2", "31", "32", "33"
_COLOURS = {
    Outcome.NOT_RUN: DIM,
    Outcome.EQUAL: GREEN,
    Outcome.UNMODELLED: YELLOW,
    Outcome.INCONCLUSIVE: YELLOW,
    Outcome.NOT_EQUAL: RED,
}
NARROWEST = 20
"""Cells of a terminal; on a narrower one lines stick out."""
SHOWN = 8
"""Findings, and lines of what was not checked, that a terminal shows without ``-v``."""
_HEADS = ("link", "program", "reached", "edges", "codes seen", "static", "dynamic")


def render(
    report: Report, *, width: int | None = None, colour: bool = False, verbose: bool = False
) -> str:
    """The report as lines, without a newline at the end.

    ``width`` is the terminal's in cells; None is a pipe: nothing folds and nothing is left out, one
    line each. ``verbose`` adds digests, versions, recordings, residue and edges never taken.
    """
    if width is not None:
        width = max(width, NARROWEST) if width > 0 else 80  # 0: the terminal does not know
    lines = _Page(width, colour, verbose).lines(report)
    return "\n".join(line.replace(words.NO_BREAK, " ") for line in lines)


def _row(link: LinkResult, reached: Mapping[int, int]) -> list[str]:
    """The cells of one link; how many packets of the chain came to it where that is known."""
    cells = [str(link.index), words.printable(link.program)]
    if reached:
        cells.append(words.number(reached[link.index]) if link.index in reached else "-")
    codes = words.codes_text(link.dynamic.codes, link.dynamic.codes_unseen)
    cells += [words.edges_text(link.dynamic.coverage), words.printable(codes)]
    return [*cells, words.static_word(link.static.outcome), words.dynamic_word(link.dynamic)]


@dataclass(frozen=True, slots=True)
class _Page:
    width: int | None
    colour: bool
    verbose: bool

    def lines(self, report: Report) -> Iterator[str]:
        """All of it, in the order in which it is read."""
        yield from self.verdict(report)
        yield from self.gaps(report)
        if report.links:
            yield from self.links(report)
        if report.chain:
            yield from self.chain(report.chain)
        yield from self.where_to_look(report)
        if self.verbose:
            yield from self.details(report)

    def verdict(self, report: Report) -> Iterator[str]:
        """``equal   chain edge: 3 links, 6 811 packets, 2 engines, 1.9 s``, and why not."""
        word = words.verdict_word(report.outcome)
        counts = [words.plural(len(report.links), "link")]
        if words.engines_of(report):
            counts.append(words.plural(words.packets_of(report), "packet"))
            counts.append(words.plural(len(words.engines_of(report)), "engine"))
        elif report.links:
            counts.append("no packets")
        counts.append(words.seconds_text(report.seconds))
        text = f"{words.printable(report.subject)}: {', '.join(counts)}"
        first, *others = fold(text, self.width, first=f"{word}   ", rest="  ")
        yield self.paint(word, f"{BOLD};{_COLOURS[report.outcome]}") + first[len(word) :]
        yield from others
        why = words.reason(report)
        if why:
            yield from self.say(why)

    def gaps(self, report: Report) -> Iterator[str]:
        """What was not checked, and what was waived."""
        gaps = words.not_checked(report)
        if not gaps:
            yield from self.say("nothing was left out")
        elif self.width is None:
            for gap in gaps:
                yield from self.say(f"not checked: {gap}")
        else:
            shown = gaps if self.verbose else gaps[:SHOWN]
            more = len(gaps) - len(shown)
            shown = (*shown, f"and {more} more, see -v") if more else shown
            yield from self.say(f"not checked: {'; '.join(shown)}")
        for waiver in report.waivers:
            yield from self.say(f"waived: {waiver}")

    def links(self, report: Report) -> Iterator[str]:
        """One row a link."""
        reached = report.chain.reached if report.chain else {}
        rows = [_row(link, reached) for link in report.links]
        heads = [head for head in _HEADS if head != "reached" or reached]
        static, dynamic = heads.index("static"), heads.index("dynamic")

        def paint(row: int, column: int, cell: str) -> str:
            if row < 0:
                return self.paint(cell, DIM)
            if column not in (static, dynamic):
                return cell
            link = report.links[row]
            half = link.static if column == static else link.dynamic
            return self.paint(cell, _COLOURS[half.outcome])

        yield from table(heads, rows, width=self.width, indent="  ", paint=paint,
                         folding=(heads.index("program"), heads.index("codes seen")))  # fmt: skip

    def chain(self, chain: ChainResult) -> Iterator[str]:
        """The chain as a whole: its verdicts, and its tail calls."""
        word = words.dynamic_word(chain.dynamic)
        differing = sum(n for (reference, got), n in chain.verdicts.items() if reference != got)
        seen: dict[str, int] = {}
        for (_, got), packets in chain.verdicts.items():
            seen[got] = seen.get(got, 0) + packets
        parts = [f"{words.plural(chain.dynamic.packets, 'packet')}"]
        if seen:
            parts.append(words.codes_text(seen))
        if differing:
            parts.append(f"{words.plural(differing, 'verdict')} differ{'s' * (differing == 1)}")
        if chain.tail_calls:
            parts.append(f"at most {words.plural(chain.tail_calls, 'tail call')}")
        first, *others = self.say(f"chain {word}: {'; '.join(parts)}")
        begin = "  chain "
        painted = self.paint(word, _COLOURS[chain.dynamic.outcome])
        yield begin + painted + first[len(begin) + len(word) :]
        yield from others

    def where_to_look(self, report: Report) -> Iterator[str]:
        """The hint to what the verdict named, the other findings, counterexamples, the rerun."""
        found = words.troubles(report)
        examples = [link.dynamic.counterexample for link in report.links]
        examples.append(report.chain.dynamic.counterexample if report.chain else None)
        files = [example.saved_as for example in examples if example and example.saved_as]
        shown = found if self.verbose or self.width is None else found[:SHOWN]
        for number, item in enumerate(shown):
            named = number == 0 and item.text == words.reason(report)
            if not named:
                yield from self.say(item.text)
            hint = item.finding.hint
            if hint and not any(file in hint for file in files):
                yield from self.say(f"hint: {hint}", indent="  " if named else "    ")
        if len(found) > len(shown):
            yield from self.say(f"and {len(found) - len(shown)} more, see -v")
        said = " ".join(item.finding.message for item in shown)
        for example in examples:
            if example:
                yield from self.counterexample(example, said)
        if report.rerun and report.outcome is not Outcome.EQUAL:
            yield from self.say(f"again: {report.rerun}")

    def counterexample(self, example: Counterexample, said: str) -> Iterator[str]:
        """The packet, where the runs part, and the file it was saved as; not what was said."""
        difference = words.first_difference_text(example)
        parts = []
        if f"{example.dimension} {example.got}" not in said:
            parts.append(words.counterexample_text(example))
        if example.first_difference and difference not in said:
            parts.append(difference)
        if example.saved_as:
            parts.append(f"saved as {example.saved_as}")
        if parts:
            yield from self.say("; ".join(parts))

    def details(self, report: Report) -> Iterator[str]:
        """What ``-v`` adds: what exactly was read, run, and not taken."""
        for link in report.links:
            yield from self.say(
                f"link {link.index}: {link.hook}, {link.strategy}, S={link.success}, "
                f"R={link.redirect or 'none'}, instructions {words.instructions_text(link)}"
            )
            for name, digest in (
                (link.input_name, link.input_sha256),
                (link.output_name, link.output_sha256),
            ):
                yield from self.say(f"sha256 {digest}  {name}", indent="    ")
            if link.static.counted:
                counted = words.counted_text(link.static.counted)
                by = f" by {', '.join(link.static.readers)}" if link.static.readers else ""
                yield from self.say(f"accounted for{by}: {counted}", indent="    ")
            for item in link.static.residue:
                yield from self.say(
                    f"reads {words.plural(item.size, 'byte')} of stack at r10{item.offset:+d} that it did "
                    f"not write ({item.how}), {item.place}", indent="    "
                )  # fmt: skip
            yield from self.runs(link.dynamic)
        if report.chain:
            yield from self.say("chain:")
            yield from self.runs(report.chain.dynamic)
        for corpus in words.recordings(report):
            count = words.plural(corpus.packets, "packet")
            yield from self.say(f"recording {corpus.name}: {count}")
            yield from self.say(f"sha256 {corpus.sha256}", indent="    ")
        if report.versions:
            known = ", ".join(
                f"{name} {version}" for name, version in sorted(report.versions.items())
            )
            yield from self.say(f"versions: {known}; seed {report.seed}")
        if report.rerun and report.outcome is Outcome.EQUAL:
            yield from self.say(f"again: {report.rerun}")

    def runs(self, result: DynamicResult) -> Iterator[str]:
        """Engines, and edges never taken."""
        if result.engines:
            fills = ", ".join(f"{fill:#04x}" for fill in result.fills)
            yield from self.say(
                f"engines {', '.join(result.engines)}{f'; stack filled with {fills}' if fills else ''}",
                indent="    ",
            )
        if result.coverage:
            for gap in words.edges_unseen(result.coverage):
                yield from self.say(f"edge {gap}", indent="    ")

    def say(self, text: str, indent: str = "  ") -> list[str]:
        """An indented line, whatever names in it hold, folded."""
        return fold(words.printable(text), self.width, first=indent, rest=indent + "  ")

    def paint(self, text: str, style: str) -> str:
        """The text in that style, where colour was asked for."""
        return f"\x1b[{style}m{text}\x1b[0m" if self.colour and text else text

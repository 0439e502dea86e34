"""The report as one HTML page: the verdict, what was not checked, the links, and all that supports it.

The page loads nothing and runs nothing; every text in it is escaped (``page.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..result import (
    ChainResult,
    CorpusUse,
    DynamicResult,
    Outcome,
    ProgramCoverage,
    Report,
)
from . import words
from .html_coverage import coverage_of
from .html_packet import counterexample_of
from .page import Html, chip, details, document, element, join, section, table, text

__all__ = ["render"]

_KINDS = {
    Outcome.NOT_RUN: "quiet",
    Outcome.EQUAL: "good",
    Outcome.UNMODELLED: "warn",
    Outcome.INCONCLUSIVE: "warn",
    Outcome.NOT_EQUAL: "bad",
}


def render(report: Report) -> str:
    """The page, without a newline at the end."""
    return document(
        f"{words.verdict_word(report.outcome)}: {report.subject}",
        _verdict(report),
        section("Not checked", *_gaps(report), id="not-checked"),
        section("Links", *_links(report), id="links"),
        section("Where to look", *_findings(report), id="findings"),
        section("Counterexample", *_counterexamples(report), id="counterexample"),
        section("Chain", *_chain(report.chain), id="chain"),
        section("What was compared", *_dimensions(report), id="dimensions"),
        section("Coverage", *_coverage(report), id="coverage"),
        section("Static proof", *_static(report), id="static"),
        section("Packets", *_packets(report), id="packets"),
        section("Files and versions", *_facts(report), id="facts"),
    )


def _verdict(report: Report) -> Html:
    engines = words.engines_of(report)
    counts = [words.plural(len(report.links), "link")]
    if engines:
        counts.append(words.plural(words.packets_of(report), "packet"))
        counts.append(" and ".join(engines))
    counts.append(words.seconds_text(report.seconds))
    why = words.reason(report)
    inside = [
        element("div", words.verdict_word(report.outcome), class_="word"),
        element("h1", report.subject),
        element("p", " · ".join(counts), class_="soft"),
    ]
    if why:
        inside.append(element("p", why, class_="reason"))
    return element("header", *inside, class_=f"verdict {_KINDS[report.outcome]}", id="verdict")


def _gaps(report: Report) -> Iterator[Html]:
    gaps = words.not_checked(report)
    if gaps:
        yield element("ul", *(element("li", gap) for gap in gaps))
    else:
        yield element("p", "Nothing was left out.")
    if report.waivers:
        yield element("h3", "Waived")
        yield element("ul", *(element("li", waiver) for waiver in report.waivers))


def _links(report: Report) -> Iterator[Html]:
    if not report.links:
        return
    reached = report.chain.reached if report.chain else {}
    executed = any(link.dynamic.executed for link in report.links)
    heads = ["link", "program", "instructions"]
    classes = ["num", "name", "num"]
    if executed:
        heads.append("run per packet")
        classes.append("num")
    if reached:
        heads.append("reached")
        classes.append("num")
    heads += ["edges", "codes seen", "static", "dynamic"]
    classes += ["keep", "", "", ""]
    rows = []
    for link in report.links:
        how = f"{link.hook}, {link.strategy}, S={link.success}"
        how += f", R={link.redirect}" if link.redirect else ""
        about = element("div", how, class_="soft")
        row: list[object] = [link.index, element("div", link.program, about)]
        row.append(words.instructions_text(link))
        if executed:
            row.append(_per_packet(link.dynamic))
        if reached:
            row.append(words.number(reached[link.index]) if link.index in reached else "-")
        row += [_edges(link.dynamic.coverage), _codes(link.dynamic)]
        row.append(chip(words.static_word(link.static.outcome), _KINDS[link.static.outcome]))
        row.append(_dynamic_chip(link.dynamic))
        rows.append(row)
    yield table(heads, rows, kind="links", classes=classes)


def _per_packet(result: DynamicResult) -> str:
    if result.executed is None or not result.packets:
        return "-"
    before, after = (count / result.packets for count in result.executed)
    return f"{before:,.1f} → {after:,.1f}".replace(",", words.NO_BREAK)


def _dynamic_chip(result: DynamicResult) -> Html:
    kind = _KINDS[result.outcome]
    if result.outcome is Outcome.EQUAL and not result.packets:
        kind = "quiet"
    return chip(words.dynamic_word(result), kind)


def _edges(coverage: ProgramCoverage | None) -> Html:
    shown = words.edges_text(coverage)
    if coverage is None or not coverage.edges:
        return text(shown)
    share = 100 * coverage.edges_seen / len(coverage.edges)
    return element("span", shown, _meter(share))


def _meter(share: float) -> Html:
    return Html(f'<span class="meter"><i style="width:{share:.0f}%"></i></span>')


def _codes(result: DynamicResult) -> Html:
    seen = sorted(result.codes.items(), key=lambda item: (-item[1], item[0]))
    chips = [element("span", name, " ", words.number(count), class_="chip") for name, count in seen]
    chips += [element("span", "never ", name, class_="chip never") for name in result.codes_unseen]
    return element("div", *chips, class_="codes") if chips else text("-")


def _findings(report: Report) -> Iterator[Html]:
    for item in words.troubles(report):
        finding = item.finding
        kind = _KINDS[finding.outcome]
        place = element("p", "at ", str(finding.place), class_="mono") if finding.place else ""
        hint = (
            element("p", element("span", "Hint: ", class_="soft"), finding.hint)
            if finding.hint
            else ""
        )
        yield element(
            "div",
            element("p", element("strong", item.where), " · ", item.half, " · ",
                    element("code", finding.rule), " ",
                    chip(words.verdict_word(finding.outcome), kind)),
            element("p", finding.message),
            place,
            hint,
            class_=f"finding {kind}",
        )  # fmt: skip


def _counterexamples(report: Report) -> Iterator[Html]:
    named = [(f"link {link.index} ({link.program})", link.dynamic) for link in report.links]
    if report.chain:
        named.append(("chain", report.chain.dynamic))
    for where, result in named:
        if result.counterexample:
            yield element("h3", where)
            yield from counterexample_of(result.counterexample)
    if report.rerun and any(result.counterexample for _, result in named):
        yield element("p", "The same again:")
        yield element("pre", report.rerun)


def _chain(chain: ChainResult | None) -> Iterator[Html]:
    if chain is None:
        return
    calls = (
        f", at most {words.plural(chain.tail_calls, 'tail call')} in one run"
        if chain.tail_calls
        else ""
    )
    yield element(
        "p", _dynamic_chip(chain.dynamic), " on ",
        f"{words.plural(chain.dynamic.packets, 'packet')} against the composed reference{calls}.",
    )  # fmt: skip
    if chain.verdicts:
        yield element("h3", "Verdicts: reference down, chain across")
        yield _matrix(chain)
    never = [index for index, packets in chain.reached.items() if not packets]
    if never:
        yield element("p", chip("never reached", "warn"), " ", words.links_text(never))


def _matrix(chain: ChainResult) -> Html:
    total: dict[str, int] = {}
    for (reference, got), packets in chain.verdicts.items():
        for name in {reference, got}:
            total[name] = total.get(name, 0) + packets
    names = sorted(total, key=lambda name: (-total[name], name))
    head = join(element("th", name, scope="col", class_="num") for name in names)
    rows = []
    for reference in names:
        cells = []
        for got in names:
            packets = chain.verdicts.get((reference, got), 0)
            kind = "" if not packets else " same" if reference == got else " off"
            cells.append(
                element("td", words.number(packets) if packets else "·", class_=f"num{kind}")
            )
        rows.append(element("tr", element("th", reference, scope="row"), *cells))
    return Html(
        f'<div class="scroll"><table class="matrix"><thead><tr><td></td>{head}</tr></thead>\n'
        f"<tbody>{join(rows)}</tbody></table></div>"
    )


def _dimensions(report: Report) -> Iterator[Html]:
    runs = [(f"link {link.index} ({link.program})", link.dynamic) for link in report.links]
    if report.chain:
        runs.append(("chain", report.chain.dynamic))
    names = list(dict.fromkeys(name for _, result in runs for name in result.dimensions))
    if not names:
        return
    rows = []
    reasons: dict[str, None] = {}
    for where, result in runs:
        row: list[object] = [where]
        for name in names:
            what = result.dimensions.get(name)
            row.append(_dimension(what))
            if what is not None and not words.compared(what):
                reasons[f"{name}: {what}"] = None
        rows.append(row)
    yield table(["link", *names], rows, kind="links", classes=["name", *[""] * len(names)])
    if reasons:
        yield element("ul", *(element("li", reason) for reason in reasons), class_="soft")
    given = [
        f"{where}: {', '.join(result.nondeterministic)}"
        for where, result in runs
        if result.nondeterministic
    ]
    if given:
        yield element("p", "Answers of these helpers came from the recording or the seed:")
        yield element("ul", *(element("li", item) for item in given))


def _dimension(what: str | None) -> Html:
    if what == "equal":
        return chip("equal", "good")
    if what is None:
        return text("-")
    return chip(what, "bad") if words.compared(what) else chip("not compared", "quiet")


def _coverage(report: Report) -> Iterator[Html]:
    covered = [link for link in report.links if link.dynamic.coverage is not None]
    for link in covered:
        if link.dynamic.coverage is not None:
            yield coverage_of(
                f"link {link.index} ({link.program})", link.dynamic.coverage, open=len(covered) == 1
            )


def _static(report: Report) -> Iterator[Html]:
    for link in report.links:
        found = link.static
        facts: list[tuple[str, object]] = []
        if found.counted:
            facts.append(("accounted for", words.counted_text(found.counted)))
        if found.readers:
            facts.append(("read by", ", ".join(found.readers)))
        if link.helpers:
            facts.append(("helpers", ", ".join(link.helpers)))
        if link.maps:
            facts.append(("maps", ", ".join(link.maps)))
        for item in found.residue:
            facts.append(
                ("reads unwritten stack",
                 f"{words.plural(item.size, 'byte')} at r10{item.offset:+d} ({item.how}), {item.place}")
            )  # fmt: skip
        word = chip(words.static_word(found.outcome), _KINDS[found.outcome])
        summary = join((element("strong", f"link {link.index} ({link.program})"), " ", word))
        yield details(summary, _list(facts), open=len(report.links) == 1)


def _packets(report: Report) -> Iterator[Html]:
    recordings = words.recordings(report)
    if recordings:
        rows = [
            (corpus.name, words.number(corpus.packets), _skipped(corpus),
             element("span", corpus.sha256, class_="mono"))
            for corpus in recordings
        ]  # fmt: skip
        yield table(
            ["recording", "run", "left out", "sha256"], rows, classes=["name", "num", "", "wrap"]
        )
    protocols: dict[str, int] = {}
    for result in _runs(report):
        for name, count in result.protocols.items():
            protocols[name] = max(protocols.get(name, 0), count)
    if protocols:
        yield element("h3", "By protocol")
        ordered = sorted(protocols.items(), key=lambda item: (-item[1], item[0]))
        chips = [element("span", f"{name} {words.number(n)}", class_="chip") for name, n in ordered]
        yield element("div", *chips, class_="codes")


def _skipped(corpus: CorpusUse) -> str:
    return ", ".join(f"{words.number(n)} ({why})" for why, n in corpus.skipped if n) or "0"


def _runs(report: Report) -> Iterator[DynamicResult]:
    for link in report.links:
        yield link.dynamic
    if report.chain:
        yield report.chain.dynamic


def _facts(report: Report) -> Iterator[Html]:
    rows = []
    for link in report.links:
        for name, digest in (
            (link.input_name, link.input_sha256),
            (link.output_name, link.output_sha256),
        ):
            rows.append((link.index, name, element("span", digest, class_="mono")))
    if rows:
        yield table(["link", "file", "sha256"], rows, classes=["num", "name", "wrap"])
    facts: list[tuple[str, object]] = sorted(report.versions.items())
    facts.append(("seed", report.seed))
    fills = sorted({fill for result in _runs(report) for fill in result.fills})
    if fills:
        facts.append(("stack filled with", ", ".join(f"{fill:#04x}" for fill in fills)))
    if report.rerun:
        facts.append(("again", element("code", report.rerun)))
    yield _list(facts)


def _list(facts: Iterable[tuple[str, object]]) -> Html:
    return element(
        "dl", *(join((element("dt", name), element("dd", what))) for name, what in facts)
    )

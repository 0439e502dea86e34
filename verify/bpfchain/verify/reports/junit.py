"""The report as JUnit XML: a suite for each link and the chain, a case for each check.

Different is a failure, undecided an error, and what was not run or met something unmodelled is
skipped with its reason, so that a CI service shows green only for what was shown.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from ..result import DynamicResult, Finding, LinkResult, Outcome, Report
from . import words
from .text import render as render_text

__all__ = ["render"]

_ELEMENTS = {
    Outcome.NOT_RUN: "skipped",
    Outcome.UNMODELLED: "skipped",
    Outcome.INCONCLUSIVE: "error",
    Outcome.NOT_EQUAL: "failure",
}


@dataclass(frozen=True, slots=True)
class _Case:
    """One check: its outcome, and the findings that tell why."""

    name: str
    outcome: Outcome
    findings: tuple[Finding, ...] = ()
    default: str = ""
    """Said where no finding tells."""


def render(report: Report) -> str:
    """The report as XML text, without a newline at the end."""
    root = Element("testsuites", name=words.printable(f"bpfchain verify {report.subject}"))
    for link in report.links:
        name = f"link {link.index} ({link.program})"
        part = replace(report, links=(link,), chain=None, not_checked=(), waivers=(), rerun="")
        cases = [_static_case(link), *_dynamic_cases(link.dynamic)]
        suite = _suite(root, name, f"link{link.index}.{link.program}", cases, _facts(link))
        _said(suite, replace(part, subject=link.output_name))
    if report.chain:
        name = f"chain {report.chain.name}"
        cases = _dynamic_cases(report.chain.dynamic)
        suite = _suite(root, name, f"chain.{report.chain.name}", cases, {})
        _said(suite, report)
    if not len(root):
        case = _Case("links", Outcome.NOT_RUN, default="there is no link")
        _said(_suite(root, report.subject, report.subject, [case], {}), report)
    for kind in ("tests", "failures", "errors", "skipped"):
        root.set(kind, str(sum(int(suite.get(kind, "0")) for suite in root)))
    root.set("time", f"{report.seconds:.3f}")
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode")


def _suite(
    root: Element, name: str, classname: str, cases: list[_Case], facts: dict[str, str]
) -> Element:
    suite = SubElement(root, "testsuite", name=words.printable(name))
    if facts:
        properties = SubElement(suite, "properties")
        for fact, value in facts.items():
            SubElement(properties, "property", name=fact, value=words.printable(value))
    made = [_case(suite, f"bpfchain.{classname}", case) for case in cases]
    for kind, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(kind, str(sum(element.find(tag) is not None for element in made)))
    suite.set("tests", str(len(made)))
    return suite


def _case(suite: Element, classname: str, case: _Case) -> Element:
    element = SubElement(
        suite, "testcase", name=words.printable(case.name), classname=words.printable(classname)
    )
    tag = _ELEMENTS.get(case.outcome)
    if tag is None:
        return element
    telling = [item for item in case.findings if item.outcome is case.outcome]
    message = telling[0].message if telling else case.default or words.verdict_word(case.outcome)
    child = SubElement(element, tag, message=words.printable(message))
    if tag != "skipped":
        child.set("type", telling[0].rule if telling else case.outcome.word)
        child.set("type", words.printable(child.get("type", "")))
        child.text = "\n".join(_lines(item) for item in telling) or None
    return element


def _lines(finding: Finding) -> str:
    at = f", at {finding.place}" if finding.place else ""
    text = words.printable(f"{finding.rule}: {finding.message}{at}")
    return f"{text}\n  hint: {words.printable(finding.hint)}" if finding.hint else text


def _said(suite: Element, report: Report) -> None:
    SubElement(suite, "system-out").text = render_text(report)


def _facts(link: LinkResult) -> dict[str, str]:
    return {
        "input": link.input_name,
        "input.sha256": link.input_sha256,
        "output": link.output_name,
        "output.sha256": link.output_sha256,
        "hook": link.hook,
        "strategy": link.strategy,
    }


def _static_case(link: LinkResult) -> _Case:
    return _Case("static", link.static.outcome, link.static.findings)


def _dynamic_cases(result: DynamicResult) -> list[_Case]:
    """A case for each engine and recording. Findings belong to those that they or the counterexample
    name; where none is named, to all: rather one failure too many than one too few."""
    pairs = [(engine, corpus) for engine in result.engines for corpus in result.corpora]
    if result.outcome is Outcome.NOT_RUN or not pairs:
        return [_Case("dynamic", result.outcome, result.findings)]
    named = {corpus.name for corpus in result.corpora if _names(result, corpus.name)}
    cases = []
    for engine, corpus in pairs:
        name = f"dynamic {engine} {corpus.name}"
        blamed = not named or corpus.name in named
        if result.outcome is not Outcome.EQUAL and blamed:
            cases.append(_Case(name, result.outcome, result.findings))
        elif not corpus.packets:
            cases.append(_Case(name, Outcome.NOT_RUN, default="no packet of it was run"))
        else:
            cases.append(_Case(name, Outcome.EQUAL))
    return cases


def _names(result: DynamicResult, corpus: str) -> bool:
    if result.counterexample and result.counterexample.corpus == corpus:
        return True
    telling = [item for item in result.findings if item.outcome is result.outcome]
    return any(f" of {corpus}" in item.message for item in telling)

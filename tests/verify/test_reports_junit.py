"""The JUnit report, read by another project's reader: what is green, red, undecided, left out."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import junitparser
import pytest

from bpfchain.verify.reports.junit import render
from bpfchain.verify.result import Outcome, Report
from support import sample_reports as samples

# the attributes and children that windyroad's and Jenkins' JUnit schemas have in common
ALLOWED = {
    "testsuites": ({"name", "tests", "failures", "errors", "skipped", "time"}, ["testsuite"]),
    "testsuite": (
        {"name", "tests", "failures", "errors", "skipped"},
        ["properties", "testcase", "system-out"],
    ),
    "properties": (set(), ["property"]),
    "property": ({"name", "value"}, []),
    "testcase": ({"name", "classname"}, ["skipped", "error", "failure"]),
    "skipped": ({"message"}, []),
    "error": ({"message", "type"}, []),
    "failure": ({"message", "type"}, []),
    "system-out": (set(), []),
}


def read(report: Report) -> dict[str, dict[str, list[junitparser.junitparser.Result]]]:
    """Suite -> case -> results, as junitparser sees them."""
    found = junitparser.JUnitXml.fromstring(render(report).encode())
    return {suite.name: {case.name: list(case.result) for case in suite} for suite in found}


@pytest.mark.parametrize("name", samples.ALL)
def test_the_form_is_that_of_the_common_schemas(name: str) -> None:
    root = ElementTree.fromstring(render(samples.ALL[name]()))

    def look(node: ElementTree.Element) -> None:
        attributes, children = ALLOWED[node.tag]
        assert set(node.attrib) <= attributes
        tags = [child.tag for child in node]
        assert all(tag in children for tag in tags)
        assert tags == sorted(tags, key=children.index)
        for child in node:
            look(child)

    look(root)


@pytest.mark.parametrize("name", samples.ALL)
def test_the_counts_are_those_of_the_cases(name: str) -> None:
    text = render(samples.ALL[name]())
    found, told = (junitparser.JUnitXml.fromstring(text.encode()) for _ in range(2))
    found.update_statistics()  # type: ignore[no-untyped-call]
    for one, other in zip(found, told, strict=True):
        for count in ("tests", "failures", "errors", "skipped"):
            assert getattr(one, count) == getattr(other, count), count
    for count in ("tests", "failures", "errors", "skipped"):
        assert getattr(found, count) == getattr(told, count), count
    assert told.tests > 0


def test_a_suite_for_each_link_and_the_chain_a_case_for_each_check() -> None:
    found = read(samples.equal())
    assert list(found) == ["link 0 (filter)", "link 1 (metrics)", "link 2 (route)", "chain edge"]
    dynamic = [f"dynamic {e} {c}" for e in ("ubpf", "kernel") for c in ("builtin", "small.pcap")]
    assert list(found["link 0 (filter)"]) == ["static", *dynamic]
    assert list(found["chain edge"]) == dynamic
    assert not any(results for suite in found.values() for results in suite.values())


def test_different_is_a_failure_of_the_recording_that_showed_it() -> None:
    cases = read(samples.not_equal())["link 1 (filter)"]
    (static,) = cases["static"]
    assert isinstance(static, junitparser.Failure)
    assert static.message == "an exit of the body is left as it was"
    assert static.type == "exit-unpatched"
    assert static.text is not None
    assert "xdp+42 of filter (src/filter.c:88)" in static.text
    (shown,) = cases["dynamic ubpf small.pcap"]
    assert isinstance(shown, junitparser.Failure)
    assert shown.message == "packet 17 of small.pcap, after 2 others: verdict PASS, was DROP"
    assert cases["dynamic ubpf builtin"] == []


def test_undecided_is_an_error_and_the_rest_is_skipped_with_its_reason() -> None:
    (result,) = read(samples.inconclusive())["link 0 (count)"]["static"]
    assert isinstance(result, junitparser.Error)
    assert result.type == "residue"
    (result,) = read(samples.unmodelled())["link 0 (timed)"]["dynamic ubpf builtin"]
    assert isinstance(result, junitparser.Skipped)
    assert str(result.message).startswith("bpf_timer_init is not modelled")
    (result,) = read(samples.static_refused())["link 1 (filter)"]["dynamic"]
    assert isinstance(result, junitparser.Skipped)
    assert result.message == "the static check failed"
    (result,) = read(samples.nothing())["chain empty"]["links"]
    assert isinstance(result, junitparser.Skipped)
    assert result.message == "there is no link"


def test_a_failure_that_names_no_recording_fails_them_all() -> None:
    runs = replace(samples.dynamic(Outcome.NOT_EQUAL), findings=())
    report = Report(subject="link0.o", links=(samples.link(0, "filter", dynamic=runs),))
    cases = read(report)["link 0 (filter)"]
    assert [len(results) for results in cases.values()] == [0, 1, 1, 1, 1]


def test_the_summary_stands_in_system_out() -> None:
    text = render(samples.chain_not_equal())
    said = [node.text or "" for node in ElementTree.fromstring(text).iter("system-out")]
    assert said[0].startswith("equal   link0.o: 1 link")
    assert said[-1].startswith("not equal   chain edge: 3 links")
    first = next(iter(junitparser.JUnitXml.fromstring(text.encode())))
    facts = first.properties()  # type: ignore[no-untyped-call]
    assert {item.name: item.value for item in facts}["output.sha256"] == "65" * 32

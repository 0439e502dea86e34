"""The lists' reader finds a new failure, a changed reason and an entry that is no longer true."""

from __future__ import annotations

from patched.expected import Rule, differences

RULES = [Rule("stack is full", ("a: *", "b: inline")), Rule("EPERM", ("c: *",), may=True)]


def test_what_is_listed_is_fine() -> None:
    results = {"a: inline": "its stack is full", "b: inline": "stack is full", "b: auto": None}
    assert differences(RULES, results | {"c: x": None, "c: y": "-EPERM"}) == []


def test_a_failure_that_nobody_lists_is_told() -> None:
    base = {"a: inline": "stack is full", "b: inline": "stack is full", "c: x": None}
    assert differences(RULES, base | {"b: auto": "odd"}) == ["b: auto: fails: odd"]
    changed = differences(RULES, base | {"a: inline": "odd", "c: x": "odd"})
    assert changed == [
        "a: inline: fails: odd (listed: 'stack is full')", "c: x: fails: odd (listed: 'EPERM')",
    ]  # fmt: skip


def test_an_entry_that_is_no_longer_true_is_told() -> None:
    results = {"a: inline": "stack is full", "a: auto": None, "b: inline": None, "c: x": None}
    assert differences(RULES, results) == [
        "a: auto: listed with 'stack is full', but nothing is wrong with it",
        "b: inline: listed with 'stack is full', but nothing is wrong with it",
    ]
    gone = differences(RULES, {"a: inline": "stack is full", "b: inline": "stack is full"})
    assert gone == ["c: *: listed with 'EPERM', but there is no such case"]


def test_too_few_cases_are_told() -> None:
    rule = Rule("odd", ("*",), may=True, at_least=2)
    assert differences([rule], {"a": "odd", "b": "odd", "c": None}) == []
    assert differences([rule], {"a": "odd"}) == ["'odd': 1 cases, at least 2 are listed"]

"""Reads the data files that list, by name, what does not load, and holds results against them.

A rule names cases (objects, and ways to patch them) and the reason for all of them. Whatever a rule
names must fail with that reason; whatever none names must not fail. So a rule that is no longer
true is found as well as a new failure.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Rule:
    """Cases that fail and why. ``reason`` is a regular expression to be found in the message.

    ``cases`` are patterns (``*`` stands for anything) of case names. ``may``: a case that the rule
    names may be fine as well (it depends on the host, or the rule tells the cases by the reason).
    ``at_least``: how many cases it must catch.
    """

    reason: str
    cases: tuple[str, ...]
    loaders: tuple[str, ...] = ()
    may: bool = False
    at_least: int = 0

    def names(self, case: str) -> bool:
        return any(fnmatchcase(case, pattern) for pattern in self.cases)


def rules(file: str, table: str, loader: str | None = None) -> list[Rule]:
    """The rules of one table, those that concern the loader where one is named."""
    entries: list[dict[str, Any]] = tomllib.loads((HERE / file).read_text()).get(table, [])
    found = []
    for entry in entries:
        left = set(entry) - {"reason", "cases", "ways", "loaders", "may", "at_least"}
        if left:
            raise ValueError(f"{file}: {table}: what is {sorted(left)}?")
        ways = entry.get("ways")
        cases = entry["cases"]
        if ways is not None:
            cases = [f"{case}: {way}" for case in cases for way in ways]
        one = Rule(
            entry["reason"], tuple(cases), tuple(entry.get("loaders", ())),
            entry.get("may", False), entry.get("at_least", 0),
        )  # fmt: skip
        if loader is None or loader in one.loaders:
            found.append(one)
    return found


def differences(
    listed: Iterable[Rule], results: Mapping[str, str | None], *, kind: str = "fails"
) -> list[str]:
    """What is not as listed, one line each. ``results``: case -> its message, None if it is fine.

    ``kind`` is the word for a case with a message.
    """
    known = list(listed)
    caught: dict[int, set[str]] = {number: set() for number in range(len(known))}
    seen: dict[str, int] = {}  # patterns that named a case at all
    said = []
    for case, message in results.items():
        naming = [number for number, rule in enumerate(known) if rule.names(case)]
        for number in naming:
            for pattern in known[number].cases:
                if fnmatchcase(case, pattern):
                    seen[f"{number} {pattern}"] = 1
        if message is None:
            said += [
                f"{case}: listed with {known[number].reason!r}, but nothing is wrong with it"
                for number in naming
                if not known[number].may
            ]
            continue
        matching = [n for n in naming if re.search(known[n].reason, message)]
        if not matching:
            wanted = "; ".join(repr(known[number].reason) for number in naming)
            said.append(f"{case}: {kind}: {message}" + (f" (listed: {wanted})" if wanted else ""))
        for number in matching:
            caught[number].add(case)
    for number, rule in enumerate(known):
        said += [
            f"{pattern}: listed with {rule.reason!r}, but there is no such case"
            for pattern in rule.cases
            if f"{number} {pattern}" not in seen
        ]
        if len(caught[number]) < rule.at_least:
            said.append(
                f"{rule.reason!r}: {len(caught[number])} cases, at least {rule.at_least} are listed"
            )
    return said

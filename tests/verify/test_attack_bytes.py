"""Every byte of a patched object, changed: the static checker says "equal" only of what means nothing.

The bounded test takes a sample of places, the long one every byte of every subject. The judge of
"means nothing" is ``support.flips``, which shares no reader with the checker.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import pytest

from bpfchain.transform.errors import BpfchainError
from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object
from bpfchain.verify.dynamic import check_dynamic
from bpfchain.verify.result import Outcome
from bpfchain.verify.static.check import check_link
from bpfchain.verify.static.insns import decode, encode
from bpfchain.verify.static.intent import read_intents
from bpfchain.verify.static.read import read_object
from support.flips import Flip, flips, harmless
from support.proofs import PROGRAMS, builtin

RISKS = frozenset({"nested-runs", "redirect-hazard"})
SAMPLE = 40


class Subject(NamedTuple):
    """A corpus object, its byte order, and how it is patched."""

    name: str
    order: str
    request: dict[str, Any]


_TC = {"index": 3, "redirect": "REDIRECT", "pin": True, "program": "verdict_tc"}
SUBJECTS = (
    Subject("globals", "el", {"index": 1}),
    Subject("xdp_redirect_map", "el", {"index": 1, "redirect": "REDIRECT", "saved": "REDIRECT"}),
    Subject("legacy_maps", "el", {"index": 0}),
    Subject("callback_loop", "el", {"index": 2, "redirect": "TX", "strategy": "subprog"}),
    Subject("core_xdp_md", "el", {"index": 0, "redirect": "TX", "saved_code": "map"}),
    Subject("verdict_tc", "eb", _TC),
    Subject("static_subprog", "el", {"index": 4, "last": True, "saved": "TX"}),
    Subject("nobtf", "el", {"index": 1}),
    Subject("decl_tag", "el", {"index": 0, "strategy": "subprog"}),
    Subject("kconfig", "el", {"index": 0}),
)


def _in_code(data: bytes, at: int) -> bool:
    obj = read_object(data)
    return any(s.offset <= at < s.offset + len(s.data) for s in obj.executable)


def _runs_alike(subject: Subject, patched: bytes, flip: Flip) -> bool:
    """Whether the changed code does the same on every run: r0 = r7 where r0 is r7 already, say.

    The engine is little-endian; of a big-endian subject its twin gets the same instruction.
    """
    data = (PROGRAMS / "el" / f"{subject.name}.o").read_bytes()
    changed = bytearray(transform_object(data, Request(allow=RISKS, **subject.request)).data)
    slot = flip.at // 8 * 8
    insn = decode(flip.of(patched)[slot : slot + 8], "<" if subject.order == "el" else ">")[0]
    changed[slot : slot + 8] = encode(insn, "<")
    (intent,) = read_intents(read_object(bytes(changed)))
    found = check_dynamic(data, bytes(changed), intent, [builtin()], seed=1)
    return found.outcome is Outcome.EQUAL


def told_apart(subject: Subject, patched: bytes, flip: Flip) -> bool:
    """Whether somebody could tell the objects apart."""
    if harmless(patched, flip):
        return False
    return not (_in_code(patched, flip.at) and _runs_alike(subject, patched, flip))


def attack(subject: Subject, *, count: int | None, seed: int) -> Counter[str]:
    """What the checker said of the mutants. Asserts that what it let pass means nothing."""
    data = (PROGRAMS / subject.order / f"{subject.name}.o").read_bytes()
    patched = transform_object(data, Request(allow=RISKS, **subject.request)).data
    intent, static = check_link(data, patched)
    assert static.outcome is Outcome.EQUAL, static.findings
    said: Counter[str] = Counter()
    for flip in flips(patched, seed=seed, count=count):
        try:
            _, static = check_link(data, flip.of(patched), program=intent.program)
        except BpfchainError as refused:
            said[type(refused).__name__] += 1
            continue
        said[static.outcome.name] += 1
        stumbled = [f.message for f in static.findings if "stumbled" in f.message]
        assert not stumbled, (subject, flip, stumbled)
        if static.outcome not in (Outcome.NOT_EQUAL, Outcome.INCONCLUSIVE):
            assert not told_apart(subject, patched, flip), (subject, flip, patched[flip.at])
    return said


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_a_changed_byte_passes_only_where_nobody_reads_it(subject: Subject) -> None:
    said = attack(subject, count=SAMPLE, seed=4)
    assert said["NOT_EQUAL"] > SAMPLE // 2  # the places were not all in gaps


@pytest.mark.exhaustive
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_every_changed_byte(subject: Subject) -> None:
    said = attack(subject, count=None, seed=5)
    assert said["NOT_EQUAL"] > 1000


def test_the_judge_tells_what_is_read_from_what_is_not() -> None:
    data = (PROGRAMS / "el" / "globals.o").read_bytes()
    patched = transform_object(data, Request(index=1)).data
    verdicts = [harmless(patched, flip) for flip in flips(patched, seed=1, count=600)]
    assert None in verdicts
    assert "nobody reads it" in verdicts

"""Damaged objects: 2,000 a run, each ends in a sound object or in one line that a person can act on.

``tests/fuzz/mutate.py`` runs them in processes of 512 MB; the mutator is ``support/mutate.py``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpfchain.transform.errors import BpfchainError, RefusedError
from bpfchain.transform.request import Patched, Request
from support import mutate
from support.mutate import CORPUS, judge, mutant

SCRIPT = Path(__file__).parents[1] / "fuzz" / "mutate.py"
COUNT, SECONDS = 2000, 60


def test_two_thousand_mutants(tmp_path: Path) -> None:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, SCRIPT, str(COUNT), "--keep", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["mutants"] == COUNT
    assert done.returncode == 0, done.stderr
    assert summary["wrong"] == []
    outcomes = summary["outcomes"]
    assert sum(outcomes.values()) == COUNT
    # a mutator that only makes rubbish would test the first check alone
    assert outcomes["object"] > COUNT // 20
    assert outcomes["refused"] > COUNT // 4
    assert time.monotonic() - start < SECONDS


def test_mutants_are_the_same_every_time() -> None:
    for number in (0, 17, 1999):
        assert mutant(number) == mutant(number)
    assert len({mutant(number).data for number in range(200)}) > 190


def _raises(error: BaseException | None, data: bytes = b"") -> object:
    def transform(_: bytes, __: Request) -> object:
        if error is not None:
            raise error
        patched = object.__new__(Patched)
        object.__setattr__(patched, "data", data)
        return patched

    return transform


def test_the_judge_sees_what_is_wrong(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Each way to end badly is told, so that the run above can fail."""

    def slow(*_: object) -> object:
        until = time.process_time() + 1.5 * mutate.SECONDS
        while time.process_time() < until:
            pass
        raise RefusedError("slow")

    two_lines = RefusedError("x")
    two_lines.message = "two\nlines"
    cases: list[tuple[object, str]] = [
        (_raises(KeyError("x")), "KeyError"),
        (_raises(MemoryError()), "MemoryError"),
        (_raises(RecursionError()), "RecursionError"),
        (_raises(two_lines), "not one printable line"),
        (_raises(RefusedError("x" * 301)), "301 characters"),
        (_raises(RefusedError("")), "empty"),
        (_raises(BpfchainError("x")), "of kind error"),
        (_raises(None, b"rubbish"), "the result is refused: not an ELF file"),
        (lambda *_: time.sleep(3), "did not end"),
        (slow, "took "),
    ]
    for transform, wrong in cases:
        monkeypatch.setattr(mutate, "transform_object", transform)
        verdict = judge(b"", Request(index=0), alarm=30 if wrong == "took " else 1)
        assert wrong in verdict.wrong
    monkeypatch.setattr(mutate, "transform_object", _raises(RefusedError("one line")))
    assert judge(b"", Request(index=0)).wrong == ""


_bases = st.sampled_from(
    sorted(str(p) for p in CORPUS.glob("e[lb]/*.o") if p.stat().st_size < 8192)
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    _bases,
    st.lists(st.tuples(st.integers(0, 8191), st.integers(0, 255)), max_size=4),
    st.integers(0, 8191),
)
def test_bytes_anywhere(base: str, changes: list[tuple[int, int]], end: int) -> None:
    """Hypothesis looks for the smallest damage that ends badly."""
    data = bytearray(Path(base).read_bytes())
    for at, value in changes:
        data[at % len(data)] = value
    if end < len(data) and end % 3 == 0:
        del data[end:]
    request = Request(index=1, redirect="1", strategy="auto", saved="1")
    verdict = judge(bytes(data), request)
    assert verdict.wrong == ""

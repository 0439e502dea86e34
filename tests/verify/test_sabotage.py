"""Deliberate faults in patched objects: the proof catches every one, and passes what is sound.

The static checker alone must find all; the runs alone must find every one that running can show.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bpfchain.transform.transform import transform_object
from bpfchain.verify.dynamic import check_dynamic
from bpfchain.verify.recording import builtin_recording
from bpfchain.verify.result import Outcome
from bpfchain.verify.static.check import check_link
from support.sabotage import FAULTS, SUBJECTS, Fault

SOURCE = Path(__file__).parent / "subjects" / "codes.c"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("subject") / "codes.o"
    asm = next(Path("/usr/include").glob("*-linux-gnu*/asm/types.h")).parents[1]
    subprocess.run(
        ["clang", "-target", "bpf", "-O2", "-g", "-mcpu=v2", f"-I{asm}", "-c", SOURCE, "-o", out],
        check=True,
    )
    return out.read_bytes()


@pytest.fixture(scope="module")
def patched(original: bytes) -> dict[str, bytes]:
    return {name: transform_object(original, request).data for name, request in SUBJECTS.items()}


def _name(fault: Fault) -> str:
    return fault.name.replace(" ", "-")


def test_there_are_enough_faults_of_different_kinds() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 25
    assert sum(fault.dynamic for fault in FAULTS) >= 25
    assert all(fault.dynamic != bool(fault.why_not) for fault in FAULTS)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_what_is_sound_passes(subject: str, original: bytes, patched: dict[str, bytes]) -> None:
    intent, static = check_link(original, patched[subject], lief=True)
    assert static.findings == ()
    assert static.outcome is Outcome.EQUAL
    dynamic = check_dynamic(original, patched[subject], intent, [builtin_recording()])
    assert dynamic.findings == ()
    assert dynamic.outcome is Outcome.EQUAL
    assert len(dynamic.codes) == 5, "the subject must return every code, or faults stay unseen"


@pytest.mark.parametrize("fault", FAULTS, ids=_name)
def test_the_static_checker_catches(
    fault: Fault, original: bytes, patched: dict[str, bytes]
) -> None:
    damaged = fault.apply(patched[fault.subject])
    _, static = check_link(original, damaged)
    assert static.outcome in (Outcome.NOT_EQUAL, Outcome.INCONCLUSIVE)
    finding = max(static.findings, key=lambda found: found.outcome)
    assert finding.outcome is static.outcome
    assert "\n" not in finding.message
    assert finding.rule


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.dynamic], ids=_name)
def test_the_runs_alone_catch(fault: Fault, original: bytes, patched: dict[str, bytes]) -> None:
    """The intent is that of the sound object, but where the fault is in the intent itself."""
    damaged = fault.apply(patched[fault.subject])
    of = damaged if "provenance" in fault.name else patched[fault.subject]
    intent, _ = check_link(original, of)
    dynamic = check_dynamic(original, damaged, intent, [builtin_recording()])
    assert dynamic.outcome is Outcome.NOT_EQUAL, dynamic.findings
    assert dynamic.findings

"""The runner of published conformance cases, on cases of our own: it tells passing from failing."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfchain.emulator.interpreter import EmulatorMissingError, native
from emulator import conformance

CASES = {
    # memory, a label, the first exit's own label, a local call, a wide load, an atomic, a raw case
    "good": "-- asm\nldxb %r0, [%r1+2]\nadd32 %r0, %r2 # 3 + 4\njeq %r0, 7, exit\nmov %r0, 1\n"
            "exit\n-- mem\n01 02\n03 04\n-- result\n0x7\n",
    "calls": "-- asm\nmov %r1, 20\ncall local twice\nexit\ntwice:\nmov %r0, %r1\nlsh %r0, 1\nexit\n"
             "-- result\n40\n",
    "atomic": "-- asm\nlddw %r3, 0x100000002\nstxdw [%r10-8], %r3\nmov %r4, 5\n"
              "lock fetch add [%r10-8], %r4\nldxdw %r0, [%r10-8]\nxor %r0, %r4\nexit\n"
              "-- result\n0x5\n",
    "raw": "-- raw\n0x00000009000000b7\n0x0000000000000095\n-- result\n0x9\n",
    "wrong": "-- asm\nmov %r0, -1\nexit\n-- result\n0xffffffff\n",
    "callx": "-- asm\nmov %r2, 5\ncall %r2\nexit\n-- result\n0x2\n",
    "unreadable": "-- asm\nfrobnicate %r0\nexit\n-- result\n0x0\n",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    try:
        native()
    except EmulatorMissingError as error:
        pytest.skip(f"{error} (unset BPFCHAIN_NO_NATIVE, run tools/setup.sh test)")
    for name, text in CASES.items():
        (tmp_path / f"{name}.data").write_text(text)
    return tmp_path


def test_every_case_is_judged(folder: Path) -> None:
    said: list[str] = []
    assert conformance.main([str(folder)], said.append) == 1
    assert said[-1] == "4 of 7 cases pass (interpreter)"
    assert [line.split(":")[0] for line in said[:-1]] == ["callx", "unreadable", "wrong"]
    assert "gave 0xffffffffffffffff, should be 0xffffffff" in said[2]


def test_only_known_failures_are_no_failure(folder: Path) -> None:
    for name in ("wrong", "unreadable"):
        (folder / f"{name}.data").unlink()
    said: list[str] = []
    assert conformance.main([str(folder)], said.append) == 0
    assert said[-1] == "4 of 5 cases pass (interpreter)"


def test_no_cases_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no folder with"):
        conformance.main([str(tmp_path)])

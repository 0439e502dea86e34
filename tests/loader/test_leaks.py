"""Nothing is left: after unload, and after a load or change that failed at any of its calls."""

from __future__ import annotations

import errno
import platform
from pathlib import Path

import pytest

from loader.kill.points import OPERATIONS, UNLOAD, Case
from loader.kill.stage import HOOKS, stage
from loader.kill.tracer import Run
from support.nets import in_netns

pytestmark = [
    pytest.mark.usefixtures("kernel"),
    pytest.mark.skipif(
        platform.machine() != "x86_64", reason="calls are made to fail on x86-64 only (ptrace)"
    ),
]

QUICK = [("xdp-entry", "load"), ("clsact", "load"), ("clsact", "replace")]
ALL = [(hook, operation, errno.EPERM) for hook in HOOKS for operation in OPERATIONS]
ALL += [(hook, "load", number) for hook in HOOKS for number in (errno.ENOMEM, errno.EINVAL)]


def fail_everywhere(case: Case, number: int, *, reads: bool) -> str:
    """Let each call of an operation fail in turn; what was seen, for a person."""
    operation, here = case.operation, case.stage
    case.prepare()
    tree = here.tree()
    calls = case.run(operation.words, reads=reads).calls
    case.clean()
    failed = 0
    for at in range(len(calls)):
        case.prepare()
        run = case.run(operation.words, fail=(at, number), reads=reads)
        where = f"{operation.name}: {calls[at].text} says {errno.errorcode[number]}"
        assert run.calls[at].text == calls[at].text, f"{where}: another run makes other calls"
        if calls[at].text.startswith("rmdir") and not here.status():
            case.run(UNLOAD)  # which says that nothing is loaded, and sweeps the empty folders
        if run.code == 0:
            # what failed was not needed: libbpf asks what the kernel knows, folders are swept
            runs = case.check_running(where)
            assert runs == operation.after, f"{where}: {runs}"
        else:
            failed += 1
            _one_line(run, where)
            found = here.wire.send(4)
            assert found in ({operation.before}, {operation.after}), f"{where}: {found}"
            if operation.name == "load":
                assert here.tree() == tree, f"{where}: {run.err}{here.tree()}"
                assert here.residue() == [], f"{where}: {here.residue()}"
            assert case.expected() == found.pop(), where
        case.clean(where)
    here.check_nothing_left()
    assert failed > len(calls) // 3, "hardly any call was needed"
    return f"{operation.name}: {len(calls)} calls, {failed} of them make it fail"


def _one_line(run: Run, where: str) -> None:
    lines = run.err.strip().splitlines()
    assert run.code in (3, 5), f"{where}: {run.code}: {run.err}"
    said = [line for line in lines if not line.startswith("  hint: ")]
    assert len(said) == 1, f"{where}: {run.err}"
    assert len(lines) <= 2, f"{where}: {run.err}"
    assert run.out == "", f"{where}: {run.out}"


def failing(hook: str, operation: str, folder: Path, bpffs: Path, number: int, reads: bool) -> None:
    def run() -> None:
        with stage(hook, folder, bpffs) as here:
            case = Case(here, OPERATIONS[operation])
            print(hook, fail_everywhere(case, number, reads=reads))

    in_netns(run)


@pytest.mark.parametrize(("hook", "operation"), QUICK)
def test_every_call_fails_once(hook: str, operation: str, tmp_path: Path, bpffs: Path) -> None:
    """EPERM from every call that changes something: one line, and nothing left."""
    failing(hook, operation, tmp_path, bpffs, errno.EPERM, reads=False)


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("hook", "operation", "number"), ALL)
def test_every_call_fails(
    hook: str, operation: str, number: int, tmp_path: Path, bpffs: Path
) -> None:  # fmt: skip
    """Those that only read too; for a load, with other errors too."""
    failing(hook, operation, tmp_path, bpffs, number, reads=True)

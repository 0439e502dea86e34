"""SIGKILL at every system call that changes something: the hook runs the old chain or the new one.

Before and after each call of load, replace, recreate, rollback, bypass and unload; judged by frames
that tell which links they ran, by ``bpfchain status``, and by the command that comes next.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from loader.kill.points import OPERATIONS, Case, kill_everywhere
from loader.kill.stage import HOOKS, stage
from loader.kill.strace import HARMLESS, straced
from support.nets import in_netns

pytestmark = pytest.mark.usefixtures("kernel")

QUICK = [(hook, operation) for hook in ("xdp", "clsact")
         for operation in ("load", "recreate", "replace", "unload")]  # fmt: skip
QUICK += [("xdp-entry", "recreate"), ("tcx", "replace")]
ALL = [(hook, operation) for hook in HOOKS for operation in OPERATIONS]


def killed(hook: str, operation: str, folder: Path, bpffs: Path, *, thorough: bool) -> Case:
    found: list[Case] = []

    def run() -> None:
        with stage(hook, folder, bpffs) as here:
            found.append(kill_everywhere(here, OPERATIONS[operation], thorough=thorough))

    in_netns(run)
    (case,) = found
    print(f"{hook} {operation}: killed at {len(case.injected)} points of {len(case.calls)} calls:")
    for number, after in case.injected:
        print(f"  {'after ' if after else 'before'} {case.text(number)}")
    return case


@pytest.mark.parametrize(("hook", "operation"), QUICK)
def test_killed(hook: str, operation: str, tmp_path: Path, bpffs: Path) -> None:
    """At every call that others could notice."""
    case = killed(hook, operation, tmp_path, bpffs, thorough=False)
    public = {n for n, call in enumerate(case.calls) if not call.private}
    assert {n for n, _ in case.injected} == public


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_points_are_the_ones_that_strace_sees(
    operation: str, tmp_path: Path, bpffs: Path
) -> None:  # fmt: skip
    """The command as a process of its own makes the calls that are killed here, in this order, and
    no other that could change something."""

    def run() -> None:
        with stage("clsact", tmp_path, bpffs) as here:
            case = Case(here, OPERATIONS[operation])
            case.enumerate()
            case.prepare()
            seen = straced([*case.words(case.operation.words), "--bpffs", str(bpffs)], tmp_path)
            more = left_over(seen.calls, [call.text for call in case.calls])
            assert {
                text.rsplit(" ", 2)[0] if "sockopt" in text else text for text in more
            } <= PROBES
            assert not seen.others - HARMLESS, "calls that nobody has thought about"
            assert seen.written == {"/dev/null"} & seen.written, "files that were opened to write"
            case.clean()

    in_netns(run)


PROBES = {"bpf PROG_LOAD", "bpf BTF_LOAD", "bpf MAP_CREATE", "setsockopt"}
"""Calls by which libbpf asks what the kernel can, once a process: the process of the tests, whose
forks are killed, may have asked before. Nobody but the caller sees what they make."""


def left_over(seen: list[str], listed: list[str]) -> list[str]:
    """What of ``seen`` is not in ``listed``; the listed ones are all there, in their order."""
    more, rest = [], list(listed)
    for text in seen:
        if rest and text == rest[0]:
            rest.pop(0)
        else:
            more.append(text)
    assert not rest, f"listed, but strace did not see {rest[0]} where it should be"
    return more


@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("hook", "operation"), ALL)
def test_killed_anywhere(hook: str, operation: str, tmp_path: Path, bpffs: Path) -> None:
    """On both sides of every call; before those too that others cannot notice."""
    case = killed(hook, operation, tmp_path, bpffs, thorough=True)
    public = {n for n, call in enumerate(case.calls) if not call.private}
    assert {n for n, after in case.injected if not after} == set(range(len(case.calls)))
    assert {n for n, after in case.injected if after} == public

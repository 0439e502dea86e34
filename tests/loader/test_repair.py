"""An operation that dies anywhere leaves the old chain or the new one, and the next command repairs.

The process kills itself around each of its own changing calls. (That every system call counts, also
those that a library makes, is shown from outside, by tracing.)
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bpfchain.loader import syscall
from bpfchain.loader.operations.bypass import bypass
from bpfchain.loader.operations.load import load
from bpfchain.loader.operations.recreate import recreate
from bpfchain.loader.operations.replace import replace
from bpfchain.loader.operations.rollback import rollback
from bpfchain.loader.operations.unload import unload
from bpfchain.loader.places import ChainPlace, place_of, state_root
from bpfchain.loader.situation import Situation
from bpfchain.loader.status import chain_status
from bpfchain.loader.uapi import Cmd
from support.chains import (
    Part,
    Scene,
    patched,
    runs,
    scene,
    set_verdict,
    slots_by_bpftool,
    source_of,
    wait_until,
    write_chain,
)
from support.nets import in_netns

pytestmark = pytest.mark.usefixtures("kernel")

CHANGING = {
    Cmd.MAP_UPDATE_ELEM, Cmd.OBJ_PIN, Cmd.LINK_CREATE, Cmd.LINK_UPDATE, Cmd.LINK_DETACH,
    Cmd.MAP_FREEZE,
}  # fmt: skip


def dies_at(number: int, work: Callable[[], object]) -> bool:
    """Run ``work`` in a child that is killed at its changing call ``number`` (even: before it, odd:
    after it). False once the child got to its end."""
    child = os.fork()
    if child == 0:
        try:
            _arm(number)
            work()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the operation failed"
    return False


def _arm(number: int) -> None:
    left = [number]

    def around(call: Callable[..., Any], counts: Callable[..., bool] = lambda *_: True) -> Any:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            if not counts(*arguments):
                return call(*arguments, **named)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            answer = call(*arguments, **named)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return answer

        return wrapped

    syscall._syscall = around(syscall._syscall, lambda _, cmd, *__: cmd in CHANGING)
    for name in ("mkdir", "rmdir", "rename", "unlink"):
        setattr(os, name, around(getattr(os, name)))


LONG = [("xdp-native", operation, False) for operation in ("load", "head", "bypass", "rollback")]
LONG += [("clsact", operation, False) for operation in ("load", "recreate", "unload")]
LONG += [("xdp-native", operation, True) for operation in ("load", "head", "recreate")]
CASES = [
    *(("xdp-native", operation, False) for operation in ("replace", "recreate", "unload")),
    *(pytest.param(*case, marks=pytest.mark.long) for case in LONG),
]


@pytest.mark.parametrize(("name", "operation", "entry"), CASES)
def test_dies(name: str, operation: str, entry: bool, bpffs: Path, tmp_path: Path) -> None:
    def run() -> None:
        with scene(name, tmp_path) as here:
            _dies(here, operation, entry, bpffs, tmp_path)

    in_netns(run)
    assert list(bpffs.iterdir()) == []


def _dies(here: Scene, operation: str, entry: bool, bpffs: Path, tmp_path: Path) -> None:
    path = write_chain(tmp_path, "edge", [here.part] * 3)
    source = source_of(path)
    place = place_of(here.target, "edge", state_root(bpffs))
    code = here.go_on if entry else None
    new = patched(here.part, 1, tmp_path)
    head = patched(here.part, 0, tmp_path, "head.o")
    work: dict[str, Callable[[], object]] = {
        "load": lambda: load(source, place, here.target, entry=code),
        "replace": lambda: replace(place, *new, folder=tmp_path),
        "head": lambda: replace(place, *head, folder=tmp_path),
        "bypass": lambda: bypass(place, 1),
        "recreate": lambda: recreate(source, place),
        "rollback": lambda: rollback(place),
        "unload": lambda: unload(place),
    }
    number, died = 0, True
    while died:
        if operation != "load":
            load(source, place, here.target, entry=code)
            if operation == "rollback":
                recreate(source, place)
            _pass(place, here)
        died = dies_at(number, work[operation])
        with Situation(place) as situation:
            loaded = situation.current is not None
        if operation not in ("load", "unload"):
            assert loaded, f"call {number}: nothing runs"
        if died:
            _judge(place, here, loaded, operation)
            status = chain_status(place)
            assert not status.problems, (number, status.problems)
            if loaded:
                recreate(source, place)  # the next command repairs, and is itself done
                assert chain_status(place).healthy
                _judge(place, here, True, operation)
                assert _numbers(place) == 2
            else:
                load(source, place, here.target, entry=code)
                assert chain_status(place).healthy
                loaded = True
        elif operation != "unload":
            assert chain_status(place).healthy
        if loaded:
            unload(place)
        assert list(bpffs.iterdir()) == [], number
        assert here.head(place.link) is None
        number += 1
    assert number > 6, "calls were counted"


def _pass(place: ChainPlace, here: Scene) -> None:
    with Situation(place) as situation:
        assert situation.current is not None
        for index in range(3):
            set_verdict(situation.current.folder / f"m{index}_verdict", here.go_on)


def _numbers(place: ChainPlace) -> int:
    return len([one for one in place.folder.iterdir() if one.name[:1] == "g"])


def _judge(place: ChainPlace, here: Scene, loaded: bool, operation: str) -> None:
    """Traffic runs through a whole chain, or none."""
    if not loaded:
        assert here.head(place.link) is None
        return
    _pass(place, here)
    with Situation(place) as situation:
        assert situation.current is not None
        folder = situation.current.folder
    before = [runs(folder / f"m{i}_runs") for i in range(3)]
    here.send(3)
    wait_until(lambda: runs(folder / "m2_runs") == before[2] + 3, "the last link runs")
    now = [runs(folder / f"m{i}_runs") for i in range(3)]
    grown = [after - was for after, was in zip(now, before, strict=True)]
    assert grown in ([3, 3, 3], [3, 0, 3]) if operation == "bypass" else grown == [3, 3, 3]
    assert set(slots_by_bpftool(folder / "slots")) == {1, 2}


def test_interface_goes(bpffs: Path, tmp_path: Path) -> None:
    """The chain's interface is deleted: status says so, and the pins are freed."""
    from support.nets import tool

    def run() -> None:
        with scene("xdp-native", tmp_path) as here:
            source = source_of(write_chain(tmp_path, "edge", [Part("verdict_xdp")] * 2))
            place = place_of(here.target, "edge", state_root(bpffs))
            load(source, place, here.target)
            tool("ip", "link", "set", "right", "down")
            tool("ip", "link", "set", "right", "name", "other")
            status = chain_status(place)
            assert status.healthy
            assert status.target is not None
            assert status.target.interface == "other"
            recreate(source, place)
            tool("ip", "link", "del", "left")
            status = chain_status(place)
            assert status.generation is None
            assert status.gone == "interface other is gone"
            done = unload(place)
            assert done.before is None
            assert "interface other is gone" in done.repaired[0]

    in_netns(run)
    assert list(bpffs.iterdir()) == []

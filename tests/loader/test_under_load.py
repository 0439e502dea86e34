"""Chains exchanged while frames run through them: no frame meets half a chain.

Each link marks and counts each frame, and takes long for it, so that some frame is in the chain at
every moment (tests/loader/load/). A frame that arrives without all marks, one that arrives though
what it met drops it, one that must arrive and does not, a counter that lacks one: 0 of each.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bpfchain.loader import grace
from bpfchain.loader.maps import Map
from bpfchain.loader.operations.load import load
from bpfchain.loader.operations.recreate import recreate
from bpfchain.loader.operations.replace import replace
from bpfchain.loader.operations.rollback import rollback
from bpfchain.loader.operations.unload import unload
from bpfchain.loader.places import place_of, state_root
from bpfchain.loader.status import chain_status
from bpfchain.loader.store import SLOTS
from loader.load.chain import LEFT, RIGHT, SLOW_SPIN, SPIN, Loaded, loaded, skipped_by_counters
from loader.load.traffic import Seen, traffic
from support.chains import runs, scene, set_verdict, source_of, wait_until, write_chain
from support.commands import run
from support.nets import in_netns, tool

pytestmark = pytest.mark.usefixtures("kernel")

rollback_module: Any = importlib.import_module("bpfchain.loader.operations.rollback")

HOOKS = ("xdp-native", "xdp-generic", "tcx", "clsact")
FEW, MANY = 20, 1000
COUNTS = [FEW, pytest.param(MANY, marks=[pytest.mark.long, pytest.mark.timeout(1200)])]


def with_chain(
    name: str, folder: Path, bpffs: Path, work: Callable[[Loaded], None], spin: int = SPIN
) -> None:
    def inside() -> None:
        with loaded(name, folder, bpffs, spin) as chain:
            work(chain)

    in_netns(inside)
    assert list(bpffs.iterdir()) == []


def whole(seen: Seen, chain: Loaded, before: list[list[int]]) -> None:
    """Every frame met a whole chain."""
    assert seen.early == 0, seen.examples
    assert seen.arrived > 100, seen
    assert skipped_by_counters(seen, before, chain.counts()) == []


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", [*HOOKS, "tcx-entry"])
def test_recreate(name: str, count: int, bpffs: Path, tmp_path: Path) -> None:
    """Each frame is judged by one generation, the old one or the new one."""

    def work(chain: Loaded) -> None:
        before = chain.counts()
        running = 1
        with traffic(LEFT, RIGHT) as frames:
            for number in range(count):
                running = 3 - running
                recreate(chain.sources[running], chain.place)
                if number % 4 == 3:
                    rollback(chain.place)
                    running = 3 - running
        whole(frames.seen, chain, before)
        assert frames.seen.mixed == 0
        assert set(frames.seen.marks) == {"1 1 1", "2 2 2"}
        assert min(frames.seen.marks.values()) > 10
        assert chain_status(chain.place).healthy

    with_chain(name, tmp_path, bpffs, work)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", HOOKS)
def test_replace(name: str, count: int, bpffs: Path, tmp_path: Path) -> None:
    """All links in turn, the head too. A frame meets each link in its old or its new version."""

    def work(chain: Loaded) -> None:
        before = chain.counts()
        with traffic(LEFT, RIGHT) as frames:
            for number in range(count):
                index, mark = number % 3, 2 - number // 3 % 2
                done = replace(chain.place, *chain.links[index, mark], folder=chain.folder)
                assert done.why is None, "one slot is enough"
        whole(frames.seen, chain, before)
        assert {"1 1 1", "2 1 1", "2 2 1", "2 2 2"} <= set(frames.seen.marks)
        status = chain_status(chain.place)
        assert status.healthy
        assert status.generation is not None
        assert status.generation.number == 1

    with_chain(name, tmp_path, bpffs, work)


def test_commands(bpffs: Path, tmp_path: Path) -> None:
    """The same by the commands, as a person runs them."""

    def work(chain: Loaded) -> None:
        before = chain.counts()
        new = tmp_path / "v2"
        with traffic(LEFT, RIGHT) as frames:
            for words in (
                ("replace", "edge", "1", new / "link1.o"),
                ("recreate", new / "manifest.json"),
                ("rollback", "edge"),
            ):
                done = run("bpfchain", *words, "--bpffs", bpffs, cwd=tmp_path)
                assert done.code == 0, done.stderr
        whole(frames.seen, chain, before)
        assert set(frames.seen.marks) == {"1 1 1", "1 2 1", "2 2 2"}

    with_chain("tcx", tmp_path, bpffs, work)


# The grace period. A rollback frees the generation that just ran, so it is the one to look at.


@contextmanager
def without_pause(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Between a rollback's swap and the release of what ran nothing else gets the loader's CPU
    (SCHED_FIFO), and then the kworker does that empties the array: the two as close as they can be.
    """
    remove, swap = rollback_module.remove_generation, rollback_module.swap_head
    usual = os.sched_getscheduler(0), os.sched_getparam(0)

    def swap_first(*arguments: object) -> None:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        swap(*arguments)

    def release(folder: Path) -> None:
        remove(folder)
        os.sched_setscheduler(0, *usual)
        time.sleep(0.001)

    with monkeypatch.context() as patch:
        patch.setattr(rollback_module, "swap_head", swap_first)
        patch.setattr(rollback_module, "remove_generation", release)
        try:
            yield
        finally:
            os.sched_setscheduler(0, *usual)


def swapped(chain: Loaded, monkeypatch: pytest.MonkeyPatch, count: int) -> Seen:
    """``count`` rollbacks under traffic, loader and traffic on a CPU each."""
    loader, sender = sorted(os.sched_getaffinity(0))[:2]
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {loader})
    try:
        with without_pause(monkeypatch), traffic(LEFT, RIGHT, cpu=sender) as frames:
            for _ in range(count):
                recreate(chain.sources[2], chain.place)
                rollback(chain.place)
    finally:
        os.sched_setaffinity(0, before)
    return frames.seen


ROUND, MOST_ROUNDS = 30, 20


@pytest.mark.parametrize("count", [ROUND, pytest.param(500, marks=pytest.mark.long)])
@pytest.mark.parametrize("name", ["tcx", "tcx-entry", "xdp-entry"])
def test_grace_period(
    name: str, count: int, bpffs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the wait no frame ends early; without it some do, or this test could not tell."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU: no frame is in the chain while the loader runs")

    def work(chain: Loaded) -> None:
        seen = swapped(chain, monkeypatch, count)
        assert seen.early == 0, seen.examples
        assert set(seen.marks) == {"1 1 1", "2 2 2"}
        with monkeypatch.context() as patch:
            patch.setattr(grace, "wait", lambda: None)
            rounds = (swapped(chain, monkeypatch, ROUND) for _ in range(MOST_ROUNDS))
            found = next((seen for seen in rounds if seen.early), None)
        assert found is not None, f"{ROUND * MOST_ROUNDS} swaps without a wait, and nothing is seen"
        assert found.skipped > 0, found

    with_chain(name, tmp_path, bpffs, work, SLOW_SPIN)


# TCP, as the thesis measured it.

TIMES = 100
LONGEST = 120
"""Seconds; iperf3 is told to end before."""


@contextmanager
def far_end() -> Iterator[list[str]]:
    """``left`` in a namespace of its own, with addresses on both; what to run a command there with."""
    with subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE) as holder:
        try:
            inside = ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]
            own = os.readlink(f"/proc/self/task/{threading.get_native_id()}/ns/net")
            end = time.monotonic() + 10
            while os.readlink(f"/proc/{holder.pid}/ns/net") == own:
                assert time.monotonic() < end, "unshare does not come to its work"
                time.sleep(0.01)
            tool("ip", "link", "set", LEFT, "netns", str(holder.pid))
            tool(*inside, "ip", "addr", "add", "192.0.2.1/24", "dev", LEFT)
            tool(*inside, "ip", "link", "set", LEFT, "up")
            tool("ip", "addr", "add", "192.0.2.2/24", "dev", RIGHT)
            yield inside
        finally:
            assert holder.stdin is not None
            holder.stdin.close()


@pytest.mark.parametrize(
    "name",
    [
        "xdp-native",
        "tcx",
        *(pytest.param(n, marks=pytest.mark.long) for n in ("xdp-generic", "clsact")),
    ],
)
def test_tcp(name: str, bpffs: Path, tmp_path: Path) -> None:
    """iperf3 through the chain: data flows in every half second while it is recreated 100 times."""
    if shutil.which("iperf3") is None:
        pytest.skip("no iperf3: apt-get install iperf3")

    def inside() -> None:
        with scene(name, tmp_path) as here, far_end() as there:
            path = write_chain(tmp_path / "chain", "edge", [here.part] * 3)
            place = place_of(here.target, "edge", state_root(bpffs))
            load(source_of(path), place, here.target)
            for index in range(3):
                set_verdict(place.generation(1) / f"m{index}_verdict", here.go_on)
            server = subprocess.Popen(
                ["iperf3", "-s", "-1", "-B", "192.0.2.2"], stdout=subprocess.PIPE, text=True
            )
            try:
                _wait_for_listener()
                client = subprocess.Popen(
                    [*there, "iperf3", "-c", "192.0.2.2", "-t", str(LONGEST), "-i", "0.5", "-J"],
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                )  # fmt: skip
                _wait_for_data(place.generation(1) / "m2_runs")
                for _ in range(TIMES):
                    recreate(source_of(path), place)
                assert client.poll() is None, "the transfer is over"
                client.send_signal(signal.SIGINT)
                out, errors = client.communicate(timeout=30)
            finally:
                server.kill()
                server.communicate()
            unload(place)
        report = json.loads(out)
        assert report.get("error") == "interrupt - the client has terminated", errors
        intervals = [one["sum"]["bytes"] for one in report["intervals"]]
        assert len(intervals) >= 2
        assert min(intervals) > 0, "TCP stood still for half a second"

    in_netns(inside)
    assert list(bpffs.iterdir()) == []


def _wait_for_listener() -> None:
    end = time.monotonic() + 10
    while "5201" not in tool("ss", "-ltnH"):
        assert time.monotonic() < end, "iperf3 does not listen"
        time.sleep(0.02)


def _wait_for_data(counter: Path) -> None:
    begin = runs(counter)
    wait_until(lambda: runs(counter) > begin + 1000, "iperf3 sends")


def test_the_traffic_notices(bpffs: Path, tmp_path: Path) -> None:
    """What the tests above look for is found where it is: a slot taken out of a live chain."""

    def work(chain: Loaded) -> None:
        before = chain.counts()
        with traffic(LEFT, RIGHT) as frames:
            with Map.get_pinned(chain.place.generation(1) / SLOTS) as slots:
                slots.delete((2).to_bytes(4, "little"))
            time.sleep(0.05)
            replace(chain.place, *chain.links[2, 2], folder=chain.folder)
        assert frames.seen.skipped > 0
        assert frames.seen.wrong > 0
        assert any("skipped a link" in one for one in frames.seen.examples)
        assert skipped_by_counters(frames.seen, before, chain.counts())

    with_chain("tcx", tmp_path, bpffs, work)

"""Chains on this kernel's hooks, with real packets: load, replace, recreate, rollback, bypass, unload.

What the hooks and slots hold is read by bpftool and tc, not by the loader; what ran is counted by
the links' own maps.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfchain.loader.hooks import Target, named_target, socket_target
from bpfchain.loader.operations.bypass import bypass
from bpfchain.loader.operations.load import load
from bpfchain.loader.operations.recreate import recreate
from bpfchain.loader.operations.replace import replace
from bpfchain.loader.operations.rollback import rollback
from bpfchain.loader.operations.unload import unload
from bpfchain.loader.places import ChainPlace, place_of, state_root
from bpfchain.loader.status import chain_status
from bpfchain.transform.errors import HostError, RefusedError, UsageError
from bpfchain.transform.policy import Hook
from support.bpfcode import bpf_descriptors
from support.chains import (
    SCENES,
    Part,
    Scene,
    bpftool,
    ids_of,
    patched,
    runs,
    scene,
    set_verdict,
    slots_by_bpftool,
    source_of,
    wait_gone,
    wait_until,
    write_chain,
)
from support.nets import in_netns, tool

pytestmark = pytest.mark.usefixtures("kernel")


def program_id(pin: Path) -> int:
    return int(bpftool("prog", "show", "pinned", pin)["id"])


class Runner:
    """A chain of ``verdict`` programs under traffic; counts what each link must have run."""

    def __init__(self, scene: Scene, place: ChainPlace, links: int) -> None:
        self.scene, self.place = scene, place
        self.expected = [0] * links
        self.generation = 1

    @property
    def folder(self) -> Path:
        return self.place.generation(self.generation)

    def map(self, index: int, name: str) -> Path:
        return self.folder / f"m{index}_{name}"

    def start(self) -> None:
        for index in range(len(self.expected)):
            set_verdict(self.map(index, "verdict"), self.scene.go_on)

    def packets(self, count: int, reach: tuple[int, ...]) -> None:
        """Send; exactly the links in ``reach`` run that often."""
        self.scene.send(count)
        for index in reach:
            self.expected[index] += count
        last = max(reach)
        wait_until(
            lambda: runs(self.map(last, "runs")) >= self.expected[last],
            f"link {last} ran {runs(self.map(last, 'runs'))} times, not {self.expected[last]}",
        )
        assert [runs(self.map(i, "runs")) for i in range(len(self.expected))] == self.expected

    def check(self) -> None:
        """Head and slots, as bpftool and tc see them."""
        assert self.scene.head(self.place.link) == program_id(self.folder / "p0")
        wanted = {i: program_id(self.folder / f"p{i}") for i in range(1, len(self.expected))}
        assert slots_by_bpftool(self.folder / "slots") == wanted
        status = chain_status(self.place)
        assert status.healthy, (status.problems, status.unfinished)
        assert status.generation is not None
        assert status.generation.number == self.generation


@pytest.mark.parametrize("name", SCENES)
def test_a_chain_s_life(name: str, bpffs: Path, tmp_path: Path) -> None:
    before = bpf_descriptors()

    def life() -> None:
        with scene(name, tmp_path / "cgroup") as here:
            path = write_chain(tmp_path, "edge", [here.part] * 3)
            place = place_of(here.target, "edge", state_root(bpffs))
            link = place.link
            done = load(source_of(path), place, here.target)
            assert (done.operation, done.generation) == ("load", 1)
            run = Runner(here, place, 3)
            run.start()
            run.check()
            run.packets(7, (0, 1, 2))
            set_verdict(run.map(1, "verdict"), here.stop)
            run.packets(5, (0, 1))
            set_verdict(run.map(1, "verdict"), here.go_on)

            # one slot: nothing else changes
            slots, old = slots_by_bpftool(run.folder / "slots"), here.head(link)
            new = patched(here.part, 1, tmp_path)
            done = replace(place, *new, folder=tmp_path)
            assert (done.operation, done.why, done.generation) == ("replace", None, 1)
            after = slots_by_bpftool(run.folder / "slots")
            assert {i for i in after if after[i] != slots[i]} == {1}
            assert here.head(link) == old
            assert sorted(done.kept) == ["link 1: runs", "link 1: verdict"]
            run.check()
            run.packets(6, (0, 1, 2))  # counters went on

            # the head: slots stay
            head = patched(here.part, 0, tmp_path, "head.o")
            done = replace(place, *head, folder=tmp_path)
            assert (done.operation, done.why) == ("replace", None)
            assert slots_by_bpftool(run.folder / "slots") == after
            assert here.head(link) != old
            run.check()
            run.packets(4, (0, 1, 2))

            bypass(place, 1)
            run.check()
            run.packets(3, (0, 2))
            replace(place, *new, folder=tmp_path)
            run.packets(3, (0, 1, 2))

            first = ids_of(place.generation(1))
            done = recreate(source_of(path), place)
            assert done.generation == run.generation + 1
            run.generation = 2
            run.check()
            run.packets(8, (0, 1, 2))
            done = rollback(place)
            assert done.generation == 1
            run.generation = 1
            run.check()
            run.packets(2, (0, 1, 2))
            assert not place.generation(2).exists()
            assert ids_of(place.generation(1)) == first

            recreate(source_of(path), place)
            recreate(source_of(path), place)
            run.generation = 3
            run.check()
            assert not place.generation(1).exists()
            run.packets(2, (0, 1, 2))

            known = ids_of(place.folder)
            assert known["prog"]
            assert known["map"]
            unload(place)
            assert here.head(link) is None
            wait_gone(known)

    in_netns(life)
    assert list(bpffs.iterdir()) == []
    assert bpf_descriptors() == before


@pytest.fixture
def place(bpffs: Path) -> Iterator[Path]:
    """The root of the chains' state; nothing must be left in it."""
    yield state_root(bpffs)
    assert list(bpffs.iterdir()) == []


def in_scene(name: str, folder: Path, work: object) -> None:
    def run() -> None:
        with scene(name, folder / "cgroup") as here:
            work(here)  # type: ignore[operator]

    in_netns(run)


@pytest.mark.parametrize("name", ["xdp-generic", "xdp-native", "tcx", "clsact"])
def test_entry_program(name: str, place: Path, tmp_path: Path) -> None:
    """A first program that stays: replace, recreate and rollback change its slot, not the hook."""

    def work(here: Scene) -> None:
        path = write_chain(tmp_path, "edge", [here.part] * 2)
        where = place_of(here.target, "edge", place)
        link = where.link
        load(source_of(path), where, here.target, entry=here.stop)
        first = program_id(where.entry)
        run = Runner(here, where, 2)
        run.start()

        def look() -> None:
            assert here.head(link) == first
            assert slots_by_bpftool(where.entry_slots) == {0: program_id(run.folder / "p0")}
            status = chain_status(where)
            assert status.healthy
            assert status.entry_id == first

        look()
        run.packets(5, (0, 1))
        replace(where, *patched(here.part, 0, tmp_path), folder=tmp_path)
        look()
        run.packets(5, (0, 1))
        recreate(source_of(path), where)
        run.generation = 2
        look()
        run.packets(5, (0, 1))
        rollback(where)
        run.generation = 1
        look()
        run.packets(5, (0, 1))
        known = ids_of(where.folder)
        unload(where)
        assert here.head(link) is None
        wait_gone(known)

    in_scene(name, tmp_path, work)


REDIRECTING = [Part("verdict_xdp", redirect="TX"), Part("verdict_xdp", saved="TX"),
               Part("verdict_xdp", saved="TX")]  # fmt: skip


def test_states(place: Path, tmp_path: Path) -> None:
    """A link that two states reach has two slots: replace and bypass recreate, and say why."""

    def work(here: Scene) -> None:
        path = write_chain(tmp_path, "edge", REDIRECTING)
        where = place_of(here.target, "edge", place)
        load(source_of(path), where, here.target)
        run = Runner(here, where, 3)
        run.start()
        assert set(slots_by_bpftool(run.folder / "slots")) == {1, 2, 4 * 33 + 1, 4 * 33 + 2}
        run.packets(4, (0, 1, 2))
        set_verdict(run.map(0, "verdict"), 3)  # TX is saved, the chain goes on
        run.packets(4, (0, 1, 2))

        new = patched(REDIRECTING[1], 1, tmp_path)
        done = replace(where, *new, folder=tmp_path)
        assert done.operation == "recreate"
        assert done.why is not None
        assert "2 states reach link 1" in done.why
        run.generation = 2
        run.packets(4, (0, 1, 2))

        done = bypass(where, 1)
        assert done.operation == "recreate"
        run.generation = 3
        run.packets(4, (0, 2))
        set_verdict(run.map(0, "verdict"), 2)
        run.packets(4, (0, 2))
        assert chain_status(where).links[1].bypassed

        rollback(where)
        run.generation = 2
        run.packets(4, (0, 1, 2))
        unload(where)

    in_scene("xdp-native", tmp_path, work)


def test_an_object_that_is_no_file_stays_with_the_chain(place: Path, tmp_path: Path) -> None:
    def work(here: Scene) -> None:
        path = write_chain(tmp_path, "edge", [Part("verdict_xdp")] * 3)
        where = place_of(here.target, "edge", place)
        load(source_of(path), where, here.target)
        record, data = patched(Part("verdict_xdp"), 1, tmp_path)
        (tmp_path / "new.o").unlink()
        record = dataclasses.replace(record, object="pinned/one.o")
        replace(where, record, data, folder=None)
        assert (where.generation(1) / "x1").exists()
        two = [Part("verdict_xdp"), Part("verdict_xdp"), Part("verdict_xdp", program="verdict_xdp")]
        redirecting = write_chain(tmp_path / "two", "edge", [two[0], *two[1:]])
        assert redirecting.exists()
        status = chain_status(where)
        assert status.healthy
        assert status.links[1].record.object == "pinned/one.o"
        unload(where)

    in_scene("xdp-generic", tmp_path, work)


def test_what_replace_refuses(place: Path, tmp_path: Path) -> None:
    """Patched for something else: nothing changes."""

    def work(here: Scene) -> None:
        path = write_chain(tmp_path, "edge", [Part("verdict_xdp")] * 3)
        where = place_of(here.target, "edge", place)
        load(source_of(path), where, here.target)
        before = slots_by_bpftool(where.generation(1) / "slots")
        other: list[tuple[Part, str]] = [
            (Part("verdict_xdp", success="PASS,TX"), "S differs"),
            (Part("verdict_xdp", redirect="TX"), "R differs"),
            (Part("verdict_xdp", saved="TX"), "saved codes differs"),
            (Part("verdict_xdp", last=True), "--last differs"),
            (Part("verdict_xdp", slots_map="others"), "slots map differs"),
            (Part("verdict_tc", program="verdict_tc"), "hook differs"),
            (Part("xdp_frags"), "handles frags"),
        ]
        for part, why in other:
            with pytest.raises(RefusedError, match=why):
                replace(where, *patched(part, 1, tmp_path), folder=tmp_path)
        with pytest.raises(UsageError, match="no link 7"):
            replace(where, *patched(Part("verdict_xdp"), 7, tmp_path), folder=tmp_path)
        with pytest.raises(RefusedError, match="the last"):
            bypass(where, 2)
        assert slots_by_bpftool(where.generation(1) / "slots") == before
        assert chain_status(where).healthy
        with pytest.raises(UsageError, match="no generation before"):
            rollback(where)
        unload(where)
        with pytest.raises(UsageError, match="not loaded"):
            unload(where)

    in_scene("xdp-generic", tmp_path, work)


OTHERS = {
    "socket": ("verdict_socket", None, None),
    "socket with entry": ("verdict_socket", None, -1),
    "tracepoint": ("verdict_tracepoint", "verdict_tracepoint", 0),
    "raw_tp": ("verdict_raw_tp", "verdict_raw_tp", 0),
    "perf_event": ("verdict_perf_event", None, 1),
    "sk_lookup": ("verdict_sk_lookup", None, None),
    "netfilter": ("verdict_netfilter", None, 1),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_hooks(name: str, place: Path, tmp_path: Path) -> None:
    """Every operation; where the hook cannot exchange its program an entry program is asked for."""
    obj, program, entry = OTHERS[name]
    part = Part(obj, program=program)
    if name == "tracepoint":
        mount_tracefs()

    def work(here: Scene) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            path = write_chain(tmp_path, "edge", [part] * 3)
            source = source_of(path)
            target = target_for(source.manifest.hook, one.fileno())
            where = place_of(target, "edge", place)
            fd = target.fd
            if name in ("tracepoint", "raw_tp", "perf_event", "netfilter"):
                with pytest.raises(UsageError, match="cannot exchange its program"):
                    load(source, where, target)
            load(source, where, target, entry=entry)
            first = slots_by_bpftool(where.generation(1) / "slots")
            assert set(first) == {1, 2}
            assert chain_status(where, fd=fd).healthy
            assert chain_status(where).healthy
            replace(where, *patched(part, 1, tmp_path), folder=tmp_path, fd=fd)
            replace(where, *patched(part, 0, tmp_path, "head.o"), folder=tmp_path, fd=fd)
            bypass(where, 1, fd=fd)
            recreate(source, where, fd=fd)
            rollback(where, fd=fd)
            assert chain_status(where, fd=fd).healthy
            known = ids_of(where.folder)
            if fd is not None:
                with pytest.raises(HostError, match="only the owner of the socket"):
                    unload(where)
            unload(where, fd=fd)
            wait_gone(known)

    in_scene("xdp-generic", tmp_path, work)


def mount_tracefs() -> None:
    if not Path("/sys/kernel/tracing/events").is_dir():
        tool("mount", "-t", "tracefs", "tracefs", "/sys/kernel/tracing")


def target_for(hook: Hook, fd: int) -> Target:
    if hook.name == "socket":
        return socket_target(hook, fd)
    names = {
        "tracepoint": "sched/sched_switch", "raw_tp": "sched_switch", "netfilter": "ip/input",
        "perf_event": "software:0:1000000",
    }  # fmt: skip
    return named_target(hook, names.get(hook.name, ""))


def test_status_while_others_work(place: Path, tmp_path: Path) -> None:
    """Looking takes no lock: it stops nobody, and always sees a chain."""

    def work(here: Scene) -> None:
        source = source_of(write_chain(tmp_path, "edge", [here.part] * 3))
        where = place_of(here.target, "edge", place)
        load(source, where, here.target)
        new = patched(here.part, 1, tmp_path)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for _ in range(25):
                    recreate(source, where)
                    replace(where, *new, folder=tmp_path)
                    rollback(where)
                code = 0
            finally:
                os._exit(code)
        looks = 0
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            status = chain_status(where)
            assert status.generation is not None, (looks, status)
            assert status.links
            looks += 1
        assert looks > 20
        assert chain_status(where).healthy
        unload(where)

    in_scene("xdp-native", tmp_path, work)

"""What ``status`` knows, against bpftool; that it finds what is wrong, and does not guess."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bpfchain.loader.hooks import interface_target
from bpfchain.loader.links import Link
from bpfchain.loader.lock import locked
from bpfchain.loader.maps import Map
from bpfchain.loader.operations.bypass import bypass
from bpfchain.loader.operations.load import load
from bpfchain.loader.operations.recreate import recreate
from bpfchain.loader.operations.unload import unload
from bpfchain.loader.places import ChainPlace, place_of, state_root
from bpfchain.loader.programs import Program, enable_run_statistics, load_raw
from bpfchain.loader.status import ChainStatus, chain_status
from bpfchain.loader.uapi import ProgType
from bpfchain.transform.errors import HostError
from bpfchain.transform.policy import hook_named
from support.bpfcode import returns
from support.chains import (
    Part,
    Scene,
    bpftool,
    scene,
    set_verdict,
    source_of,
    wait_until,
    write_chain,
)
from support.nets import in_netns, tool

pytestmark = pytest.mark.usefixtures("kernel")


def in_scene(name: str, bpffs: Path, folder: Path, work: object) -> None:
    def run() -> None:
        with scene(name, folder / "cgroup") as here:
            path = write_chain(folder, "edge", [here.part] * 3)
            place = place_of(here.target, "edge", state_root(bpffs))
            load(source_of(path), place, here.target)
            for index in range(3):
                set_verdict(place.generation(1) / f"m{index}_verdict", here.go_on)
            work(here, place)  # type: ignore[operator]
            unload(place)

    in_netns(run)
    assert list(bpffs.iterdir()) == []


def test_it_says_what_bpftool_says(bpffs: Path, tmp_path: Path) -> None:
    def work(here: Scene, place: ChainPlace) -> None:
        status = chain_status(place)
        assert status.healthy
        assert status.mode == "native"
        assert status.foreign == ()
        assert status.generation is not None
        assert 0 <= time.time_ns() - status.generation.created_ns < 300e9
        assert [link.record.index for link in status.links] == [0, 1, 2]
        for link in status.links:
            for entry in link.entries:
                told = bpftool("prog", "show", "pinned", entry.pin)
                assert (entry.id, entry.tag, entry.name) == (told["id"], told["tag"], told["name"])
        written = status.to_dict()
        assert written["target"]["interface"] == "right"
        assert written["links"][1]["entries"][0]["slot"] == 1
        assert written["healthy"] is True

    in_scene("xdp-native", bpffs, tmp_path, work)


def test_runs_of_the_chain(bpffs: Path, tmp_path: Path) -> None:
    """Counted by the kernel for the head, if at all."""

    def work(here: Scene, place: ChainPlace) -> None:
        with enable_run_statistics():
            here.send(20)
            wait_until(lambda: chain_status(place).runs == 20, "20 runs")
            status = chain_status(place)
            told = bpftool("prog", "show", "pinned", place.generation(1) / "p0")
            assert (status.runs, status.run_ns) == (told["run_cnt"], told["run_time_ns"])
            assert status.run_ns > 0

    in_scene("tcx", bpffs, tmp_path, work)


def broken_slot(place: ChainPlace) -> None:
    with Map.get_pinned(place.generation(1) / "slots") as slots:
        slots.delete((2).to_bytes(4, "little"))


def other_program(place: ChainPlace) -> None:
    folder = place.generation(1)
    with Map.get_pinned(folder / "slots") as slots, Program.get_pinned(folder / "p1") as program:
        slots.set_fd(2, program.fileno())


def lost_pin(place: ChainPlace) -> None:
    (place.generation(1) / "p1").unlink()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (broken_slot, "link 2: slot 2 is empty: the chain ends there"),
        (other_program, "link 2: slot 2 holds program "),
        (lost_pin, "link 1: "),
    ],
)
def test_what_is_wrong(spoil: object, says: str, bpffs: Path, tmp_path: Path) -> None:
    def work(here: Scene, place: ChainPlace) -> None:
        spoil(place)  # type: ignore[operator]
        status = chain_status(place)
        assert not status.healthy
        assert [problem.startswith(says) for problem in status.problems] == [True]

    in_scene("clsact", bpffs, tmp_path, work)


def test_someone_exchanged_the_head(bpffs: Path, tmp_path: Path) -> None:
    """By our own link's pin: said, and no operation goes on but unload."""

    def work(here: Scene, place: ChainPlace) -> None:
        with (
            load_raw(ProgType.XDP, returns(2), expected_attach_type=37, name="stranger") as other,
            Link.get_pinned(place.link) as link,
        ):
            link.update(other)
            status = chain_status(place)
            assert status.generation is None
            assert f"the hook runs program {other.info().id}" in status.problems[0]
            with pytest.raises(HostError, match="someone else exchanged it"):
                bypass(place, 1)
            assert link.info().prog_id == other.info().id

    in_scene("xdp-generic", bpffs, tmp_path, work)


def test_neighbours(bpffs: Path, tmp_path: Path) -> None:
    """Other programs and other chains at the hook; nothing of them is removed."""

    def work(here: Scene, place: ChainPlace) -> None:
        other = place_of(here.target, "other", place.root)
        path = write_chain(tmp_path / "other", "other", [here.part])
        done = load(source_of(path), other, here.target)
        assert any("chain edge of bpfchain" in note for note in done.notes)
        found = chain_status(place).foreign
        assert found is not None
        assert [(one.kind, one.name) for one in found] == [("chain", "other")]
        tool("tc", "qdisc", "add", "dev", "right", "clsact")
        with load_raw(ProgType.SCHED_CLS, returns(0), name="neighbour") as program:
            program.pin(bpffs / "n")
        add = ("tc", "filter", "add", "dev", "right", "ingress", "bpf", "da", "object-pinned")
        tool(*add, str(bpffs / "n"))
        (bpffs / "n").unlink()
        found = chain_status(place).foreign or ()
        assert [one.name for one in found] == ["other", "neighbour"]
        unload(other)
        assert "neighbour" in tool("tc", "filter", "show", "dev", "right", "ingress")

    in_scene("tcx", bpffs, tmp_path, work)


def test_taken(bpffs: Path, tmp_path: Path) -> None:
    """XDP holds one program: what is there is named, and goes only by force; a chain never."""

    def run() -> None:
        with scene("xdp-generic", tmp_path) as here:
            source = source_of(write_chain(tmp_path / "c", "edge", [Part("verdict_xdp")] * 2))
            place = place_of(here.target, "edge", state_root(bpffs))
            stranger = bpffs / "stranger"
            bpftool("prog", "load", str(tmp_path / "p.o"), stranger)
            bpftool("net", "attach", "xdpgeneric", "pinned", stranger, "dev", "right")
            with pytest.raises(HostError, match=r"it is taken: .*always_pass") as raised:
                load(source, place, here.target)
            assert "--force" in (raised.value.hint or "")
            assert here.head(place.link) == bpftool("prog", "show", "pinned", stranger)["id"]
            done = load(source, place, here.target, force=True)
            assert any("displaced" in note for note in done.notes)
            other = source_of(write_chain(tmp_path / "o", "other", [Part("verdict_xdp")]))
            with pytest.raises(HostError, match="taken: chain edge of bpfchain"):
                load(other, place_of(here.target, "other", place.root), here.target, force=True)
            assert chain_status(place).healthy
            unload(place)
            stranger.unlink()

    (tmp_path / "p.o").write_bytes(Part("always_pass").data())
    in_netns(run)
    assert list(bpffs.iterdir()) == []


def test_names_that_could_collide(bpffs: Path, tmp_path: Path) -> None:
    """One name on two interfaces, in two namespaces with the same index, on an interface with a dot."""
    root = state_root(bpffs)
    source = source_of(write_chain(tmp_path, "edge", [Part("verdict_xdp")] * 2))
    seen: list[ChainPlace] = []

    def loaded(name: str) -> ChainStatus:
        target = interface_target(hook_named("xdp"), name, mode="generic")
        place = place_of(target, "edge", root)
        load(source, place, target)
        seen.append(place)
        return chain_status(place)

    def first() -> None:
        tool("ip", "link", "add", "eth0.100", "type", "veth", "peer", "name", "eth0")
        one, two = loaded("eth0.100"), loaded("eth0")

        def second() -> None:
            tool("ip", "link", "add", "eth0.100", "type", "veth", "peer", "name", "eth0")
            assert loaded("eth0.100").target == one.target  # the same name, the same index
            away = chain_status(seen[0])
            assert away.foreign is None
            unload(seen[2])

        in_netns(second)
        assert chain_status(seen[0]).healthy
        assert chain_status(seen[1]).healthy
        assert one.links[0].entries[0].id != two.links[0].entries[0].id
        unload(seen[0])
        unload(seen[1])

    in_netns(first)
    assert len(set(seen)) == 3
    assert list(bpffs.iterdir()) == []


def test_who_works(bpffs: Path, tmp_path: Path) -> None:
    def work(here: Scene, place: ChainPlace) -> None:
        with locked(place.target_folder):
            assert (chain_status(place).working or "").startswith("process ")
            with pytest.raises(HostError, match="is changing chains here"):
                recreate(source_of(tmp_path / "manifest.json"), place)
        assert chain_status(place).working is None

    in_scene("xdp-generic", bpffs, tmp_path, work)

"""``plan``: the commands that it prints, run in a shell, make the same chain."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from bpfchain.loader import plan
from bpfchain.loader.hooks import named_target
from bpfchain.transform.errors import RefusedError
from bpfchain.transform.manifest import Share, SharedMap
from bpfchain.transform.policy import hook_named
from support.chains import (
    Part,
    Scene,
    bpftool,
    manifest_of,
    runs,
    scene,
    set_verdict,
    slots_by_bpftool,
    wait_until,
    write_chain,
)
from support.nets import in_netns

pytestmark = pytest.mark.usefixtures("kernel")


def shell(lines: Iterable[str]) -> None:
    script = "\n".join(lines)
    done = subprocess.run(["sh", "-e"], input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["xdp-generic", "xdp-native", "clsact", "cgroup"])
def test_the_commands_make_the_chain(name: str, bpffs: Path, tmp_path: Path) -> None:
    def work(here: Scene) -> None:
        folder = tmp_path / "a folder"
        path = write_chain(folder, "edge", [here.part] * 3)
        pins = bpffs / "edge"
        shell(plan.commands(manifest_of(path), folder, here.target, pins))
        for index in range(3):
            set_verdict(pins / f"maps{index}" / "verdict", here.go_on)
        here.send(9)
        counts = [pins / f"maps{index}" / "runs" for index in range(3)]
        wait_until(lambda: runs(counts[2]) == 9, "9 packets through 3 links")
        assert [runs(pin) for pin in counts] == [9, 9, 9]
        program = here.part.program or "verdict_xdp"
        head = pins / "link0" / program
        assert here.head(pins / "link") == bpftool("prog", "show", "pinned", head)["id"]
        shell(plan.undo(here.target, pins, head))
        assert here.head(pins / "link") is None

    def run() -> None:
        with scene(name, tmp_path / "cgroup") as here:
            work(here)

    in_netns(run)
    assert list(bpffs.iterdir()) == []


def test_states_and_shared_maps(bpffs: Path, tmp_path: Path) -> None:
    parts = [Part("verdict_xdp", redirect="TX"), Part("verdict_xdp", saved="TX"),
             Part("verdict_xdp", saved="TX", last=True)]  # fmt: skip
    share = (
        Share(map="both", links=(SharedMap(index=0, map="runs"), SharedMap(index=2, map="runs"))),
    )

    def run() -> None:
        with scene("xdp-generic", tmp_path) as here:
            path = write_chain(tmp_path, "edge", parts, share=share)
            pins = bpffs / "edge"
            shell(plan.commands(manifest_of(path), tmp_path, here.target, pins))
            assert set(slots_by_bpftool(pins / "slots")) == {1, 2, 133, 134}
            for index, code in enumerate((3, 2, 2)):
                set_verdict(pins / f"maps{index}" / "verdict", code)
            here.send(4)
            wait_until(lambda: runs(pins / "maps0" / "runs") == 8, "two links count in one map")
            assert runs(pins / "maps1" / "runs") == 4
            shell(plan.undo(here.target, pins, pins / "link0" / "verdict_xdp"))

    in_netns(run)
    assert list(bpffs.iterdir()) == []


def test_saved_code_in_a_map(bpffs: Path, tmp_path: Path) -> None:
    parts = [Part("verdict_xdp", redirect="TX"), Part("verdict_xdp"), Part("verdict_xdp")]

    def run() -> None:
        with scene("xdp-generic", tmp_path) as here:
            path = write_chain(tmp_path, "edge", parts, mode="map")
            pins = bpffs / "edge"
            shell(plan.commands(manifest_of(path), tmp_path, here.target, pins))
            names = [
                [bpftool("map", "show", "id", number)["name"] for number in told["map_ids"]]
                for told in (
                    bpftool("prog", "show", "pinned", pins / f"link{i}" / "verdict_xdp")
                    for i in range(3)
                )
            ]
            assert all("bpfchain_saved" in maps for maps in names)
            saved = {
                bpftool("map", "show", "pinned", pins / f"maps{i}" / "bpfchain_saved")["id"]
                for i in range(3)
            }
            assert len(saved) == 1
            shell(plan.undo(here.target, pins, pins / "link0" / "verdict_xdp"))

    in_netns(run)


def test_what_bpftool_cannot_attach(tmp_path: Path) -> None:
    path = write_chain(tmp_path, "edge", [Part("verdict_raw_tp", program="verdict_raw_tp")])
    target = named_target(hook_named("raw_tp"), "sched_switch")
    with pytest.raises(RefusedError, match="attaches no pinned program"):
        plan.commands(manifest_of(path), tmp_path, target, Path("/sys/fs/bpf/edge"))

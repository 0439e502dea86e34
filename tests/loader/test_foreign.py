"""Programs of others on the chain's hook: told, in the way where there is one place, never removed.

Others are bpftool, ip, tc and xdp-loader themselves; what `bpfchain plan` prints is run as it stands.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from bpfchain.loader.links import link_create_tcx
from bpfchain.loader.uapi import AttachType, ProgType
from support.chains import Part, Scene, bpftool, head_of_xdp, runs, scene, set_verdict, write_chain
from support.commands import PROGRAMS, Done, run
from support.counting import Counting
from support.nets import in_netns, make_pair, received, send, tool

pytestmark = pytest.mark.usefixtures("kernel")

NO_PIN = Path("/nonexistent")
OTHER = PROGRAMS / "always_pass.o"


def command(bpffs: Path, folder: Path, *words: str | Path) -> Done:
    return run("bpfchain", *words, "--bpffs", bpffs, cwd=folder)


def fine(done: Done) -> Done:
    assert done.code == 0, done.stderr
    return done


def status(bpffs: Path, folder: Path) -> dict[str, Any]:
    done = fine(command(bpffs, folder, "status", "edge", "--json"))
    (chain,) = json.loads(done.text)["chains"]
    return dict(chain)


def in_own(work: Callable[[], None]) -> None:
    def inside() -> None:
        make_pair()
        work()

    in_netns(inside)


def by_ip(bpffs: Path) -> None:
    tool("ip", "link", "set", "dev", "right", "xdpgeneric", "obj", str(OTHER), "sec", "xdp")


def by_bpftool(bpffs: Path) -> None:
    tool("bpftool", "prog", "load", str(OTHER), str(bpffs / "other"))
    tool("bpftool", "net", "attach", "xdpdrv", "pinned", str(bpffs / "other"), "dev", "right")
    (bpffs / "other").unlink()


def by_xdp_loader(bpffs: Path) -> None:
    if shutil.which("xdp-loader") is None:
        pytest.skip("no xdp-loader: apt-get install xdp-tools")
    tool("xdp-loader", "load", "-m", "skb", "right", str(OTHER))


@pytest.mark.parametrize("attach", [by_ip, by_bpftool, by_xdp_loader])
def test_xdp_is_taken(attach: Callable[[Path], None], bpffs: Path, tmp_path: Path) -> None:
    """load refuses and says whose it is; only --force displaces; with nothing left behind."""

    def work() -> None:
        manifest = write_chain(tmp_path, "edge", [Part("verdict_xdp")] * 3)
        attach(bpffs)
        before = head_of_xdp(NO_PIN)
        assert before
        for words in (("--dry-run",), ("--mode", "native"), ("--mode", "generic"), ()):
            done = command(bpffs, tmp_path, "load", manifest, "--dev", "right", *words)
            assert done.code == 5, done.stderr
            assert f"id {before}" in done.stderr
            assert "--force" in done.stderr
            assert head_of_xdp(NO_PIN) == before
            assert list(bpffs.rglob("g1")) == []
        done = fine(command(bpffs, tmp_path, "load", manifest, "--dev", "right", "--force"))
        assert "displaced" in done.stderr
        assert f"id {before}" in done.stderr
        now = status(bpffs, tmp_path)
        assert now["healthy"]
        assert now["foreign"] == []
        assert head_of_xdp(NO_PIN) == now["links"][0]["entries"][0]["id"] != before
        fine(command(bpffs, tmp_path, "unload", "edge"))
        assert head_of_xdp(NO_PIN) is None

    in_own(work)
    assert [path for path in bpffs.iterdir() if path.name != "xdp"] == []


def test_xdp_was_taken_over(bpffs: Path, tmp_path: Path) -> None:
    """Someone detached the chain's link and put a program there: status tells, unload leaves it."""

    def work() -> None:
        manifest = write_chain(tmp_path, "edge", [Part("verdict_xdp")] * 2)
        fine(command(bpffs, tmp_path, "load", manifest, "--dev", "right"))
        (pin,) = bpffs.rglob("link")
        tool("bpftool", "link", "detach", "pinned", str(pin))
        by_ip(bpffs)
        theirs = head_of_xdp(NO_PIN)
        now = status(bpffs, tmp_path)
        assert now["generation"] is None
        assert not now["healthy"]
        (found,) = now["foreign"]
        assert (found["id"], found["exclusive"]) == (theirs, True)
        assert "ip link set dev right xdpgeneric off" in found["what"]
        fine(command(bpffs, tmp_path, "unload", "edge"))
        assert head_of_xdp(NO_PIN) == theirs
        done = command(bpffs, tmp_path, "load", manifest, "--dev", "right")
        assert done.code == 5
        assert f"id {theirs}" in done.stderr
        assert head_of_xdp(NO_PIN) == theirs

    in_own(work)
    assert list(bpffs.iterdir()) == []


def tc_programs() -> list[int]:
    out = json.loads(tool("tc", "-j", "filter", "show", "dev", "right", "ingress") or "[]")
    return [one["options"]["prog"]["id"] for one in out if "prog" in one.get("options", {})]


@pytest.mark.parametrize("name", ["tcx", "clsact"])
def test_filters_of_tc_go_on(name: str, bpffs: Path, tmp_path: Path) -> None:
    """A filter that tc loaded is told, runs behind a chain that lets frames on, and stays."""

    def work() -> None:
        with scene(name, tmp_path) as here:
            tool("tc", "qdisc", "add", "dev", "right", "clsact")
            tool(
                "tc", "filter", "add", "dev", "right", "ingress", "bpf", "direct-action",
                "obj", str(PROGRAMS / "verdict_tc.o"), "sec", "tc",
            )  # fmt: skip
            (theirs,) = tc_programs()
            manifest = write_chain(tmp_path / "c", "edge", [here.part] * 2)
            words = ("load", manifest, "--dev", "right", "--direction", "ingress")
            done = fine(command(bpffs, tmp_path, *words))
            assert f"id {theirs}" in done.stderr
            (found,) = status(bpffs, tmp_path)["foreign"]
            assert found["id"] == theirs
            assert not found["exclusive"]
            assert "behind" in found["what"]
            count = _runs_of(theirs)
            _let_on(bpffs, 2)
            send("left", 7)
            _until(lambda: count() == 7)
            fine(command(bpffs, tmp_path, "recreate", manifest))
            send("left", 7)
            _until(lambda: count() == 14)
            fine(command(bpffs, tmp_path, "unload", "edge"))
            assert tc_programs() == [theirs]
            send("left", 7)
            _until(lambda: count() == 21)

    in_netns(work)
    assert [path for path in bpffs.iterdir() if path.name != "tc"] == []


def _let_on(bpffs: Path, links: int) -> None:
    """Both tcx and clsact go on to the next program at -1 (TCX_NEXT, TC_ACT_UNSPEC)."""
    (folder,) = bpffs.rglob("g1")
    for index in range(links):
        set_verdict(folder / f"m{index}_verdict", -1)


def _runs_of(program: int) -> Callable[[], int]:
    """The counter of a ``verdict_tc`` program that someone else loaded."""
    (runs_map,) = (
        one for one in bpftool("prog", "show", "id", program)["map_ids"]
        if bpftool("map", "show", "id", one)["name"] == "runs"
    )  # fmt: skip

    def count() -> int:
        (item,) = bpftool("map", "dump", "id", runs_map)
        if "formatted" in item:
            return int(item["formatted"]["value"])
        return int.from_bytes(bytes(int(byte, 16) for byte in item["value"]), "little")

    return count


def _until(true: Callable[[], bool]) -> None:
    from support.chains import wait_until

    wait_until(true, "frames reach the program")


def test_tcx_neighbours_go_on(bpffs: Path, tmp_path: Path) -> None:
    """Programs before and behind the chain on tcx run on through load, recreate and unload."""

    def work() -> None:
        with (
            scene("tcx", tmp_path) as here,
            Counting(ProgType.SCHED_CLS, -1, AttachType.TCX_INGRESS) as before,
            Counting(ProgType.SCHED_CLS, -1, AttachType.TCX_INGRESS, name="behind") as behind,
        ):
            index = socket.if_nametoindex("right")
            manifest = write_chain(tmp_path / "c", "edge", [here.part] * 2)
            ways: tuple[tuple[str | Path, ...], ...] = (("recreate", manifest), ("unload", "edge"))
            with link_create_tcx(before.program, index, AttachType.TCX_INGRESS):
                done = fine(command(bpffs, tmp_path, "load", manifest, "--dev", "right"))
                assert f"id {before.id}" in done.stderr
                _let_on(bpffs, 2)
                with link_create_tcx(behind.program, index, AttachType.TCX_INGRESS):
                    told = {one["id"]: one["what"] for one in status(bpffs, tmp_path)["foreign"]}
                    assert told.keys() == {before.id, behind.id}
                    assert "before the chain" in told[before.id]
                    assert "behind the chain" in told[behind.id]
                    for number, words in enumerate(ways):
                        send("left", 5)
                        assert before.reaches(5 * (number + 1))
                        assert behind.reaches(5 * (number + 1))
                        fine(command(bpffs, tmp_path, *words))
                    send("left", 5)
                    assert before.reaches(15)
                    assert behind.reaches(15)

    in_netns(work)
    assert list(bpffs.iterdir()) == []


# `bpfchain plan`


def arguments_of(here: Scene) -> list[str]:
    target = here.target
    if target.cgroup is not None:
        return ["--cgroup", target.cgroup]
    words = ["--dev", str(target.interface)]
    if target.direction:
        words += ["--direction", target.direction, "--via", target.kind]
    return words + (["--mode", target.mode] if target.mode else [])


@contextmanager
def arrivals(here: Scene) -> Iterator[Callable[[], int]]:
    """How many frames (cgroup: datagrams) got through the hook since the last call."""
    if here.name == "cgroup":
        end = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        end.bind(("127.0.0.1", 9))
    else:
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        end.bind(("right", 0x88B5))

    def count() -> int:
        found = 0
        while True:
            try:
                end.recv(2048)
            except BlockingIOError:
                return found
            found += 1

    with end:
        end.setblocking(False)
        yield count


FRAMES = 4


def verdicts(here: Scene, maps: list[Path], counters: list[Path]) -> list[tuple[object, ...]]:
    """For each combination of what the links say: how often each ran, how many frames arrived."""
    found: list[tuple[object, ...]] = []
    with arrivals(here) as arrived:
        for codes in product((here.go_on, here.stop), repeat=len(maps)):
            for pin, code in zip(maps, codes, strict=True):
                set_verdict(pin, code)
            before = [runs(pin) for pin in counters]
            sent = received("right") + FRAMES if here.name != "cgroup" else 0
            here.send(FRAMES)
            if here.name != "cgroup":
                _until(lambda wanted=sent: received("right") >= wanted)  # type: ignore[misc]
            _until(lambda was=before: runs(counters[0]) == was[0] + FRAMES)  # type: ignore[misc]
            now = [runs(pin) for pin in counters]
            grown = tuple(a - b for a, b in zip(now, before, strict=True))
            found.append((codes, grown, arrived()))
    return found


def expected(here: Scene, links: int) -> list[tuple[object, ...]]:
    """A link runs if all before it let the frame on; it arrives if all do."""
    rows: list[tuple[object, ...]] = []
    for codes in product((here.go_on, here.stop), repeat=links):
        reach = codes.index(here.stop) + 1 if here.stop in codes else links
        ran = tuple(FRAMES if i < reach else 0 for i in range(links))
        rows.append((codes, ran, 0 if here.stop in codes else FRAMES))
    return rows


def shell(script: str, folder: Path) -> None:
    done = subprocess.run(
        ["sh", "-e"], input=script, cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{script}\n{done.stderr}"


@pytest.mark.parametrize("name", ["xdp-native", "xdp-generic", "clsact", "cgroup"])
def test_plan_makes_the_same_chain(name: str, bpffs: Path, tmp_path: Path) -> None:
    """The printed commands, run by sh: same verdicts for every combination as the loaded chain."""

    def work() -> None:
        with scene(name, tmp_path / "cgroup") as here:
            manifest = write_chain(tmp_path / "c", "edge", [here.part] * 3)
            where = arguments_of(here)
            pins = bpffs / "byhand"
            words: list[str | Path] = ["plan", manifest, *where, "--pins", pins]
            plan = fine(run("bpfchain", *words, cwd=tmp_path)).text
            undo = fine(run("bpfchain", *words, "--undo", cwd=tmp_path)).text
            shell(plan, tmp_path)
            by_hand = verdicts(
                here,
                [pins / f"maps{i}" / "verdict" for i in range(3)],
                [pins / f"maps{i}" / "runs" for i in range(3)],
            )
            shell(undo, tmp_path)
            assert list(bpffs.iterdir()) == []
            assert here.head(NO_PIN) is None

            fine(command(bpffs, tmp_path, "load", manifest, *where))
            (folder,) = bpffs.rglob("g1")
            loaded = verdicts(
                here,
                [folder / f"m{i}_verdict" for i in range(3)],
                [folder / f"m{i}_runs" for i in range(3)],
            )
            fine(command(bpffs, tmp_path, "unload", "edge"))
            assert by_hand == loaded == expected(here, 3)

    in_netns(work)
    assert list(bpffs.iterdir()) == []


def test_what_plan_made_is_foreign(bpffs: Path, tmp_path: Path) -> None:
    """A chain made by hand is one more program of others for load; it is left alone."""

    def work() -> None:
        manifest = write_chain(tmp_path / "c", "edge", [Part("verdict_xdp")] * 2)
        words = ("plan", manifest, "--dev", "right", "--mode", "generic", "--pins", bpffs / "hand")
        shell(fine(run("bpfchain", *words, cwd=tmp_path)).text, tmp_path)
        before = head_of_xdp(NO_PIN)
        done = command(bpffs, tmp_path, "load", manifest, "--dev", "right")
        assert done.code == 5
        assert f"id {before}" in done.stderr
        assert head_of_xdp(NO_PIN) == before
        shell(fine(run("bpfchain", *words, "--undo", cwd=tmp_path)).text, tmp_path)

    in_own(work)
    assert [path.name for path in bpffs.iterdir()] == []

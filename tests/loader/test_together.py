"""Several at once: two commands on one hook, one name in several places, names that a bpffs refuses."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from loader.kill.points import OPERATIONS, Case
from loader.kill.stage import HOOKS, Stage, command, stage
from loader.kill.stamps import Wire
from loader.kill.tracer import Stop
from support.nets import in_netns, tool, until_up

pytestmark = pytest.mark.usefixtures("kernel")

A = ("A0", "A1", "A2")
FRAMES = 4


def on(hook: str, folder: Path, bpffs: Path, work: Callable[[Stage], None]) -> None:
    def run() -> None:
        with stage(hook, folder, bpffs) as here:
            work(here)

    in_netns(run)


@pytest.mark.parametrize("operation", ["load", "replace", "recreate", "rollback", "unload"])
@pytest.mark.parametrize("hook", ["xdp", pytest.param("clsact", marks=pytest.mark.long)])
def test_a_second_command_is_told_who_holds_the_hook(
    hook: str, operation: str, tmp_path: Path, bpffs: Path
) -> None:  # fmt: skip
    """The first one stands still at each call that others notice; the second one changes nothing,
    and ``status`` can look meanwhile."""

    def work(here: Stage) -> None:
        case = Case(here, OPERATIONS[operation])
        case.prepare()
        refused, looked = [], []

        def visit(stop: Stop) -> None:
            if stop.call.private or stop.call.text.startswith(("mkdir", "rmdir")):
                return
            tree = here.tree()
            for words in (("recreate", str(here.chain("B")), "--dev", "right"), ("unload", "edge")):
                second = here.run(*words)
                assert second.code in (2, 5), f"at {stop.call.text}: {second.code} {second.err}"
                if second.code == 5:
                    assert f"process {stop.pid}" in second.err, second.err
                    assert "is changing chains here" in second.err
                    refused.append(stop)
                else:  # seen from a place where nothing is loaded yet, or no more
                    assert "is not loaded" in second.err or "is loaded" in second.err, second.err
            assert here.tree() == tree
            for chain in here.status():
                assert chain["working"].startswith(f"process {stop.pid}"), chain["working"]
                looked.append(stop)

        first = case.run(case.operation.words, visit=visit)
        assert first.code == 0, first.err
        assert len(refused) > 8, "the second command was hardly ever refused"
        assert len(looked) > 4
        assert here.wire.send(FRAMES) == {case.operation.after}
        case.clean()
        here.check_nothing_left()

    on(hook, tmp_path, bpffs, work)


def start(here: Stage, *words: str) -> int:
    """A command that runs by itself, its output thrown away; its process id."""
    child = os.fork()
    if child == 0:
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            command(words, here.bpffs)()
        except SystemExit as error:
            os._exit(int(error.code or 0))
        finally:
            os._exit(99)
    return child


def test_two_at_the_same_time(tmp_path: Path, bpffs: Path) -> None:
    """Whoever comes first: one wins, and what runs is one of both chains, whole."""

    def work(here: Stage) -> None:
        load = ("--dev", "right", *here.hook.options)
        for _ in range(15):
            running = [start(here, "load", str(here.chain(version)), *load) for version in "AB"]
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in running]
            assert sorted(codes) == [0, 5], codes
            winner = "AB"[codes.index(0)]
            assert here.wire.send(FRAMES) == {tuple(f"{winner}{i}" for i in range(3))}
            change = [start(here, *words) for words in (
                ("recreate", str(here.chain("B")), "--dev", "right"), ("unload", "edge"))]  # fmt: skip
            codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in change]
            assert 0 in codes, codes
            assert set(codes) <= {0, 2, 5}, codes
            expected = here.expected(here.status())
            assert here.wire.send(FRAMES) == {expected}
            if expected:
                here.ok("unload", "edge")
            assert here.tree() == []

    on("xdp", tmp_path, bpffs, work)


def test_a_holder_that_is_killed_holds_nothing(tmp_path: Path, bpffs: Path) -> None:
    def work(here: Stage) -> None:
        here.load("A")
        case = Case(here, OPERATIONS["recreate"])

        def visit(stop: Stop) -> None:
            if stop.call.text.startswith("bpf LINK_UPDATE") and not stop.after:
                assert here.run("unload", "edge").code == 5
                os.kill(stop.pid, signal.SIGKILL)

        assert case.run(case.operation.words, visit=visit).code is None
        here.ok("unload", "edge")
        here.check_nothing_left()

    on("xdp", tmp_path, bpffs, work)


# ---- one name in several places


def _pair(left: str, right: str) -> Wire:
    tool("ip", "link", "add", left, "type", "veth", "peer", "name", right)
    for name in (left, right):
        tool("ip", "link", "set", name, "up")
    until_up(left, right)
    return Wire(left, right)


def test_one_chain_name_on_two_interfaces(tmp_path: Path, bpffs: Path) -> None:
    def work(here: Stage) -> None:
        other = _pair("left2", "right2")
        here.load("A")
        here.load("B", dev="right2")
        assert here.wire.send(FRAMES) == {A}
        assert other.send(FRAMES) == {("B0", "B1", "B2")}
        both = here.run("unload", "edge")
        assert both.code == 2
        assert "2 chains have the name" in both.err
        here.ok("unload", "edge", "--dev", "right")
        assert here.wire.send(FRAMES) == {()}
        assert other.send(FRAMES) == {("B0", "B1", "B2")}
        here.ok("unload", "edge")
        here.check_nothing_left()
        other.close()

    on("xdp", tmp_path, bpffs, work)


def test_two_chains_on_two_hooks_of_one_interface(tmp_path: Path, bpffs: Path) -> None:
    """XDP and tc, of one name; and tc ingress and egress, which share the clsact qdisc."""

    def work(here: Stage) -> None:
        here.load("A")
        tc = Stage(HOOKS["clsact"], tmp_path / "tc", bpffs, here.wire, here.stamps, here.made)
        tc.folder.mkdir()
        tc.load("B")
        assert here.wire.send(FRAMES) == {(*A, "B0", "B1", "B2")}
        out = ("--via", "clsact", "--direction", "egress")
        here.ok("load", tc.chain("A"), "--dev", "right", *out)
        assert here.wire.send(FRAMES) == {(*A, "B0", "B1", "B2")}
        assert len(here.status()) == 3
        here.ok("unload", "edge", "--direction", "ingress")
        assert here.wire.send(FRAMES) == {A}
        assert here.residue() != ["clsact qdisc"], "the other direction's filter keeps it"
        here.ok("unload", "edge", "--direction", "egress")
        here.ok("unload", "edge")
        here.check_nothing_left()

    on("xdp", tmp_path, bpffs, work)


def test_two_chains_on_one_hook(tmp_path: Path, bpffs: Path) -> None:
    """tcx and clsact take both, and say that the other is there; XDP takes one."""

    def work(here: Stage) -> None:
        here.load("A")
        again = here.run("load", here.chain("B", "second"), "--dev", "right", *here.hook.options)
        if here.hook.name == "xdp":
            assert again.code == 5
            assert "chain edge of bpfchain" in again.err
            assert here.wire.send(FRAMES) == {A}
            assert "second" not in "".join(here.tree())
        else:
            assert again.code == 0, again.err
            assert "also there: chain edge of bpfchain" in again.err
            # clsact: the second one stands in front, and its OK ends the packet's way
            first = A if here.hook.name == "tcx" else ()
            assert here.wire.send(FRAMES) == {(*first, "B0", "B1", "B2")}
            here.ok("unload", "edge")
            assert here.wire.send(FRAMES) == {("B0", "B1", "B2")}
        here.ok("unload", "edge" if here.hook.name == "xdp" else "second")
        here.check_nothing_left()

    for hook in ("xdp", "tcx", "clsact"):
        (tmp_path / hook).mkdir()
        on(hook, tmp_path / hook, bpffs, work)


def test_two_namespaces_with_the_same_interface_index(tmp_path: Path, bpffs: Path) -> None:
    """Each command acts on the chain of its own namespace, and names the other one's."""
    found: list[int] = []

    def second(here: Stage, first: Stage) -> None:
        found.append(socket.if_nametoindex("right"))
        absent = here.run("unload", "edge")
        assert absent.code == 2
        assert "in another one" in absent.err
        assert here.status() == []
        here.load("B")
        assert here.wire.send(FRAMES) == {("B0", "B1", "B2")}
        assert first.wire.send(FRAMES) == {A}
        here.ok("unload", "edge")
        assert first.wire.send(FRAMES) == {A}
        first.made["prog"] |= here.made["prog"]

    def work(here: Stage) -> None:
        found.append(socket.if_nametoindex("right"))
        here.load("A")
        (tmp_path / "other").mkdir()
        on("xdp", tmp_path / "other", bpffs, lambda there: second(there, here))
        assert found[0] == found[1]
        here.ok("unload", "edge")
        here.check_nothing_left()

    on("xdp", tmp_path, bpffs, work)


def name_of(length: int, first: str) -> str:
    return (first * length)[:length]


@pytest.mark.parametrize("hook", ["xdp", "clsact"])
@pytest.mark.parametrize(
    ("interface", "chain"),
    [
        ("a.100", "edge.v2"),  # a VLAN's usual name; a bpffs refuses dots
        ("..x", "..edge"),
        ("2E", "%2E"),  # looks like what the escaping makes
        (name_of(15, "eth.0"), name_of(64, "a name. ")),  # the longest of both
        ("ü€", "ä" * 33),
        ("right.", "ä" * 64),  # too long once escaped: it is called by what fits
    ],
)
def test_names(hook: str, interface: str, chain: str, tmp_path: Path, bpffs: Path) -> None:
    """A whole life under each name, and next to one that looks alike."""

    def work(here: Stage) -> None:
        other = _pair("peer", interface)
        path = here.chain("A", chain)
        options = (*here.hook.options,)
        here.ok("load", path, "--dev", interface, *options)
        here.ok("load", path, "--dev", "right", *options)
        assert other.send(FRAMES) == {A}
        assert here.wire.send(FRAMES) == {A}
        chains = here.status()
        assert {one["target"]["interface"] for one in chains} == {interface, "right"}
        if len(chain) < 64 or chain.isascii():
            assert {one["chain"] for one in chains} == {chain}
        here.ok("recreate", here.chain("B", chain), "--dev", interface)
        assert other.send(FRAMES) == {("B0", "B1", "B2")}
        here.ok("rollback", chain, "--dev", interface)
        here.ok("unload", chain, "--dev", interface)
        assert other.send(FRAMES) == {()}
        assert here.wire.send(FRAMES) == {A}
        here.ok("unload", chain)
        other.close()
        here.check_nothing_left()

    on(hook, tmp_path, bpffs, work)

"""The commands as a user who has CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, and a bpffs of his own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loader.kill.stage import LINKS, Stage, stage
from loader.kill.stamps import Stamps
from loader.kill.user import ENOUGH, USER
from support.nets import in_netns, tool

pytestmark = pytest.mark.usefixtures("kernel")

A, B = ("A0", "A1", "A2"), ("B0", "B1", "B2")
FRAMES = 4


@pytest.fixture
def readable() -> Iterator[Path]:
    """A folder that everybody may read, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="bpfchain-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def theirs(bpffs: Path) -> Path:
    """A folder of a bpffs that belongs to the user."""
    folder = bpffs / "theirs"
    folder.mkdir(mode=0o700)
    for path in (bpffs, bpffs.parent):
        path.chmod(0o755)
    os.chown(folder, USER, USER)
    return folder


def on(hook: str, folder: Path, bpffs: Path, work: Callable[[Stage], None]) -> None:
    def run() -> None:
        with stage(hook, folder, bpffs) as here:
            for version in "AB":
                here.chain(version)
            for words in life(here):
                here.preload(*words)  # as root: what is left is what root unloads
            work(here)

    in_netns(run)


def life(here: Stage) -> list[tuple[str, ...]]:
    """The commands of a chain's life, each of which succeeds behind the one before."""
    a, b = str(here.chain("A")), str(here.chain("B"))
    new = str(here.chain("B").parent / "link1.o")
    return [
        ("load", a, "--dev", "right", *here.hook.options),
        ("status",),
        ("replace", "edge", "1", new),
        ("bypass", "edge", "1"),
        ("recreate", b, "--dev", "right"),
        ("rollback", "edge"),
        ("unload", "edge"),
    ]


BRINGS: list[Stamps] = [
    A, A, ("A0", "B1", "A2"), ("A0", "A2"), B, ("A0", "A2"), (),
]  # fmt: skip
"""What a frame brings after each of them."""


@pytest.mark.parametrize("hook", ["xdp", "xdp-entry", "tcx", "clsact"])
def test_three_capabilities_are_enough(hook: str, theirs: Path, readable: Path) -> None:
    def work(here: Stage) -> None:
        for words, brings in zip(life(here), BRINGS, strict=True):
            run = here.run(*words, caps=ENOUGH)
            assert run.code == 0, f"{words}: {run.err}"
            assert here.wire.send(FRAMES) == {brings}, words
        here.check_nothing_left()

    on(hook, readable, theirs, work)


def test_what_the_user_may_not_know_is_called_unknown(theirs: Path, readable: Path) -> None:
    """The name of a program beside the chain; as root it is told."""

    def work(here: Stage) -> None:
        other = here.chain("B").parent / "link2.o"
        tool("tc", "qdisc", "add", "dev", "right", "clsact")
        tool("tc", "filter", "add", "dev", "right", "ingress", "prio", "60000", "bpf", "da", "obj",
             str(other), "sec", "tc")  # fmt: skip
        run = here.run(*life(here)[0], caps=ENOUGH)
        assert run.code == 0, run.err
        said = here.run("status", caps=ENOUGH)
        assert said.code == 0, said.err
        assert "of unknown name" in said.out
        assert "stamp2" in here.ok("status").out.partition("also on this hook")[2]
        (seen,) = here.status()[0]["foreign"]
        assert seen["name"] == "stamp2"
        here.ok("unload", "edge")
        tool("tc", "qdisc", "del", "dev", "right", "clsact")

    on("clsact", readable, theirs, work)


@pytest.mark.parametrize("hook", ["xdp", "tcx", "clsact"])
@pytest.mark.parametrize("lacks", ["CAP_BPF", "CAP_NET_ADMIN"])
def test_a_missing_capability_is_named(
    hook: str, lacks: str, theirs: Path, readable: Path
) -> None:  # fmt: skip
    """In one line, and the chain is as it was."""
    held = tuple(name for name in ENOUGH if name != lacks)

    def work(here: Stage) -> None:
        load, *changes = (words for words in life(here) if words[0] != "status")
        _refused(here, load, held, lacks, ())
        assert here.tree() == []
        run = here.run(*load, caps=ENOUGH)
        assert run.code == 0, run.err
        before = here.tree()
        for words in changes:
            if words[0] == "rollback":
                continue
            if words[0] == "unload" and not (lacks == "CAP_NET_ADMIN" and hook == "clsact"):
                continue  # to end a link that one holds the kernel asks for nothing
            _refused(here, words, held, lacks, A)
            assert here.tree() == before, words
        assert here.run("unload", "edge", caps=ENOUGH).code == 0
        here.check_nothing_left()

    on(hook, readable, theirs, work)


def _refused(
    here: Stage, words: tuple[str, ...], held: tuple[str, ...], lacks: str, brings: Stamps
) -> None:
    run = here.run(*words, caps=held)
    assert run.code == 5, f"{words} without {lacks}: {run.code} {run.err}"
    lines = run.err.strip().splitlines()
    assert len(lines) <= 2, run.err
    assert lines[0].startswith("host: "), run.err
    assert all(line.startswith("  hint: ") for line in lines[1:]), run.err
    assert lacks in run.err, f"{words}: {run.err}"
    assert not any(name in run.err for name in held), run.err
    assert here.wire.send(FRAMES) == {brings}, words


def test_tracing_needs_cap_perfmon(theirs: Path, readable: Path) -> None:
    """The third capability, where something asks for it."""
    from support.chains import Part, write_chain

    def work(here: Stage) -> None:
        parts = [Part("verdict_tracepoint", program="verdict_tp")] * LINKS
        path = write_chain(readable / "trace", "trace", parts)
        words = ("load", str(path), "--entry", "1")
        here.preload(*words)
        here.preload("unload", "trace")
        _refused(here, words, ("CAP_BPF", "CAP_NET_ADMIN"), "CAP_PERFMON", ())
        assert here.tree() == []

    on("xdp", readable, theirs, work)

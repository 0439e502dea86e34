"""The commands about running chains, as a person uses them, on interfaces of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.chains import bpftool, ids_of, slots_by_bpftool, wait_gone
from support.commands import Done, argv, environment, run
from support.nets import in_netns, make_pair

pytestmark = pytest.mark.usefixtures("kernel")

Call = Callable[..., Done]


def on_host(here: Path, bpffs: Path, work: Callable[[Call], None]) -> None:
    """Run ``work`` with a command that keeps its state in ``bpffs``, beside interfaces left, right."""

    def call(*words: str | Path, code: int = 0, **changed: Any) -> Done:
        more = () if words[0] in ("plan", "build") else ("--bpffs", bpffs)
        done = run("bpfchain", *words, *more, cwd=here, **changed)
        assert done.code == code, (words, done.stdout, done.stderr)
        return done

    def inside() -> None:
        make_pair()
        work(call)

    built = run("bpfchain", "build", "chain.toml", "-o", "chain", "--no-verify", cwd=here)
    assert built.code == 0, built.stderr
    in_netns(inside)


def pins(bpffs: Path) -> Path:
    """The folder of the one chain."""
    return next(bpffs.glob("bpfchain/*/xdp/right/edge"))


def test_a_session(here: Path, bpffs: Path) -> None:
    """The chain file saves REDIRECT at link 0, so two states reach links 1 and 2."""

    def work(call: Call) -> None:
        assert call("status").stderr == "no chain is loaded here\n"
        done = call("load", "chain/manifest.json", "--dev", "right", "--mode", "generic")
        assert done.stdout == b""
        assert done.stderr == (
            "edge on right xdp: 3 links running (filter, metrics, log_tcp), generation 1\n"
        )
        assert bpftool("net")[0]["xdp"][0]["mode"] == "generic"
        shown = call("status").text.splitlines()
        assert shown[0].startswith("right xdp (generic)  chain edge, generation 1, since 20")
        assert [line.split()[0] for line in shown[1:6]] == ["0", "1", "metrics__redirect", "2",
                                                            "log_tcp__redirect"]  # fmt: skip
        assert shown[-1] == "  slots as the manifest says; also on this hook: nothing"

        said = call("replace", "edge", "0", "filter.o").stderr
        assert "link 0 is filter now, generation 1 (the head swapped)" in said
        assert "equal on " in said
        said = call("replace", "edge", "1", "metrics.o", "--no-verify").stderr
        assert "generation 2 (recreated: 2 states reach link 1 (metrics, metrics__redirect)" in said
        said = call("bypass", "edge", "1").stderr
        assert "link 1 is bypassed, generation 3 (recreated: 2 states" in said
        assert "bypassed" in call("status", "edge").text
        assert call("rollback", "edge").stderr == "edge on right xdp: back to generation 2\n"
        done = call("recreate", "chain/manifest.json", "-v")
        assert "generation 3 runs (filter, metrics, log_tcp)" in done.stderr
        assert "  kept: link 1: counters" in done.stderr
        known = ids_of(pins(bpffs))
        assert call("unload", "edge").stderr == "edge on right xdp: generation 3 unloaded\n"
        wait_gone(known)
        assert bpftool("net")[0]["xdp"] == []

    on_host(here, bpffs, work)
    assert list(bpffs.iterdir()) == []


def test_json(here: Path, bpffs: Path) -> None:
    def work(call: Call) -> None:
        load = ("load", "chain/manifest.json", "--dev", "right", "--json")
        done = json.loads(call(*load).stdout)
        assert (done["operation"], done["generation"]) == ("load", 1)
        assert done["target"]["interface"] == "right"
        folder = Path(done["pins"])
        status = json.loads(call("status", "--json").stdout)
        (chain,) = status["chains"]
        assert chain["healthy"]
        assert chain["chain"] == "edge"
        slots = slots_by_bpftool(folder / "g1" / "slots")
        entries = [entry for link in chain["links"] for entry in link["entries"]]
        assert {e["slot"]: e["id"] for e in entries if e["slot"]} == slots
        assert entries[0]["id"] == bpftool("net")[0]["xdp"][0]["id"]
        new = json.loads(call("replace", "edge", "0", "filter.o", "--no-verify", "--json").stdout)
        assert (new["operation"], new["link"]["index"]) == ("replace", 0)
        for words in (
            ("recreate", "chain/manifest.json"),
            ("rollback", "edge"),
            ("unload", "edge"),
        ):
            told = json.loads(call(*words, "--json").stdout)
            assert told["operation"] == words[0]
        assert json.loads(call("status", "--json").stdout)["chains"] == []

    on_host(here, bpffs, work)


def test_a_patched_object(here: Path, bpffs: Path) -> None:
    """It needs the manifest that records it: the one beside it, or a named one."""

    def work(call: Call) -> None:
        call("load", "chain/manifest.json", "--dev", "right")
        (here / "alone").mkdir()
        (here / "alone" / "link0.o").write_bytes((here / "chain" / "link0.o").read_bytes())
        done = call("replace", "edge", "0", "alone/link0.o", code=2)
        assert "is patched already, and no manifest says how" in done.stderr
        done = call("replace", "edge", "0", "chain/link1.o", code=3)
        assert "is not what chain/manifest.json records as link 0" in done.stderr
        call("replace", "edge", "0", "chain/link0.o")
        call("replace", "edge", "0", "alone/link0.o", "--manifest", "chain/manifest.json", code=0)
        done = call("replace", "edge", "0", "chain/link0.o", "-o", "x.o", code=2)
        call("unload", "edge")

    on_host(here, bpffs, work)


def test_objects_that_were_patched_on_the_way(here: Path, bpffs: Path) -> None:
    """Without -o the object stays with the pins, so a later recreate has it; with -o it is a file."""

    def work(call: Call) -> None:
        call("load", "chain/manifest.json", "--dev", "right")
        call("replace", "edge", "1", "metrics.o", "--no-verify")
        folder = pins(bpffs)
        assert (folder / "g2" / "x1").exists()
        call("bypass", "edge", "2", code=3)
        call("replace", "edge", "2", "log.o", "--no-verify", "-o", "mine.o")
        assert (folder / "g3" / "x1").exists()
        assert not (folder / "g3" / "x2").exists()
        assert (here / "mine.o").read_bytes()[:4] == b"\x7fELF"
        (here / "mine.o").unlink()
        done = call("bypass", "edge", "1", code=5)
        assert "needs the objects of all links" in done.stderr
        assert "mine.o: no such file" in done.stderr
        call("unload", "edge")

    on_host(here, bpffs, work)


USAGE = [
    (("load", "chain/manifest.json"), 2, "a chain of hook xdp needs an interface"),
    (("load", "chain/manifest.json", "--dev", "rigth"), 5, "no interface rigth"),
    (("load", "chain/manifest.jsn", "--dev", "right"), 2, "did you mean chain/manifest.json?"),
    (("load", "chain/link0.o", "--dev", "right"), 2, "is an object, not a manifest"),
    (("load", "chain/manifest.json", "--cgroup", "/x"), 2, "--cgroup is not for a chain of hook xdp"),
    (("load", "chain/manifest.json", "--dev", "right", "--mode", "fast"), 2, "is not native or generic"),
    (("load", "chain/manifest.json", "--dev", "right", "--entry", "PASS,TX"), 2, "one code"),
    (("load", "chain/manifest.json", "--dev", "right", "--direction", "egress"), 2, "XDP has no egress"),
    (("unload", "edge"), 2, "no chain edge is loaded"),
    (("status", "edge"), 2, "no chain edge is loaded"),
    (("replace", "edge", "0", "filter.o"), 2, "no chain edge is loaded"),
    (("recreate", "chain/manifest.json"), 2, "no chain edge is loaded"),
]  # fmt: skip


def test_what_makes_no_sense(here: Path, bpffs: Path) -> None:
    def work(call: Call) -> None:
        for words, code, says in USAGE:
            done = call(*words, code=code)
            assert says in done.stderr
            assert done.stderr.count("\n") <= 2
            assert "Traceback" not in done.stderr

    on_host(here, bpffs, work)
    assert list(bpffs.iterdir()) == []


def test_which_chain(here: Path, bpffs: Path) -> None:
    """One name on two interfaces: the command says so, and takes --dev."""

    def work(call: Call) -> None:
        for name in ("left", "right"):
            call("load", "chain/manifest.json", "--dev", name, "--mode", "generic")
        done = call("unload", "edge", code=2)
        assert "2 chains have the name" in done.stderr
        assert "--dev" in done.stderr
        assert call("status", "--dev", "left").text.startswith("left xdp")
        done = call("status", "edg", code=2)
        assert "did you mean edge?" in done.stderr
        call("unload", "edge", "--dev", "left")
        assert call("status").text.startswith("right xdp")

        def elsewhere() -> None:
            done = call("unload", "edge", code=2)
            assert "it is in another one" in done.stderr
            assert "1 chain is in other network namespaces" in call("status").stderr

        in_netns(elsewhere)
        done = call("load", "chain/manifest.json", "--dev", "right", code=5)
        assert "is loaded already (generation 1)" in done.stderr
        call("unload", "edge")

    on_host(here, bpffs, work)


def test_dry_run(here: Path, bpffs: Path) -> None:
    def work(call: Call) -> None:
        done = call("load", "chain/manifest.json", "--dev", "right", "--dry-run")
        assert "3 links would load (filter, metrics, log_tcp); nothing was attached" in done.stderr
        (here / "chain" / "link1.o").write_bytes(b"other")
        done = call("load", "chain/manifest.json", "--dev", "right", "--dry-run", code=3)
        assert "is not the object of link 1" in done.stderr

    on_host(here, bpffs, work)
    assert list(bpffs.iterdir()) == []


def test_entry(here: Path, bpffs: Path) -> None:
    def work(call: Call) -> None:
        done = call("load", "chain/manifest.json", "--dev", "right", "--entry", "PASS")
        assert "entry program returns PASS" in done.stderr
        shown = call("status").text
        assert "returns PASS if the chain is missing" in shown
        call("recreate", "chain/manifest.json")
        call("unload", "edge")

    on_host(here, bpffs, work)
    assert list(bpffs.iterdir()) == []


def test_not_a_bpffs(here: Path, tmp_path: Path) -> None:
    for words in (("status",), ("unload", "edge"), ("rollback", "edge"), ("bypass", "edge", "1")):
        done = run("bpfchain", *words, "--bpffs", tmp_path, cwd=here)
        assert done.code == 5
        assert "is not a bpffs" in done.stderr


def test_plan(here: Path, bpffs: Path) -> None:
    def work(call: Call) -> None:
        plan = ("plan", "chain/manifest.json", "--dev", "right", "--pins", bpffs / "edge")
        script = call(*plan).text
        done = subprocess.run(
            ["sh", "-e"], input=script, cwd=here, text=True, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert slots_by_bpftool(bpffs / "edge" / "slots").keys() == {1, 2, 166, 167}
        assert len(json.loads(call(*plan, "--json").stdout)["commands"]) == len(script.splitlines())
        undo = call(*plan, "--undo").text
        subprocess.run(["sh", "-e"], input=undo, cwd=here, text=True, check=True)

    on_host(here, bpffs, work)
    assert list(bpffs.iterdir()) == []


def test_two_at_once(here: Path, bpffs: Path) -> None:
    """One wins; the other says who holds it, and nothing is half done."""

    def work(call: Call) -> None:
        call("load", "chain/manifest.json", "--dev", "right")
        words = ("recreate", "chain/manifest.json", "--bpffs", bpffs)
        both = [
            subprocess.Popen(
                argv("bpfchain", *words),
                cwd=here,
                env=environment(),
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        said = [one.communicate()[1] for one in both]
        codes = sorted(one.returncode for one in both)
        assert codes in ([0, 5], [0, 0]), said  # one may be done before the other begins
        if codes == [0, 5]:
            loser = next(text for one, text in zip(both, said, strict=True) if one.returncode)
            assert "is changing chains here" in loser
        assert json.loads(call("status", "--json").stdout)["chains"][0]["healthy"]
        call("unload", "edge")

    on_host(here, bpffs, work)


def test_interrupted_while_patching(here: Path, bpffs: Path) -> None:
    """Ctrl-C before the chain is touched: it runs as it did."""

    def work(call: Call) -> None:
        call("load", "chain/manifest.json", "--dev", "right")
        before = ids_of(pins(bpffs))
        fifo = here / "slow.o"
        os.mkfifo(fifo)
        words = ("replace", "edge", "0", "slow.o", "--bpffs", bpffs)
        one = subprocess.Popen(
            argv("bpfchain", *words), cwd=here, env=environment(), stderr=subprocess.PIPE, text=True
        )
        with fifo.open("wb"):  # opened once the command reads
            one.send_signal(signal.SIGINT)
            said = one.communicate()[1]
        assert one.returncode == 130, said
        assert ids_of(pins(bpffs)) == before
        call("unload", "edge")

    on_host(here, bpffs, work)


def test_help_pages_show_commands_that_exist(here: Path) -> None:
    for name in ("load", "status", "replace", "bypass", "recreate", "rollback", "unload", "plan"):
        done = run("bpfchain", name, "--help", cwd=here)
        assert done.code == 0
        assert "Examples:" in done.text
        assert "Exit codes:" in done.text

"""A hook in a network namespace of its own with chains to load on it, and the commands as processes.

A command is ``bpfchain``'s own main in a forked child under the tracer: what it makes is noted.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpfchain.cli.main import command as main
from bpfchain.loader import query
from loader.kill.stamps import Stamps, Wire, stamping
from loader.kill.tracer import Run, Visit, trace
from loader.kill.user import as_user, preload
from support.chains import MANIFEST, Part, bpftool, ids, manifest_of, write_chain
from support.nets import make_pair, tool

for _name in ("build", "load", "replace", "bypass", "recreate", "rollback", "status", "unload"):
    importlib.import_module(f"bpfchain.cli.{_name}")  # once, not in every child
for _name in ("load", "replace", "bypass", "recreate", "rollback", "unload"):
    importlib.import_module(f"bpfchain.loader.operations.{_name}")
importlib.import_module("bpfchain.loader.status")

LINKS = 3
CHAIN = "edge"


@dataclass(frozen=True, slots=True)
class Hook:
    """A kind of hook: how the links are built and where ``load`` puts them."""

    name: str
    hook: str
    section: str
    go_on: int
    options: tuple[str, ...]
    flushes: bool = False
    """Whether attaching or detaching loses frames in the interface's own queue (native XDP on
    veth frees its ring: drivers/net/veth.c, veth_napi_del)."""


_XDP = ("--mode", "native")
_ENTRY_XDP, _ENTRY_TC = ("--entry", "DROP"), ("--entry", "SHOT")
_CLSACT = ("--via", "clsact", "--direction", "ingress")

HOOKS = {
    one.name: one
    for one in (
        Hook("xdp", "xdp", "xdp", 2, _XDP, flushes=True),
        Hook("xdp-entry", "xdp", "xdp", 2, (*_XDP, *_ENTRY_XDP), flushes=True),
        Hook("xdp-generic", "xdp", "xdp", 2, ("--mode", "generic")),
        Hook("tcx", "tcx/ingress", "tc", -1, ()),
        Hook("tcx-entry", "tcx/ingress", "tc", -1, ("--entry", "DROP")),
        Hook("clsact", "tc", "tc", 0, _CLSACT),
        Hook("clsact-entry", "tc", "tc", 0, (*_CLSACT, *_ENTRY_TC)),
    )
}


@dataclass
class Stage:
    """See the module."""

    hook: Hook
    folder: Path
    bpffs: Path
    wire: Wire
    stamps: dict[str, str] = field(default_factory=dict)
    """sha256 of a patched object -> what it stamps."""
    made: dict[str, set[int]] = field(
        default_factory=lambda: {"prog": set(), "map": set(), "link": set()}
    )

    def chain(self, version: str, name: str = CHAIN) -> Path:
        """The manifest of the chain of that version, built on the first call."""
        path = self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:8]}{version}" / MANIFEST
        if not path.exists():
            path.parent.mkdir()
            parts = [
                Part(stamping(path.parent, self.hook.section, self.hook.go_on, version, index),
                     hook=self.hook.hook)
                for index in range(LINKS)
            ]  # fmt: skip
            write_chain(path.parent, name, parts)
        for record in manifest_of(path).links:
            self.stamps[record.output_sha256] = f"{version}{record.index}"
        return path

    def run(
        self, *words: str | Path, visit: Visit | None = None, kill: tuple[int, bool] | None = None,
        fail: tuple[int, int] | None = None, reads: bool = False,
        caps: tuple[str, ...] | None = None,
    ) -> Run:  # fmt: skip
        """Run ``bpfchain`` with these words; with ``caps`` as another user with these alone."""
        what = command(words, self.bpffs)
        if caps is not None:
            what = as_user(what, caps)
        return self.work(what, visit=visit, kill=kill, fail=fail, reads=reads)

    def work(self, what: Callable[[], object], **how: Any) -> Run:
        """The same for anything else."""
        run = trace(what, **how)
        for kind, numbers in run.made.items():
            self.made[kind] |= numbers
        return run

    def preload(self, *words: str | Path) -> None:
        """Have imported what the command imports, before a user runs it who cannot."""
        preload(command(words, self.bpffs))

    def ok(self, *words: str | Path, **how: Any) -> Run:
        """A command that must succeed."""
        run = self.run(*words, **how)
        assert run.code == 0, f"{words}: {run.code}: {run.err}{run.out}"
        return run

    def load(self, version: str, *more: str, dev: str = "right", name: str = CHAIN) -> Run:
        return self.ok("load", self.chain(version, name), "--dev", dev, *self.hook.options, *more)

    def status(self) -> list[dict[str, Any]]:
        """What ``bpfchain status`` says of all chains."""
        found: list[dict[str, Any]] = json.loads(self.ok("status", "--json").out)["chains"]
        return found

    def expected(self, status: list[dict[str, Any]]) -> Stamps:
        """What a frame must bring if the hook runs what ``status`` says."""
        if not status or status[0]["generation"] is None:
            return ()
        assert len(status) == 1, status
        return tuple(self.stamps[link["sha256"]] for link in status[0]["links"]
                     if not link["bypassed"])  # fmt: skip

    def tree(self) -> list[str]:
        """Everything below the bpffs."""
        return sorted(str(path.relative_to(self.bpffs)) for path in self.bpffs.rglob("*"))

    def residue(self) -> list[str]:
        """What is on the interface, as other tools say; [] is nothing."""
        found = []
        (link,) = json.loads(tool("ip", "-j", "-d", "link", "show", "dev", "right"))
        if "xdp" in link:
            found.append(f"XDP program {link['xdp']['prog']['id']}")
        if "clsact" in tool("tc", "qdisc", "show", "dev", "right"):
            found.append("clsact qdisc")
            found.append(tool("tc", "filter", "show", "dev", "right", "ingress"))
        return [one for one in found if one]

    def check_nothing_left(self) -> None:
        """No pin, folder, qdisc, program at the hook; and no object that a command made."""
        assert self.tree() == []
        assert self.residue() == []
        assert self.wire.send(2) == {()}
        listed = {"prog": query.program_ids, "map": query.map_ids, "link": query.link_ids}
        end = time.monotonic() + 10
        for kind in ("link", "prog", "map"):
            made = self.made[kind]
            assert kind == "link" or made, f"no {kind} was ever made"
            while (left := made & set(listed[kind]())) and time.monotonic() < end:
                time.sleep(0.005)  # freed by the kernel's workers, which tell nobody
            forgotten = {one for one in left if kind == "map" and _forgotten(one)}
            assert left == forgotten, f"{kind} {left - forgotten} still there"
            made -= forgotten
        now = _listed()
        assert not any(made & now[kind] for kind, made in self.made.items())


def _listed() -> dict[str, set[int]]:
    """What bpftool lists: it gives up where somebody makes or ends a link just then (EAGAIN)."""
    end = time.monotonic() + 10
    while True:
        try:
            return ids()
        except AssertionError as error:
            if "temporarily unavailable" not in str(error) or time.monotonic() > end:
                raise


def _forgotten(number: int) -> bool:
    """Whether this is a PROG_ARRAY that no process has open any more.

    The kernel forgets to free one if somebody (a `bpftool map show` of other tests) opens and
    closes it just then: prog_array_map_clear takes a reference for work that is queued already,
    and nobody gives it back. No pin is there, and no program, when this is asked.
    """
    told = bpftool("map", "show", "id", str(number))
    if told["type"] != "prog_array":
        return False
    line = f"map_id:\t{number}"
    for info in Path("/proc").glob("[0-9]*/fdinfo/*"):
        try:
            if line in info.read_text().splitlines():
                return False
        except OSError:  # it ended meanwhile
            continue
    print(f"map {number}, a PROG_ARRAY, is held by nothing and was forgotten by the kernel")
    return True


def command(words: tuple[str | Path, ...], bpffs: Path) -> Callable[[], None]:
    """``bpfchain`` with these words, as something to be called in a child."""

    def run() -> None:
        main.main([*map(str, words), "--bpffs", str(bpffs)], prog_name="bpfchain")

    return run


@contextmanager
def stage(name: str, folder: Path, bpffs: Path) -> Iterator[Stage]:
    """The hook of that name in the calling thread's network namespace, which is to be a new one."""
    make_pair()
    wire = Wire()
    try:
        yield Stage(HOOKS[name], folder, bpffs, wire)
    finally:
        wire.close()

"""Chains under load: three links that mark and count frames, in two versions, and their hooks."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from bpfchain.loader.generation import Source
from bpfchain.loader.hooks import Target, interface_target
from bpfchain.loader.maps import Map
from bpfchain.loader.operations.load import load
from bpfchain.loader.operations.unload import unload
from bpfchain.loader.places import ChainPlace, place_of, state_root
from bpfchain.loader.situation import Situation
from bpfchain.transform.manifest_link import LinkRecord
from bpfchain.transform.policy import hook_named
from loader.load.traffic import Seen
from support.bpfcode import compile_bpf
from support.chains import Part, patched, source_of, write_chain
from support.nets import make_pair

LINKS = Path(__file__).with_name("links.c")
SPIN = 40_000
"""Nanoseconds that link 0 takes for a frame."""
SLOW_SPIN = 400_000
"""The same where the grace period is to be seen. A generation's PROG_ARRAY is empty about 300 us after
the swap if nothing waits: the loader takes 140 to get to its pin, a kworker and code to patch the rest.
"""
LEFT, RIGHT = "left", "right"


@dataclass(frozen=True)
class Place:
    """A kind of hook: its section, what passes there, and how a chain is attached."""

    section: str
    passes: int
    kind: str
    mode: str | None = None
    entry: int | None = None
    """What an entry program returns on a miss; None: there is none."""

    @property
    def target(self) -> Target:
        if self.section == "xdp":
            return interface_target(hook_named("xdp"), RIGHT, mode=self.mode)  # type: ignore[arg-type]
        return interface_target(hook_named(self.section), RIGHT, direction="ingress")


PLACES = {
    "xdp-native": Place("xdp", 2, "xdp", "native"),
    "xdp-generic": Place("xdp", 2, "xdp", "generic"),
    "tcx": Place("tcx/ingress", -1, "tcx"),
    "clsact": Place("tc", 0, "clsact"),
    "xdp-entry": Place("xdp", 2, "xdp", "generic", entry=1),
    "tcx-entry": Place("tcx/ingress", -1, "tcx", entry=2),
}


def part(place: Place, index: int, mark: int, spin: int = SPIN) -> Part:
    """Link ``index`` that writes ``mark``."""
    return Part(_compiled(place.section, place.passes, index, mark, spin if index == 0 else 0))


@cache
def _compiled(section: str, passes: int, index: int, mark: int, spin: int) -> bytes:
    defines: dict[str, object] = {"SECTION": f'"{section}"', "PASS": f"({passes})"}
    if section == "xdp":
        defines["XDP"] = 1
    with TemporaryDirectory() as folder:
        return compile_bpf(
            Path(folder), LINKS.read_text(), INDEX=index, MARK=mark, SPIN=spin, **defines
        )


@dataclass
class Loaded:
    """A running chain of version 1, with what to exchange it for."""

    place: ChainPlace
    hook: Place
    sources: dict[int, Source]
    """The whole chain by version."""
    links: dict[tuple[int, int], tuple[LinkRecord, bytes]]
    """Single links by index and version."""
    folder: Path

    def counts(self) -> list[list[int]]:
        """Frames that each link has met, by kind."""
        with Situation(self.place) as situation:
            assert situation.current is not None, "the chain runs"
            folder = situation.current.folder
            found = []
            for index in range(3):
                with Map.get_pinned(folder / f"m{index}_runs") as array:
                    found.append([_count(array, kind) for kind in range(4)])
        return found


def _count(array: Map, kind: int) -> int:
    value = array.lookup(struct.pack("=I", kind))
    assert value is not None
    return int(struct.unpack("=Q", value)[0])


@contextmanager
def loaded(
    name: str, folder: Path, bpffs: Path, spin: int = SPIN, *, pair: bool = True
) -> Iterator[Loaded]:
    """A chain on ``right``, in the calling thread's network namespace, which is to be a new one
    (or with ``pair`` False already has the pair)."""
    if pair:
        make_pair()
    hook = PLACES[name]
    sources, links = {}, {}
    for mark in (1, 2):
        parts = [part(hook, i, mark, spin) for i in range(3)]
        sources[mark] = source_of(write_chain(folder / f"v{mark}", "edge", parts))
        for i, one in enumerate(parts):
            links[i, mark] = patched(one, i, folder, f"l{i}v{mark}.o")
    place = place_of(hook.target, "edge", state_root(bpffs))
    load(sources[1], place, hook.target, entry=hook.entry)
    try:
        yield Loaded(place, hook, sources, links, folder)
    finally:
        unload(place)


def skipped_by_counters(seen: Seen, before: list[list[int]], after: list[list[int]]) -> list[str]:
    """Where the links' counters are not what the sent frames must have made of them."""
    wrong = []
    for index in range(3):
        for kind in range(4):
            expected = 0 if kind == 3 and index == 2 else seen.sent[kind]
            grown = after[index][kind] - before[index][kind]
            if grown != expected:
                wrong.append(f"link {index} met {grown} of {expected} frames of kind {kind}")
    return wrong

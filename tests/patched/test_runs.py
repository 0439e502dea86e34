"""A chain of the thesis's three programs runs alike under libbpf, cilium/ebpf and aya."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from bpfchain.transform.request import Patched, Request
from bpfchain.transform.transform import transform_object
from loaders import build
from patched import packets
from patched.objects import corpus_objects
from support.kernel import Chain

pytestmark = pytest.mark.usefixtures("kernel")
DROP, PASS = 1, 2
NAMES = ("filter", "metrics", "log")


def links_of(strategy: str, last: bool) -> list[Patched]:
    objects = {one.name: one.path.read_bytes() for one in corpus_objects() if one.name in NAMES}
    return [
        transform_object(
            objects[name],
            Request(index=index, strategy=strategy, last=last and index == 2),
        )
        for index, name in enumerate(NAMES)
    ]


def verdict_links(strategy: str) -> list[Patched]:
    """Five programs whose verdicts depend on the packet or are constants."""
    objects = {one.name: one for one in corpus_objects()}
    names = ("always_pass", "exits_const", "dirty_upper", "static_subprog", "always_drop")
    links = []
    for index, name in enumerate(names):
        one = objects[name]
        links.append(
            transform_object(
                one.path.read_bytes(),
                Request(index=index, program=one.program, strategy=strategy),
            )
        )
    return links


def with_library(name: str, links: list[Patched], folder: Path) -> list[int]:
    """Verdicts of the chain on all frames, the objects loaded by a library."""
    for number, link in enumerate(links):
        (folder / f"link{number}.o").write_bytes(link.data)
    spec = {
        "slots_map": "bpfchain_slots",
        "max_entries": links[0].link.hook.slots,
        "links": [
            {
                "object": f"link{number}.o",
                "entries": [{"program": e.name, "slot": e.slot} for e in link.entries],
                "only": False,
            }
            for number, link in enumerate(links)
        ],
        "packets": [frame.hex() for frame in packets.FRAMES],
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    (result,) = build.call(name, "chain", folder / "spec.json")
    assert result["error"] is None, result["error"]
    assert result["programs_loaded"] == sum(len(link.entries) for link in links)
    return list(result["verdicts"])


def chain(links: list[Patched]) -> Chain:
    return Chain(
        [
            (link.data, number, {e.state or 0: (e.slot, e.name) for e in link.entries})
            for number, link in enumerate(links)
        ],
        max_entries=links[0].link.hook.slots,
    )


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("strategy", ["inline", "subprog"])
def test_three_programs(tmp_path: Path, strategy: str, last: bool) -> None:
    links = links_of(strategy, last)
    with chain(links) as one:
        # No port is blocked yet, as in the libraries' chains: all frames pass.
        empty = [one.run(frame).signed for frame in packets.FRAMES]
        one.map(0, "blocked").update(struct.pack("=H", packets.BLOCKED_PORT), b"\1")
        blocked = [one.run(frame).signed for frame in packets.FRAMES]
    assert empty == [PASS] * len(packets.FRAMES)
    assert blocked == [packets.filter_verdict(frame) for frame in packets.FRAMES]
    for library in ("cilium", "aya"):
        assert with_library(library, links, tmp_path) == empty, library


@pytest.mark.parametrize("strategy", ["inline", "subprog", "auto"])
def test_verdicts_depend_on_the_last_link_that_ran(tmp_path: Path, strategy: str) -> None:
    """Five links, the verdicts of each alone known: where the first that does not pass stands."""
    links = verdict_links(strategy)
    originals = {one.name: one for one in corpus_objects()}
    alone = []
    for link in links:
        one = originals[link.program]  # in these five objects the program has the object's name
        with Chain([(one.path.read_bytes(), 0, {0: (0, one.program)})], max_entries=1) as single:
            alone.append([single.run(frame).signed for frame in packets.FRAMES])
    wanted = [
        next((code for code in codes if code != PASS), codes[-1])
        for codes in zip(*alone, strict=True)
    ]
    with chain(links) as one_chain:
        assert [one_chain.run(frame).signed for frame in packets.FRAMES] == wanted
    for library in ("cilium", "aya"):
        assert with_library(library, links, tmp_path) == wanted, library
    assert DROP in wanted

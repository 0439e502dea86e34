"""Manifests for tests: a chain of three XDP links with every part of a record filled."""

from __future__ import annotations

from typing import Any

from bpfchain.transform.codes import CodeSet
from bpfchain.transform.link import Link
from bpfchain.transform.manifest import LinkRecord, Manifest, Share, SharedMap, new_manifest
from bpfchain.transform.manifest_proof import (
    Corpus,
    Coverage,
    DynamicProof,
    StaticProof,
    Tool,
    Verified,
)
from bpfchain.transform.policy import Hook, hook_named
from bpfchain.transform.request import Cost, EntryProgram, MapUse, Need

XDP = hook_named("xdp")
REDIRECT = 4
PROOF = Verified(
    tool=Tool(name="bpfchain", version="0.4.0"),
    static=StaticProof(result="equal", readers=("pyelftools",)),
    dynamic=DynamicProof(
        result="inconclusive",
        engines=("ubpf", "kernel"),
        corpora=(Corpus(name="small.pcap", sha256="c" * 64),),
        packets=412,
        coverage=Coverage(edges=31, of=32),
        more={"seed": 7},
    ),
)
COUNTERS = MapUse("counters", 6, 4, 8, 5, 0)


def make_link(index: int, hook: Hook = XDP, **changes: Any) -> Link:
    """A link with the hook's default S unless told otherwise."""
    return Link(**{"hook": hook, "index": index, "success": hook.success, **changes})


def make_record(link: Link, **changes: Any) -> LinkRecord:
    """The record of a link that was patched inline, its files named by its index."""
    fields: dict[str, Any] = {
        "link": link,
        "object": f"link{link.index}.o",
        "input_file": "prog.o",
        "input_sha256": f"{link.index:064x}",
        "output_sha256": f"{link.index + 256:064x}",
        "program": "prog",
        "section": "xdp",
        "entries": entries_of(link, "prog"),
        "strategy": "inline",
        "why": "cheapest",
        "keep": "r8",
        "pinned": False,
        "frags": False,
        "before": Cost(42, 16),
        "after": Cost(49, 16),
        "debug": "dropped",
        "license": "GPL",
        "maps": (MapUse(link.slots_map, 3, 4, 4, link.hook.slots), COUNTERS),
        "needs": (),
        "redirects": (),
        "tail_calls": False,
        "allowed": (),
        "warnings": (),
    }
    return LinkRecord(**(fields | changes))


def entries_of(link: Link, name: str) -> tuple[EntryProgram, ...]:
    """One entry program a state, as the patch names them."""
    return tuple(
        EntryProgram(
            name if state is None else f"{name}__{link.hook.name_of(state).lower()}",
            state,
            link.hook.slot(state, link.index),
        )
        for state in link.states
    )


def edge_records() -> tuple[LinkRecord, LinkRecord, LinkRecord]:
    """A whole chain: link 0 redirects, link 1 is full of detail, link 2 is the last."""
    return (
        make_record(make_link(0, redirect=CodeSet.of(REDIRECT)), redirects=("bpf_redirect_map",)),
        make_record(
            make_link(1, saved=(REDIRECT,)),
            strategy="subprog",
            keep=None,
            after=Cost(60, None),
            needs=(
                Need("tail calls", "beside subprograms", (("arm64", "6.0"), ("riscv64", None))),
            ),
            allowed=("stack-residue",),
            warnings=("reads 4 bytes of stack before writing them",),
            verified=PROOF,
        ),
        make_record(make_link(2, saved=(REDIRECT,), last=True)),
    )


def edge(**changes: Any) -> Manifest:
    """The manifest of that chain; links 0 and 2 share their counters."""
    both = (SharedMap(index=0, map="counters"), SharedMap(index=2, map="counters"))
    share = (Share(map="all_counters", links=both),)
    return new_manifest("edge", *edge_records(), **({"share": share} | changes))

"""Nested runs: a tc egress program sends a clone out of its own interface, so the chain runs inside
itself on the same CPU; neither run sees what the other saved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bpfchain.loader.links import link_create_tcx
from bpfchain.loader.programs import Program
from bpfchain.loader.uapi import AttachType
from bpfchain.transform.errors import RefusedError
from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object
from bpfchain.verify.reference import chain_result
from semantics.chains import KEY, STRATEGIES, Spec, corpus, load_chain
from semantics.places import TC, TCX_OUT
from semantics.tally import TALLY
from support.bpfcode import U32, U64, compile_bpf
from support.kernel import Chain
from support.nets import FRAME, in_netns, make_pair, received, send, tool

MARK, CLONE_MARK = 77, 78
PACKETS = 20
SHOT = 2
BY_MARK = """
SEC("tc") int by_mark(struct __sk_buff *skb) { return skb->mark == 78 ? INNER : OUTER; }
"""
# what the deciding link returns in the outer run and in the inner one
CASES = [(3, 0), (0, 3), (SHOT, 0), (0, SHOT), (3, SHOT), (SHOT, 3), (0, 0), (-1, SHOT)]
# the deciding link, the cloning one
PLACES = [(0, 1), (0, 2), (1, 2), (1, 0), (2, 0)]
SAVED = (-1, 2, 3)


@contextmanager
def nested_chain(
    folder: Path, outer: int, inner: int, decides: int, clones: int, strategy: str, hook: str,
    mode: str = "slots",
) -> Iterator[tuple[Chain, list[Spec]]]:  # fmt: skip
    """Three links: one decides by the packet's mark, with R; one clones; one returns 0."""
    place = TCX_OUT if hook == "tcx" else TC
    specs, made = [], []
    for index in range(3):
        if index == decides:
            data = compile_bpf(folder, BY_MARK, OUTER=outer, INNER=inner)
        else:
            data = corpus("tc_clone" if index == clones else "verdict_tc")
        spec = Spec(place.default, SAVED if index == decides else ())
        reachable = mode == "slots" and index > decides
        specs.append(spec)
        made.append(
            transform_object(
                data,
                Request(
                    index=index, hook=place.name, strategy=strategy, saved_code=mode,
                    program=None if index in (decides, clones) else "verdict_tc",
                    redirect=",".join(map(str, spec.redirect)) or None,
                    saved=",".join(map(str, SAVED)) if reachable else None,
                    allow=frozenset(("redirect-hazard", *(("nested-runs",) if mode == "map" else ()))),
                ),
            )
        )  # fmt: skip
    with load_chain(place, made, mode) as chain:
        yield chain, specs


def attach(stack: ExitStack, head: Program, ifindex: int, hook: str, bpffs: Path) -> None:
    if hook == "tcx":
        stack.enter_context(link_create_tcx(head, ifindex, AttachType.TCX_EGRESS))
        return
    tool("tc", "qdisc", "add", "dev", "left", "clsact")
    head.pin(bpffs / "head")
    stack.callback((bpffs / "head").unlink)
    tool(
        "tc", "filter", "add", "dev", "left", "egress", "prio", "1", "handle", "1", "bpf", "da",
        "object-pinned", str(bpffs / "head"),
    )  # fmt: skip


def runs(chain: Chain, index: int) -> int:
    value = chain.map(index, "runs").lookup(KEY)
    assert value is not None
    return int(U64.unpack(value)[0])


@pytest.mark.parametrize("hook", ["clsact", "tcx"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("decides", "clones"), PLACES)
def test_runs_do_not_disturb_each_other(
    decides: int, clones: int, strategy: str, hook: str, tmp_path: Path, bpffs: Path
) -> None:
    """The outer run's code by a test run and by packets, the inner's by packets alone."""

    def check(outer: int, inner: int) -> None:
        ifindex = make_pair()
        with (
            nested_chain(tmp_path, outer, inner, decides, clones, strategy, hook) as (chain, specs),
            ExitStack() as stack,
        ):
            attach(stack, chain.head, ifindex, hook, bpffs)
            codes = [[0, 0, 0], [0, 0, 0]]
            # a link behind the cloning one sees the mark that it leaves
            codes[0][decides] = inner if decides > clones else outer
            codes[1][decides] = inner
            results = []
            for own in codes:
                results.append(chain_result(specs, lambda n, c=own: c[n])[0])  # type: ignore[misc]
            through = [result != SHOT for result in results]
            # struct __sk_buff: mark at 8, ifindex at 40
            ctx = bytes(8) + U32.pack(MARK) + bytes(28) + U32.pack(ifindex) + bytes(148)
            before, counted = received("right"), runs(chain, clones)
            assert chain.run(FRAME, ctx).signed == results[0]
            assert received("right") - before == through[1]
            assert runs(chain, clones) - counted == 2, "the chain did not run inside itself"
            before, counted = received("right"), runs(chain, clones)
            send("left", PACKETS, mark=MARK)
            assert received("right") - before == PACKETS * sum(through), f"{codes} -> {results}"
            assert runs(chain, clones) - counted == 2 * PACKETS
            TALLY.add("real packets", 2 * PACKETS + 2)

    for outer, inner in CASES:
        in_netns(lambda o=outer, i=inner: check(o, i))  # type: ignore[misc]


def test_the_map_is_refused_where_runs_nest() -> None:
    with pytest.raises(RefusedError, match="can nest"):
        transform_object(corpus("tc_clone"), Request(index=0, saved_code="map"))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_why_the_map_is_refused(strategy: str, tmp_path: Path, bpffs: Path) -> None:
    """Taken on by --allow nested-runs: the inner run resets the outer one's SHOT."""

    def work() -> None:
        ifindex = make_pair()
        with (
            nested_chain(tmp_path, SHOT, 0, 0, 1, strategy, "tcx", "map") as (chain, _),
            ExitStack() as stack,
        ):
            attach(stack, chain.head, ifindex, "tcx", bpffs)
            ctx = bytes(8) + U32.pack(MARK) + bytes(28) + U32.pack(ifindex) + bytes(148)
            assert chain.run(FRAME, ctx).signed == 0
            assert chain.run(FRAME, bytes(192)).signed == SHOT  # not nested

    in_netns(work)

"""Codes that are easily got wrong: dirty upper halves, 0 and -1 saved, codes in S and in R."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from bpfchain.transform.request import Request
from bpfchain.verify.reference import chain_result, low32
from semantics.chains import (
    ANY,
    STRATEGIES,
    Single,
    Spec,
    excluding,
    listed,
    load_chain,
    options_of,
    patched,
)
from semantics.places import XDP
from semantics.tally import TALLY
from support.bpfcode import U32, U64

PACKET = bytes(64)
KEY = U32.pack(0)
XDP_SPECS = [
    Spec(success, redirect)
    for success in (listed(2), listed(0), ANY, excluding(2), excluding(0), listed(1, 4), listed())
    for redirect in ((), (2,), (0,), (0, 4), (1, 3))
]
XDP_SAVED = "0,1,2,3,4"
XDP_STATES = (None, 0, 1, 2, 3, 4)
# the low halves are every code of XDP and some that are none
DIRTY = (
    0x1_0000_0002, 0xFFFF_FFFF_0000_0002, 0x2, 0x1_0000_0000, 0x8000_0000_0000_0000, 0,
    0x2_0000_0004, 0x7FFF_FFFF_0000_0001, 0xFFFF_FFFF_FFFF_FFFF, 0xFFFF_FFFF, 0x8000_0002,
    0x1_8000_0002, 3, 0x3_0000_0003, 0xFFFF_FFFE_FFFF_FFFF,
)  # fmt: skip


def request(spec: Spec, strategy: str = "auto", **options: Any) -> Request:
    return Request(
        index=2, success=spec.success.option, strategy=strategy,
        redirect=",".join(map(str, spec.redirect)) or None, **options,
    )  # fmt: skip


def check(link: Single, spec: Spec, state: int | None, code: int, ctx: bytes | None = None) -> None:
    """One run of an entry of a link whose program returns ``code`` (64 bits)."""
    seen, _ = link.run(state, PACKET, ctx)
    right = link.right(spec, state, low32(code))
    TALLY.add("entry runs of one link")
    assert seen == right, f"{link.made.strategy} {spec} in state {state}, r0 {code:#x}: not {right}"


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_dirty_upper_half(strategy: str, last: bool) -> None:
    """The kernel sees the low 32 bits of r0, so the chain does; the code is not known to the patch."""
    for spec in XDP_SPECS:
        made = patched("dirty_upper_var", request(spec, strategy, saved=XDP_SAVED, last=last))
        with Single(made) as link:
            data = link.map(".data")
            for _ in ("next absent", "next there"):
                for code, state in itertools.product(DIRTY, XDP_STATES):
                    data.update(KEY, U64.pack(code))
                    check(link, spec, state, code)
                link.mark()


@pytest.mark.parametrize("mode", ["slots", "map"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_dirty_upper_half_along_a_chain(strategy: str, mode: str) -> None:
    """Three links, what is saved is the low half."""
    codes = (0x1_0000_0002, 0xFFFF_FFFF_0000_0004, 0x1_0000_0000, 0x2_0000_0001, 0xFFFF_FFFF)
    for success, redirect in ((listed(2), (4,)), (ANY, (0, 4)), (excluding(1), (0,))):
        spec = Spec(success, redirect)
        made = []
        for index in range(3):
            saved = redirect if index else ()
            options = options_of(strategy, mode, saved, last=False)
            made.append(patched("dirty_upper_var", replace(request(spec, **options), index=index)))
        with load_chain(XDP, made, mode) as chain:
            data = [
                chain.map(n, next(name for name in chain.maps(n) if name.endswith(".data")))
                for n in range(3)
            ]
            for vector in itertools.product(codes, repeat=3):
                for values, code in zip(data, vector, strict=True):
                    values.update(KEY, U64.pack(code))
                right, _ = chain_result([spec] * 3, lambda n, v=vector: v[n])  # type: ignore[misc]
                assert chain.run(PACKET).signed == right, f"{strategy} {mode} {spec} {vector}"
                TALLY.add("chain runs")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_dirty_upper_half_known(strategy: str) -> None:
    """A constant that the patch can see."""
    for spec in XDP_SPECS:
        with Single(patched("dirty_upper", request(spec, strategy, saved=XDP_SAVED))) as link:
            for _ in ("next absent", "next there"):
                for state in XDP_STATES:
                    check(link, spec, state, 0x1_0000_0002)
                link.mark()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("obj", "code"), [("always_pass", 2), ("always_drop", 1)])
@pytest.mark.parametrize("last", [False, True])
def test_always_one_code(obj: str, code: int, strategy: str, last: bool) -> None:
    for spec in XDP_SPECS:
        options = request(spec, strategy, saved=XDP_SAVED, last=last)
        with Single(patched(obj, options)) as link:
            for _ in ("next absent", "next there"):
                for state in XDP_STATES:
                    check(link, spec, state, code)
                link.mark()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("last", [False, True])
def test_several_constants(strategy: str, last: bool) -> None:
    """Exits with different constants; which one is taken follows from the packet's length."""
    by_length = {60: 2, 150: 1, 250: 4, 350: 3, 450: 2, 600: 2}
    for spec in XDP_SPECS:
        options = request(spec, strategy, saved=XDP_SAVED, last=last)
        with Single(patched("exits_const", options)) as link:
            for _ in ("next absent", "next there"):
                for (length, code), state in itertools.product(by_length.items(), XDP_STATES):
                    seen, _run = link.run(state, bytes(length))
                    assert seen == link.right(spec, state, code), f"{spec} {state} {length}"
                    TALLY.add("entry runs of one link")
                link.mark()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_minus_one_and_nine_on_tc(strategy: str, last: bool) -> None:
    """-1 in 64 bits and in 32, and 9, which has no name: in S and out of it, -1 saved too."""
    by_mark = {0: 0xFFFF_FFFF_FFFF_FFFF, 1: 0xFFFF_FFFF, 2: 9}
    by_mark |= {mark: mark for mark in (3, 4, 7, 8, 10, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF)}
    for spec in (
        Spec(excluding(2, 4, 7, 8)), Spec(excluding(-1)), Spec(excluding(9)), Spec(listed(-1)),
        Spec(listed(9)), Spec(listed(-1, 9), (7,)), Spec(ANY, (-1,)), Spec(listed(), (-1, 3)),
        Spec(excluding(-1, 9), (-1, 4)), Spec(listed(9), (-1,)),
    ):  # fmt: skip
        for hook in ("tc", "tcx/ingress"):
            options = request(spec, strategy, saved="-1,0,7", last=last, hook=hook)
            with Single(patched("tc_unspec", options)) as link:
                for _ in ("next absent", "next there"):
                    for (mark, code), state in itertools.product(by_mark.items(), (None, -1, 0, 7)):
                        # struct __sk_buff: len, pkt_type, mark
                        check(link, spec, state, code, bytes(8) + U32.pack(mark) + bytes(180))
                    link.mark()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_unknown_code_where_it_is_bounded(strategy: str, last: bool) -> None:
    """cgroup_skb egress, the code a map's value masked to two bits."""
    states = (None, 0, 1, 2, 3)
    for success, redirect in itertools.product(
        (listed(1, 3), listed(0), listed(2, 3), ANY, excluding(0), listed()),
        ((), (0,), (1,), (2, 3), (0, 1, 2, 3)),
    ):
        spec = Spec(success, redirect)
        options = request(spec, strategy, saved="0,1,2,3", last=last)
        with Single(patched("cgroup_egress_unknown", options)) as link:
            verdict = link.map("verdict")
            for _ in ("next absent", "next there"):
                for code, state in itertools.product(range(8), states):
                    verdict.update(KEY, U32.pack(code))
                    check(link, spec, state, code & 3)
                link.mark()

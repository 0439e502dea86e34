"""Whole chains of 1, 2, 3 and 33 links, in both strategies and modes, against the reference."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from semantics.chains import (
    ANY,
    LINKS_MAX,
    STRATEGIES,
    Driven,
    Markers,
    Place,
    Spec,
    between,
    excluding,
    listed,
)
from semantics.places import (
    BIG,
    LEAST,
    NETFILTER,
    RUN,
    SKB_IN,
    SKB_OUT,
    SOCKET,
    TC,
    TCX_IN,
    XDP,
    redirects,
    specs,
    successes,
)

XDP_SPECS = (
    Spec(XDP.default),  # R empty
    Spec(XDP.default, (4,)),  # one code, no overlap
    Spec(XDP.default, (2,)),  # S and R the same
    Spec(listed(1, 3), (0,)),  # a list; code 0 saved
    Spec(between(1, 3), (3, 4)),  # a range that R cuts
    Spec(ANY, (0, 4)),  # R inside any
    Spec(excluding(1), (1, 2)),  # R across a complement
    Spec(listed(), (0, 1, 2, 3, 4)),  # nothing but R
    Spec(listed()),  # nothing goes on
    Spec(ANY),
)
TC_SPECS = (
    Spec(TC.default),
    Spec(TC.default, (7,)),
    Spec(excluding(2, 9), (-1, 0)),
    Spec(between(LEAST, -1), (2, 8)),
    Spec(listed(-1, 9), (-1,)),
    Spec(ANY, (4, 7, -1)),
)
EGRESS_SPECS = tuple(
    Spec(s, r) for s in (SKB_OUT.default, listed(0), ANY) for r in ((), (0,), (1, 2))
)
MAP_CODES = Spec(excluding(2), (9, -5, BIG))
"""On tc a saved code in the per-CPU map can be any (slots have states for the known ones)."""

# who is who along a chain: both strategies next to each other and to themselves
PAIRS = tuple(itertools.product(STRATEGIES, STRATEGIES))
TRIPLES = (("inline",) * 3, ("subprog",) * 3, ("inline", "subprog", "inline"))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("mode", ["slots", "map"])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("place", RUN, ids=lambda place: place.name)
def test_one_link(place: Place, strategy: str, mode: str, last: bool) -> None:
    """A chain of one returns what its program does."""
    for spec in specs(place)[::3]:
        with Driven(place, [spec], [strategy], mode, last) as chain:
            chain.check_all(place.driven)


@pytest.mark.parametrize("mode", ["slots", "map"])
@pytest.mark.parametrize(("first", "second"), PAIRS)
@pytest.mark.parametrize(
    ("place", "chosen", "codes"),
    [
        (XDP, XDP_SPECS, (0, 1, 2, 3, 4, -1)),
        (TC, TC_SPECS, (-1, 0, 2, 3, 4, 7, 8, 9, BIG, LEAST)),
        (SKB_OUT, EGRESS_SPECS, (0, 1, 2, 3)),
    ],
    ids=["xdp", "tc", "egress"],
)
def test_two_links(
    place: Place,
    chosen: tuple[Spec, ...],
    codes: tuple[int, ...],
    first: str,
    second: str,
    mode: str,
) -> None:
    for number, pair in enumerate(itertools.product(chosen, chosen)):
        with Driven(place, pair, (first, second), mode, last=number % 2 == 1) as chain:
            chain.check_all(codes)


@pytest.mark.parametrize("mode", ["slots", "map"])
@pytest.mark.parametrize("kinds", TRIPLES, ids=["inline", "subprog", "mixed"])
def test_three_links(kinds: tuple[str, ...], mode: str) -> None:
    """Every triple of six specs; the codes that some S or R tells apart."""
    for number, triple in enumerate(itertools.product(XDP_SPECS[1:7], repeat=3)):
        with Driven(XDP, triple, kinds, mode, last=number % 2 == 0) as chain:
            chain.check_all((0, 1, 2, 4))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_three_links_on_tc(strategy: str) -> None:
    for triple in itertools.product(TC_SPECS[1:], repeat=3):
        with Driven(TC, triple, (strategy,) * 3) as chain:
            chain.check_all((-1, 2, 7, 9))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_any_code_saved_in_the_map(strategy: str) -> None:
    """Codes that have no state: 9, a negative one, the greatest."""
    with Driven(TC, [MAP_CODES] * 3, [strategy] * 3, "map") as chain:
        chain.check_all((9, -5, BIG, -1, 0, 2))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("place", [XDP, TC, SKB_OUT], ids=lambda place: place.name)
def test_map_is_reset_on_every_run(place: Place, strategy: str) -> None:
    """What one run saved is not there in the next, however the run before ended."""
    code = place.saveable[0]
    other = 3
    link = Spec(ANY, (code,))
    leaver = Spec(listed(other), (code,))
    for kinds in ([link] * 3, [link, leaver, link], [leaver, link, link]):
        with Driven(place, kinds, [strategy] * 3, "map") as chain:
            for before in (
                (code, other, other),
                (code, code, code),
                (code, 1, 1),
                (other, code, 1),
            ):
                chain.check(before)
                chain.check((other, other, other))
                chain.check((other, other, other))


@pytest.mark.parametrize("mode", ["slots", "map"])
@pytest.mark.parametrize("kinds", ["inline", "subprog", "mixed"])
def test_thirty_three_links(kinds: str, mode: str) -> None:
    """The end at each link, a code saved at each, and what a full chain does at its end.

    Link 0's slot in the first state that a code can be saved in stands right behind the slot of
    link 32 in state none: it holds a marker that must never run.
    """
    cycle = ("inline", "subprog") if kinds == "mixed" else (kinds,)
    strategies = [cycle[n % len(cycle)] for n in range(LINKS_MAX)]
    spec = Spec(listed(2, 3), (0, 4))
    with (
        Markers(XDP.type, XDP.attach) as markers,
        Driven(XDP, [spec] * LINKS_MAX, strategies, mode) as chain,
    ):
        if mode == "slots":
            trap = markers.make(0, 4711)
            for state in range(1, 8):
                chain.chain.slots.set_fd(state * LINKS_MAX, trap.fileno())
        passing = [2] * LINKS_MAX
        chain.check(passing)
        for end in (2, 3, 4, 0, 1, 5, -1):
            chain.check([*passing[1:], end])
        for place in range(LINKS_MAX):
            for code in (1, 4, 0):
                chain.check([*passing[:place], code, *passing[place + 1 :]])
                if place < LINKS_MAX - 2:
                    chain.check([*passing[:place], code, *passing[place + 2 :], 1])
        numbers = random.Random(33)
        for _ in range(200):
            chain.check(numbers.choices((2, 3, 4, 0, 1), (40, 20, 3, 3, 1), k=LINKS_MAX))
        assert markers.ran(1) == []


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("place", [TC, SKB_OUT, SOCKET], ids=lambda place: place.name)
def test_thirty_three_links_elsewhere(place: Place, strategy: str) -> None:
    code = place.saveable[0]
    with Driven(place, [Spec(ANY, (code,))] * LINKS_MAX, [strategy] * LINKS_MAX) as chain:
        for at in range(LINKS_MAX):
            chain.check([1] * at + [code] + [1] * (LINKS_MAX - at - 1))
        chain.check([1] * LINKS_MAX)


@st.composite
def chains(draw: st.DrawFn) -> tuple[Place, list[Spec], list[str], str, bool, list[list[int]]]:
    place = draw(st.sampled_from((XDP, TC, TCX_IN, SKB_IN, SKB_OUT, SOCKET, NETFILTER)))
    some_success, some_redirect = successes(place), redirects(place)
    length = draw(st.one_of(st.integers(1, 6), st.integers(7, LINKS_MAX)))
    links = draw(
        st.lists(
            st.builds(Spec, st.sampled_from(some_success), st.sampled_from(some_redirect)),
            min_size=length, max_size=length,
        )
    )  # fmt: skip
    kinds = draw(st.lists(st.sampled_from(STRATEGIES), min_size=length, max_size=length))
    # codes that go on at their link are drawn more often, so that long chains are walked
    codes = []
    for link in links:
        on = [c for c in place.driven if c in link.success or c in link.redirect]
        every = st.sampled_from(place.driven)
        codes.append(st.one_of(st.sampled_from(on), st.sampled_from(on), every) if on else every)
    vectors = draw(st.lists(st.tuples(*codes).map(list), min_size=3, max_size=8))
    mode = draw(st.sampled_from(("slots", "slots", "map")))
    return place, links, kinds, mode, draw(st.booleans()), vectors


@settings(
    deadline=None, max_examples=100, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip
@given(chains())
def test_random_chains(
    drawn: tuple[Place, list[Spec], list[str], str, bool, list[list[int]]],
) -> None:
    place, links, kinds, mode, last, vectors = drawn
    with Driven(place, links, kinds, mode, last) as chain:
        for codes in vectors:
            chain.check(codes)

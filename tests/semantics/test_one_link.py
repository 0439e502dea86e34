"""One link at a time: every S and R, started in every state, next link absent or there, or last."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from bpfchain.transform.errors import BpfchainError
from bpfchain.transform.transform import transform_object
from bpfchain.verify.reference import step
from semantics.chains import (
    KEY,
    S32,
    STRATEGIES,
    Markers,
    Place,
    Spec,
    corpus,
    load_chain,
    options_of,
    patched,
)
from semantics.places import LOAD_ONLY, RUN, XDP, specs
from semantics.tally import TALLY
from support.bpfcode import U64

INDEXES = (1, 7, 31)
MARKED = 5000
"""What the marker in place of the next link returns, plus its state's number."""


def name_of(place: Place) -> str:
    return f"{place.name}:{place.program}"


def check_link(
    place: Place, spec: Spec, saved: Sequence[int], index: int, strategy: str, last: bool
) -> int:
    """Run each entry of one link through all codes; how many comparisons that were.

    With the slots behind it empty, then with a marker in the slot of every state.
    """
    made = patched(
        place.obj, place.request(index, spec, **options_of(strategy, "slots", saved, last))
    )
    ends = last or index == 32
    entry_of = {entry.state: entry for entry in made.entries}
    assert set(entry_of) == {None, *saved}
    checks = 0
    with (
        Markers(place.type, place.attach) as markers,
        load_chain(place, [made]) as chain,
    ):
        verdict, runs = chain.map(index, "verdict"), chain.map(index, "runs")
        programs = {s: chain.program(index, entry.name) for s, entry in entry_of.items()}
        states: tuple[int | None, ...] = (None, *place.saveable)

        def run_all(expect: Callable[[int, int | None], tuple[int, list[int]]]) -> int:
            before = U64.unpack(runs.lookup(KEY) or b"")[0]
            for code in place.driven:
                verdict.update(KEY, S32.pack(code))
                for state, program in programs.items():
                    result = place.test_run(program).signed
                    seen = (result, markers.ran(len(states)))
                    assert seen == expect(code, state), (
                        f"{place.name}: link {index} {spec} {made.strategy}"
                        f"{' last' if last else ''} in state {state}, code {code}: (result, markers"
                        f" run) {seen}; right: {expect(code, state)}"
                    )
            count = len(place.driven) * len(programs)
            assert U64.unpack(runs.lookup(KEY) or b"")[0] - before == count
            return count

        def absent(code: int, state: int | None) -> tuple[int, list[int]]:
            goes_on, then = step(spec, state, code)
            return (then if goes_on and then is not None else code), []

        def there(code: int, state: int | None) -> tuple[int, list[int]]:
            goes_on, then = step(spec, state, code)
            if not goes_on or ends:
                return absent(code, state)
            number = states.index(then)
            return (1 if place.checked else MARKED + number), [number]

        checks += run_all(absent)
        for number, state in enumerate(states):
            slot = made.link.hook.slot(state, index + 1)
            marker = markers.make(number, 1 if place.checked else MARKED + number)
            chain.slots.set_fd(slot, marker.fileno())
        checks += run_all(there)
    return checks


def some(codes: Sequence[int], number: int) -> list[int]:
    """All codes, or where they are many (tc) four of them, others each time."""
    return [codes[(number + k * 3) % len(codes)] for k in range(4)] if len(codes) > 5 else [*codes]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("place", RUN, ids=name_of)
def test_every_state_and_code(place: Place, strategy: str) -> None:
    """The next link absent, then there, in each state; ``--last``, in each state."""
    indexes = itertools.cycle(INDEXES)
    checks = 0
    # tcx is tc with another default, the lwt types are one: all of it there, a part of it here
    alike = ("tcx/ingress", "tcx/egress", "lwt_in", "lwt_out")
    chosen = specs(place)[:: 4 if place.name in alike else 1]
    for number, (spec, last) in enumerate(itertools.product(chosen, (False, True))):
        saved = some(place.saveable, number)
        checks += check_link(place, spec, saved, next(indexes), strategy, last)
    for spec in chosen[::3]:
        checks += check_link(place, spec, (), 0, strategy, last=False)
    TALLY.add("entry runs of one link", checks)
    assert checks > 100


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_highest_index_calls_nothing(strategy: str) -> None:
    """Link 32 ends the chain: behind it in the array stands link 0 of the next state, and a call
    there would run it. Every slot but the link's own holds a marker here."""
    for spec in specs(XDP):
        saved = XDP.saveable
        made = patched(
            XDP.obj, XDP.request(32, spec, **options_of(strategy, "slots", saved, False))
        )
        own = {entry.slot for entry in made.entries}
        with (
            Markers(XDP.type, XDP.attach) as markers,
            load_chain(XDP, [made]) as chain,
        ):
            marker = markers.make(0, MARKED)
            for slot in set(range(made.link.hook.slots)) - own:
                chain.slots.set_fd(slot, marker.fileno())
            verdict = chain.map(32, "verdict")
            for code in XDP.driven:
                verdict.update(KEY, S32.pack(code))
                for entry in made.entries:
                    goes_on, then = step(spec, entry.state, code)
                    right = then if goes_on and then is not None else code
                    result = XDP.test_run(chain.program(32, entry.name)).signed
                    assert (result, markers.ran(1)) == (right, []), f"{spec} {entry} {code}"
                    TALLY.add("entry runs of one link")


CASES = [(place, "map") for place in RUN] + [(p, m) for p in LOAD_ONLY for m in ("slots", "map")]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("place", "mode"), CASES, ids=[f"{name_of(place)}-{mode}" for place, mode in CASES]
)
def test_every_combination_loads(place: Place, strategy: str, mode: str) -> None:
    """The verifier takes each link, also where it bounds what a program may return."""
    ends = itertools.cycle((False, True, False))
    chosen = specs(place) if place.checked or len(place.saveable) < 6 else specs(place)[::2]
    for spec, index in itertools.product(chosen, (0, 5)):
        saved = place.saveable if index else ()
        options = options_of(strategy, mode, saved, next(ends))
        with load_chain(place, [patched(place.obj, place.request(index, spec, **options))]):
            TALLY.add("links loaded")


@pytest.mark.parametrize("option", ["success", "redirect", "saved"])
@pytest.mark.parametrize(
    "place", [p for p in LOAD_ONLY if p.legal == (1,)], ids=lambda place: place.name
)
def test_a_code_that_the_hook_cannot_return_is_refused(place: Place, option: str) -> None:
    """Where the verifier allows 1 and nothing else, 0 is outside of the hook's range: an entry
    program that returns a saved 0 would not load."""
    request = replace(place.request(5, Spec(place.default)), **{option: "0"})  # type: ignore[arg-type]
    with pytest.raises(BpfchainError):
        transform_object(corpus(place.obj), request)

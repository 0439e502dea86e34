"""What a patched link must do where the original did this: the reference, applied to one link.

The original's own code and ``reference.step`` decide; nothing here asks the transformer.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

from bpfchain.transform.policy import LINKS_MAX
from bpfchain.verify.static.intent import Intent

from .engines.protocol import NO_MARKER, Marker, Runs, Slots
from .reference import ReferenceLink, low32, step

__all__ = [
    "SAVED_SET", "Case", "Expected", "Failure", "cases_of", "expect", "marker_slots", "slot_of",
]  # fmt: skip

SAVED_SET = 1 << 32
"""In the per-CPU map of ``--saved-code map``: a code is saved (0 is a legal one)."""


class Case(NamedTuple):
    """One way to run the patched link: the state it starts in, and whether a link follows."""

    state: int | None
    marked: bool

    def __str__(self) -> str:
        state = "nothing saved" if self.state is None else f"{self.state} saved"
        return f"{state}, {'a link behind it' if self.marked else 'no link behind it'}"


class Failure(NamedTuple):
    """How a difference was seen: the byte that the stack was filled with, and the case."""

    fill: int
    case: Case


class Expected(NamedTuple):
    """By packet: the marker that must end the run (or NO_MARKER) and else the verdict; then what
    must be saved at the end (mode ``map``)."""

    ended: Sequence[int]
    codes: Sequence[int]
    saved: int | None


def reference_link(intent: Intent) -> ReferenceLink:
    """S and R as the reference takes them: it asks only whether a code is in them."""
    return cast(ReferenceLink, (intent.success, intent.redirect))


def slot_of(intent: Intent, state: int | None, index: int) -> int:
    """The entry of the slots map for link ``index`` in ``state``; with the code in a map, by index
    alone."""
    if intent.mode == "map":
        return index
    return intent.hook.state_of(state) * LINKS_MAX + index


def marker_slots(intent: Intent) -> Slots:
    """A marker in every slot, its tag the slot: a jump to a wrong one is told from the end."""
    return {slot: Marker(slot) for slot in range(intent.hook.slots)}


def cases_of(intent: Intent) -> Iterator[Case]:
    """All states in which the link may start; with and without a link behind it."""
    if intent.mode == "map":
        states: list[int | None] = [None]
        named = [code.value for code in intent.hook.codes if code.value in intent.hook.legal]
        states += list(dict.fromkeys((*list(intent.redirect)[:2], *named[:1], *named[-1:])))
    else:
        states = list(intent.states)
    for state in states:
        yield Case(state, True)
        yield Case(state, False)


def expect(intent: Intent, original: Runs, case: Case) -> Expected:
    """What the reference says of every packet, from what the original returned for it.

    In mode ``map`` what one packet saves is what the next one finds, where the link is not the
    first: only link 0 begins with nothing saved.
    """
    if intent.mode == "map":
        return _expect_map(intent, original, case)
    # a recording may have millions of packets, which return a few codes
    slots, verdicts = {}, {}
    for own in set(original.codes):
        slots[own], verdicts[own] = _one(intent, case.state, own, case.marked)[:2]
    ended = array("i", map(slots.__getitem__, original.codes))
    codes = array("i", map(verdicts.__getitem__, original.codes))
    if set(original.ended) != {NO_MARKER}:
        for position, how in enumerate(original.ended):
            if how != NO_MARKER:
                ended[position], codes[position] = how, original.codes[position]
    return Expected(ended, codes, None)


def _one(
    intent: Intent, state: int | None, own: int, marked: bool
) -> tuple[int, int, int | None, bool]:
    """One run: the slot that must be reached (or NO_MARKER), else the verdict; the state then, and
    whether the chain went on."""
    goes_on, then = step(reference_link(intent), state, own)
    if not goes_on:
        return NO_MARKER, low32(own), state, False
    if marked and not intent.ends:
        return slot_of(intent, then, intent.index + 1), 0, then, True
    return NO_MARKER, (low32(own) if then is None else then), then, True


def _expect_map(intent: Intent, original: Runs, case: Case) -> Expected:
    saved = case.state
    ended, codes = [], []
    for own, how in zip(original.codes, original.ended, strict=True):
        if how != NO_MARKER:
            ended.append(how)
            codes.append(own)
            continue
        state = saved if intent.index else None
        slot, code, then, on = _one(intent, state, own, case.marked)
        ended.append(slot)
        codes.append(code)
        if on and not intent.ends:
            saved = then
    return Expected(ended, codes, saved)


def saved_value(code: int | None) -> bytes:
    """What the per-CPU map holds for a saved code."""
    value = 0 if code is None else SAVED_SET | code & 0xFFFF_FFFF
    return value.to_bytes(8, "little")


def saved_text(intent: Intent, value: bytes) -> str:
    """Such a value in words."""
    number = int.from_bytes(value[:8], "little")
    if not number:
        return "nothing saved"
    if number >> 32 != 1:
        return f"{number:#x}"
    return f"{intent.hook.name_of(low32(number))} saved"


def describe(
    intent: Intent, ended: int, code: int, fault: object, names: Sequence[str] = ()
) -> str:
    """An outcome in words: ``verdict PASS``, ``link 2 with REDIRECT saved``, a fault."""
    if fault is not None:
        return f"fault: {fault}"
    if ended == NO_MARKER:
        return f"verdict {intent.hook.name_of(code)}"
    state, index = (0, ended) if intent.mode == "map" else divmod(ended, LINKS_MAX)
    if state == 0:
        return f"link {index}" + ("" if intent.mode == "map" else " with nothing saved")
    code_names = [known.name for known in intent.hook.codes if known.state == state]
    return f"link {index} with {code_names[0] if code_names else f'state {state}'} saved"

"""Finishing or taking back what an operation that was killed left; and freeing old generations."""

from __future__ import annotations

from dataclasses import dataclass

from bpfchain.loader import grace
from bpfchain.loader.hooks.clsact import remove_unused_qdisc
from bpfchain.loader.situation import Situation
from bpfchain.loader.store import (
    Generation,
    Record,
    drop_new,
    drop_unnamed,
    finish_new,
    remove_generation,
    remove_rest,
    unnamed,
)
from bpfchain.transform.errors import HostError


@dataclass(frozen=True, slots=True)
class Unfinished:
    """One thing that an operation left, and what the next command does about it."""

    what: str
    """For ``status``: ``replace of link 1: the new program is in its slot, its pins are not``."""
    will: str
    """``finish it``, ``take it back`` …"""


def unfinished(situation: Situation) -> list[Unfinished]:
    """What :func:`repair` would do, without doing it."""
    found: list[Unfinished] = []
    if situation.empty or situation.strange:
        return found
    current = situation.current
    if current is None:
        if situation.gone is not None and situation.complete:
            found.append(Unfinished(f"the chain is not attached: {situation.gone}", "free it"))
        else:
            found.append(Unfinished(
                "nothing is attached: a load or unload was cut short, or someone detached the chain",
                "free what is left",
            ))  # fmt: skip
        return found
    for one in situation.superfluous:
        found.append(Unfinished(
            f"generation {one.number} is there and does not run: a recreate or rollback was cut "
            "short", "free it",
        ))  # fmt: skip
    for folder in situation.partial:
        found.append(Unfinished(f"generation {folder.name[1:]} is incomplete", "free it"))
    for kept in (current, situation.previous):
        if kept is not None:
            found += _in_generation(kept, situation)
    return found


def _in_generation(one: Generation, situation: Situation) -> list[Unfinished]:
    what = f"a replace in generation {one.number} was cut short"
    if one.new_record is not None:
        if slot_updated(one, one.new_record, situation):
            return [Unfinished(f"{what}: the new program runs", "finish it")]
        return [Unfinished(f"{what}: the old program runs", "take it back")]
    if any(name.startswith("new_") for name in one.names()):
        return [Unfinished(f"{what}: the old program runs", "take it back")]
    if unnamed(one.folder, one.whole):
        return [Unfinished(f"{what}: old maps are still there", "free them")]
    return []


def slot_updated(one: Generation, new: Record, situation: Situation) -> bool:
    """Whether the one edit of a replace was made: the kernel is asked what runs."""
    changed = [
        name for name, number in new.pins.items()
        if name[:1] == "p" and one.whole.pins.get(name) != number
    ]  # fmt: skip
    assert len(changed) == 1, f"a replace changes one program, not {changed}"
    number, slot = new.pins[changed[0]], int(changed[0][1:])
    if slot == 0:
        return situation.running == number
    with one.slots() as slots:
        return slots.slot(slot) == number


def repair(situation: Situation) -> tuple[str, ...]:
    """Bring a chain into one of two states: running with all its pins, or not there at all.

    The caller holds the lock. Answers what was done, one line each; then ``situation`` is out of
    date. HostError where the chain's attachment runs a program of no generation.
    """
    if situation.strange:
        raise HostError(
            f"{situation.place}: the hook runs program {situation.running}, which is of no "
            "generation: someone else exchanged it",
            "`bpfchain unload` detaches it and frees the chain",
        )
    todo = unfinished(situation)
    if not todo:
        return ()
    grace.wait()  # what is freed below may have been exchanged a moment ago
    if situation.current is None:
        free_all(situation)
    else:
        for folder in situation.partial:
            remove_generation(folder)
        for one in situation.superfluous:
            remove_generation(one.folder)
        for kept in (situation.current, situation.previous):
            if kept is not None:
                _settle(kept, situation)
    return tuple(f"{one.what}: {_DONE[one.will]}" for one in todo)


_DONE = {
    "finish it": "finished",
    "take it back": "taken back",
    "free it": "freed",
    "free them": "freed",
    "free what is left": "freed",
}


def _settle(one: Generation, situation: Situation) -> None:
    new = one.new_record
    if new is not None and slot_updated(one, new, situation):
        finish_new(one)
        return
    drop_new(one)
    drop_unnamed(one.folder, one.whole)


def detach(situation: Situation) -> None:
    """End the chain's attachment, if there is one, and wait until no packet is in it."""
    attachment = situation.attachment
    if attachment is not None:
        attachment.detach()
        attachment.unpin(situation.place.link)
        grace.wait()


def free_all(situation: Situation) -> None:
    """Remove every pin of a chain that is not attached (any more); the grace period has passed."""
    if situation.place.qdisc.exists() and situation.target and situation.gone is None:
        remove_unused_qdisc(situation.target)
    for one in situation.complete:
        remove_generation(one.folder)
    for folder in situation.partial:
        remove_generation(folder)
    remove_rest(situation.place)

"""``rollback``: back to the generation before, in one swap of the head."""

from __future__ import annotations

from bpfchain.loader import grace
from bpfchain.loader.operations.common import (
    Done,
    check_swappable,
    opened,
    running,
    swap_head,
)
from bpfchain.loader.places import ChainPlace
from bpfchain.loader.store import Generation, remove_generation
from bpfchain.transform.errors import HostError, UsageError


def rollback(place: ChainPlace, *, fd: int | None = None) -> Done:
    """Swap the head for the one of the generation before, and free the generation that is left.

    UsageError where there is none before; HostError: the hook runs what it ran.
    """
    with opened(place, fd=fd) as state:
        situation = state.situation
        current = running(place, state)
        previous = situation.previous
        if previous is None:
            raise UsageError(
                f"{place}: there is no generation before {current.number}",
                "only a recreate leaves one; load the older manifest with `bpfchain recreate`",
            )
        target = situation.target
        assert target is not None, "a running chain has a target"
        check_swappable(situation)
        _check_whole(previous)
        with previous.program("p0") as new, situation.head() as old:
            swap_head(situation, new, old)
        grace.wait()
        remove_generation(current.folder)
        return Done(
            operation="rollback", place=place, target=target, generation=previous.number, before=current.number,
            repaired=state.repaired,
        )  # fmt: skip


def _check_whole(generation: Generation) -> None:
    """Every slot of it must hold what its record says."""
    record = generation.whole
    with generation.slots() as slots:
        for name, number in record.pins.items():
            if name[:1] == "p" and name != "p0" and slots.slot(int(name[1:])) != number:
                raise HostError(
                    f"generation {generation.number} is not whole: slot {name[1:]} does not hold "
                    f"program {number}",
                    "someone else changed it: `bpfchain recreate` builds a new one",
                )

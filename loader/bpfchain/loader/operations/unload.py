"""``unload``: the chain's end. Detach, wait, and only then release what packets may be in."""

from __future__ import annotations

from bpfchain.loader.operations.common import Done, looking
from bpfchain.loader.operations.repair import detach, free_all, unfinished
from bpfchain.loader.places import ChainPlace
from bpfchain.transform.errors import HostError, UsageError


def unload(place: ChainPlace, *, fd: int | None = None, force: bool = False) -> Done:
    """Detach the chain and free everything of it, whatever state it was left in.

    UsageError where it is not there, HostError. ``force``: free a chain on a socket that nobody
    hands over; if that lives, it is left with the head alone.
    """
    with looking(place, fd=fd) as situation:
        if situation.empty:
            raise UsageError(f"{place} is not loaded", "`bpfchain status` shows what is")
        left = tuple(one.what for one in unfinished(situation))
        number = situation.current.number if situation.current else None
        if situation.unseen and not force:
            raise HostError(
                f"{place}: only the owner of the socket can detach it",
                "hand the socket over with --socket FD; --force frees the chain where it is closed",
            )
        detach(situation)
        free_all(situation)
        return Done(
            operation="unload", place=place, target=situation.target, generation=None,
            before=number, repaired=left,
        )  # fmt: skip

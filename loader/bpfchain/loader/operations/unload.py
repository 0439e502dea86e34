"""``unload``: the chain's end. Detach, wait, and only then release what packets may be in."""

from __future__ import annotations

from bpfchain.loader import grace
from bpfchain.loader.operations.common import Done, opened
from bpfchain.loader.operations.repair import free_all
from bpfchain.loader.places import ChainPlace
from bpfchain.transform.errors import UsageError


def unload(place: ChainPlace, *, fd: int | None = None) -> Done:
    """Detach the chain and free everything of it. UsageError where it is not there, HostError."""
    with opened(place, fd=fd, strange=True) as state:
        situation = state.situation
        target = situation.target
        if target is None or situation.empty:
            if state.repaired:
                raise UsageError(f"{place} was not loaded any more: {'; '.join(state.repaired)}")
            raise UsageError(f"{place} is not loaded", "`bpfchain status` shows what is")
        if situation.attachment is not None:
            situation.attachment.detach()
            situation.attachment.unpin(place.link)
            grace.wait()
        free_all(situation)
    return Done(
        operation="unload", place=place, target=target, generation=None, repaired=state.repaired
    )

"""``recreate``: a new generation beside the old one, then one swap of the head (Algorithm 3.3)."""

from __future__ import annotations

from collections.abc import Collection

from bpfchain.loader import grace
from bpfchain.loader.generation import Source, build, kept_from, new_record
from bpfchain.loader.operations.common import (
    Done,
    Opened,
    check_swappable,
    opened,
    running,
    swap_head,
)
from bpfchain.loader.places import ChainPlace
from bpfchain.loader.preflight import check
from bpfchain.loader.store import remove_generation
from bpfchain.transform.errors import RefusedError


def recreate(
    source: Source, place: ChainPlace, *, keep_data: bool = False, fd: int | None = None
) -> Done:
    """Exchange the whole chain for the one of ``source``.

    The generation before stays for ``rollback`` until the next recreate. ``keep_data``: ``.data``
    and ``.bss`` go on with their content, as other maps of equal name and definition always do.
    RefusedError, UsageError, HostError: the hook runs what it ran.
    """
    with opened(place, fd=fd) as state:
        return recreate_in(state, source, place, keep_data=keep_data)


def recreate_in(
    state: Opened, source: Source, place: ChainPlace, *, keep_data: bool = False,
    bypassed: tuple[int, ...] = (), same: Collection[int] = (), operation: str = "recreate",
    why: str | None = None, embedded: Collection[str] = (),
) -> Done:  # fmt: skip
    """The same, under a lock that is held. ``same``: links that are the ones before, whatever their
    programs are called; ``embedded``: names of objects that no file has."""
    situation = state.situation
    current = running(place, state)
    target = situation.target
    assert target is not None, "a running chain has a target"
    check_swappable(situation)
    _check_same_hook(source, current.whole.manifest.hook.name, place)
    entry = current.whole.entry
    warnings = check(source, target, entry=entry, bpffs=place.root.parent)
    number = current.number + 1
    kept = kept_from(current, source.manifest, data=keep_data, same=same)
    with (
        build(source, target, kept=kept, bypassed=bypassed, embedded=embedded) as built,
        situation.head() as old,
    ):
        record = new_record(
            built, source, target, number, operation, entry=entry, bypassed=bypassed
        )
        folder = place.generation(number)
        folder.mkdir()
        built.pin(folder, record)
        swap_head(situation, built.head, old)
    grace.wait()
    for one in situation.complete:
        if one.number < current.number:
            remove_generation(one.folder)
    return Done(
        operation="recreate", place=place, target=target, generation=number, before=current.number, why=why,
        repaired=state.repaired, notes=(*warnings, *built.fresh), kept=tuple(built.kept),
    )  # fmt: skip


def _check_same_hook(source: Source, hook: str, place: ChainPlace) -> None:
    new = source.manifest.hook.name
    if new != hook:
        raise RefusedError(
            f"the manifest is for hook {new}, {place} was loaded for {hook}",
            "load it as a chain of its own",
        )

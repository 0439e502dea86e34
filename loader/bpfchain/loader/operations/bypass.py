"""``bypass``: a built-in pass-through program in the place of a link, so that it is skipped."""

from __future__ import annotations

from pathlib import Path

from bpfchain.loader.generation import Built, Source
from bpfchain.loader.generation import bypass as pass_through
from bpfchain.loader.operations.common import Done, Opened, check_swappable, opened, running
from bpfchain.loader.operations.recreate import recreate_in
from bpfchain.loader.operations.replace import exchange, whole_source
from bpfchain.loader.places import ChainPlace
from bpfchain.loader.store import Generation
from bpfchain.transform.errors import RefusedError, UsageError
from bpfchain.transform.manifest_link import LinkRecord


def bypass(place: ChainPlace, index: int, *, fd: int | None = None) -> Done:
    """Skip link ``index``: the links before it go on to the one behind it.

    One slot update where one state reaches the link, else a recreate from the chain's objects with
    pass-through programs in all of its slots. The last link cannot be skipped so: what stood in
    its place would not know the code to return. UsageError, RefusedError, HostError.
    """
    with opened(place, fd=fd) as state:
        current = running(place, state)
        manifest = current.whole.manifest
        record = manifest.record(index)
        if record is None:
            raise UsageError(
                f"{place} has no link {index}", f"its links are 0 to {len(manifest.links) - 1}"
            )
        if index in current.whole.bypassed:
            raise UsageError(f"link {index} of {place} is bypassed already")
        if record is manifest.links[-1]:
            raise RefusedError(
                f"link {index} is the last of {place}: a program in its place would have no code "
                "to return",
                "`bpfchain recreate` with a manifest without it",
            )
        bypassed = tuple(sorted((*current.whole.bypassed, index)))
        if len(record.entries) == 1:
            return _in_place(state, current, record, place, bypassed)
        return _recreated(state, current, record, place, bypassed)


def _in_place(
    state: Opened, current: Generation, record: LinkRecord, place: ChainPlace,
    bypassed: tuple[int, ...],
) -> Done:  # fmt: skip
    situation = state.situation
    target = situation.target
    assert target is not None, "a running chain has a target"
    if record.index == 0:
        check_swappable(situation)
    whole = current.whole
    source = Source(whole.manifest, whole.folder, {})
    with Built() as built, current.slots() as slots:
        pass_through(built, record, slots)
        exchange(
            state, current, built, record, operation="bypass", place=place, source=source,
            bypassed=bypassed,
        )  # fmt: skip
    return Done(
        operation="bypass", place=place, target=target, generation=current.number,
        repaired=state.repaired,
    )  # fmt: skip


def _recreated(
    state: Opened, current: Generation, record: LinkRecord, place: ChainPlace,
    bypassed: tuple[int, ...],
) -> Done:  # fmt: skip
    manifest = current.whole.manifest
    why = f"{len(record.entries)} states reach link {record.index}, a slot each"
    given = current.objects()
    source = whole_source(manifest, Path(current.whole.folder), given, place)
    return recreate_in(
        state, source, place, bypassed=bypassed, operation="bypass", why=why,
        same=[one.index for one in manifest.links], embedded=given.keys(),
    )  # fmt: skip

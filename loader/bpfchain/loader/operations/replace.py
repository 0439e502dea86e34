"""``replace``: one link for another one, by one slot update where that is enough (Algorithm 3.2)."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from bpfchain.loader import grace
from bpfchain.loader.generation import (
    Built,
    Source,
    build_one,
    embed,
    kept_from,
    new_record,
    read_source,
)
from bpfchain.loader.operations.common import (
    Done,
    Opened,
    check_swappable,
    opened,
    running,
    swap_head,
    told,
)
from bpfchain.loader.operations.recreate import recreate_in
from bpfchain.loader.places import ChainPlace
from bpfchain.loader.preflight import check
from bpfchain.loader.situation import Situation
from bpfchain.loader.store import (
    NEW,
    Generation,
    Record,
    finish_new,
    map_pin,
    object_pin,
)
from bpfchain.loader.syscall import BpfError
from bpfchain.transform.errors import HostError, RefusedError, UsageError
from bpfchain.transform.manifest import Manifest
from bpfchain.transform.manifest_link import LinkRecord


def current_link(place: ChainPlace, index: int) -> LinkRecord:
    """Link ``index`` as it runs now, to patch an object like it. UsageError, HostError.

    Looked at without the lock: ``replace`` compares again under it.
    """
    with told(place), Situation(place) as situation:
        current = situation.current
        if current is not None:
            return _link(current.whole.manifest, index)
    with opened(place) as state:  # what is left of a chain that does not run is freed
        return _link(running(place, state).whole.manifest, index)


def _link(manifest: Manifest, index: int) -> LinkRecord:
    record = manifest.record(index)
    if record is None:
        raise UsageError(
            f"chain {manifest.chain} has no link {index}",
            f"its links are 0 to {len(manifest.links) - 1}",
        )
    return record


def replace(
    place: ChainPlace, record: LinkRecord, data: bytes, *, folder: Path | None, keep_data: bool = False,
    fd: int | None = None,
) -> Done:  # fmt: skip
    """Put the patched object ``data`` in the place of the link that ``record`` names.

    ``record.object`` is relative to ``folder``, which a recreate later reads it from; with None no
    file has the object, and it is pinned with the generation. Where one
    slot update is not enough the chain is recreated from its objects, and ``Done.why`` says why.
    RefusedError for an object that was patched otherwise than the running link, UsageError,
    HostError: the chain runs as it did.
    """
    if hashlib.sha256(data).hexdigest() != record.output_sha256:
        raise RefusedError(f"{record.label}: the record is of another object")
    with opened(place, fd=fd) as state:
        current = running(place, state)
        before = _link(current.whole.manifest, record.index)
        check_same(before, record)
        base = Path(current.whole.folder)
        if folder is not None:
            path = (folder / record.object).resolve()
            record = dataclasses.replace(record, object=os.path.relpath(path, base))
        manifest = current.whole.manifest.with_record(record)
        why = not_in_place(current, before, record)
        if why is not None:
            given = {**current.objects(), record.object: data}
            source = whole_source(manifest, base, given, place)
            embedded = given.keys() if folder is None else current.objects().keys()
            left = tuple(i for i in current.whole.bypassed if i != record.index)
            return recreate_in(
                state, source, place, keep_data=keep_data, why=why, operation="replace",
                bypassed=left, same=[one.index for one in manifest.links], embedded=embedded,
            )  # fmt: skip
        source = Source(manifest, str(base), {record.object: data})
        return _in_place(state, current, source, record, place, keep_data, embedded=folder is None)


def check_same(before: LinkRecord, after: LinkRecord) -> None:
    """Raise RefusedError where the new object was patched for something else than the link that it
    is to replace, or can be no part of the chain."""
    pairs = (
        ("hook", before.link.hook.name, after.link.hook.name),
        ("slots map", before.link.slots_map, after.link.slots_map),
        ("saved-code mode", before.link.mode, after.link.mode),
        ("S", before.link.success, after.link.success),
        ("R", before.link.redirect, after.link.redirect),
        ("saved codes", before.link.saved, after.link.saved),
        ("--last", before.link.last, after.link.last),
    )
    for what, old, new in pairs:
        if old != new:
            raise RefusedError(
                f"{after.object} was patched otherwise than link {before.index}: {what} differs",
                "give the unpatched object: it is patched as the running link was; or build a new "
                "manifest for `bpfchain recreate`",
            )
    if before.frags != after.frags:
        has, other = ("handles", "does not") if after.frags else ("does not handle", "does")
        raise RefusedError(
            f"{after.object} {has} frags (section {after.section}), link {before.index} {other}: "
            "the kernel lets it into no chain with the others",
            f"give the program a section like {before.section}",
        )


def not_in_place(current: Generation, before: LinkRecord, after: LinkRecord) -> str | None:
    """Why one slot update does not replace this link; None if it does."""
    index = before.index
    if len(before.entries) > 1:
        names = ", ".join(entry.name for entry in before.entries)
        return f"{len(before.entries)} states reach link {index} ({names}), a slot each"
    if after.pinned:
        return "the object was patched with --pin: loading it writes into the running slots"
    same_file = [r.index for r in current.whole.manifest.links if r.object == before.object]
    if len(same_file) > 1:
        return f"links {', '.join(map(str, same_file))} are one object with one set of maps"
    return None


def whole_source(
    manifest: Manifest, folder: Path, given: Mapping[str, bytes], place: ChainPlace
) -> Source:
    """All objects of the chain, for a recreate; ``given`` ones are not read from ``folder``.

    HostError, RefusedError if they are not there.
    """
    try:
        return read_source(manifest, folder, given)
    except (HostError, RefusedError) as error:
        raise type(error)(
            f"{place} must be recreated for this, which needs the objects of all links: "
            f"{error.message}",
            "`bpfchain recreate MANIFEST` with a manifest whose objects are there",
        ) from None


def _in_place(
    state: Opened, current: Generation, source: Source, record: LinkRecord, place: ChainPlace,
    keep_data: bool, embedded: bool,
) -> Done:  # fmt: skip
    situation = state.situation
    target = situation.target
    assert target is not None, "a running chain has a target"
    if record.index == 0:
        check_swappable(situation)
    warnings = check_one(source, record, current, place)
    kept = kept_from(current, source.manifest, data=keep_data, same=[record.index])
    with build_one(source, target, record.index, current, kept) as built:
        if embedded:
            embed(built, source, record)
        exchange(
            state, current, built, record, operation="replace", place=place, source=source,
            bypassed=tuple(i for i in current.whole.bypassed if i != record.index),
        )  # fmt: skip
    return Done(
        operation="replace", place=place, target=target, generation=current.number,
        repaired=state.repaired, notes=(*warnings, *built.fresh), kept=tuple(built.kept),
    )  # fmt: skip


def check_one(
    source: Source, record: LinkRecord, current: Generation, place: ChainPlace
) -> tuple[str, ...]:
    """The preflight of a manifest of which only one object is at hand."""
    return check(
        source, current.whole.target, entry=current.whole.entry, bpffs=place.root.parent,
        only=record.index,
    )  # fmt: skip


def exchange(
    state: Opened, current: Generation, built: Built, record: LinkRecord, *, operation: str,
    place: ChainPlace, source: Source, bypassed: tuple[int, ...],
) -> None:  # fmt: skip
    """Pin what is new beside what is there, make the one edit, wait, and rename.

    Killed anywhere, what the slot holds tells whether the next command finishes or takes back.
    """
    situation = state.situation
    target = situation.target
    assert target is not None, "a running chain has a target"
    slot = record.entries[0].slot
    old = current.whole
    stay = {name: number for name, number in old.pins.items() if not _of_link(name, record.index)}
    if operation == "bypass":
        stay = dict(old.pins)  # its maps stay, for the link to come back
    fresh: Record = new_record(
        built, source, target, current.number, operation, entry=old.entry, bypassed=bypassed,
        older=stay,
    )  # fmt: skip
    built.pin(current.folder, fresh, prefix=NEW)
    if slot == 0:
        with situation.head() as head:
            swap_head(situation, built.programs[0], head)
    else:
        with current.slots() as slots:
            try:
                slots.set_fd(slot, built.programs[slot].fileno())
            except BpfError as error:
                raise HostError(f"{place}: slot {slot}: {error}") from error
    grace.wait()
    current.__dict__.pop("new_record", None)  # look again
    finish_new(current)


def _of_link(name: str, index: int) -> bool:
    """Whether a pin is of this link's maps, or its object."""
    return name == object_pin(index) or name.startswith(
        (map_pin(index, "")[:-1], map_pin(index, "", programs=True)[:-1])
    )

"""``load``: a manifest becomes a running chain (Algorithm 3.1)."""

from __future__ import annotations

import contextlib

from bpfchain.loader.entry import ENTRY_ARRAY, check_code, entry_program
from bpfchain.loader.generation import Built, Source, build, new_record
from bpfchain.loader.hooks import driver
from bpfchain.loader.hooks.clsact import lacks_qdisc
from bpfchain.loader.hooks.protocol import Target
from bpfchain.loader.maps import Map
from bpfchain.loader.operations.common import Done, opened
from bpfchain.loader.operations.repair import detach, free_all
from bpfchain.loader.places import ChainPlace, siblings
from bpfchain.loader.preflight import check
from bpfchain.loader.programs import Program
from bpfchain.loader.situation import Situation
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import MapType
from bpfchain.transform.errors import BpfchainError, HostError, UsageError


def load(
    source: Source, place: ChainPlace, target: Target, *, entry: int | None = None,
    force: bool = False,
) -> Done:  # fmt: skip
    """Load all links, pin the generation, and attach the head last.

    ``entry``: put an entry program in front, which returns this code on a miss. ``force``: displace
    what is in the way. RefusedError, UsageError, HostError: the hook is as it was.
    """
    _check_exchangeable(target, entry)
    warnings = check(source, target, entry=entry, bpffs=place.root.parent)
    with opened(place, fd=target.fd) as state:
        _check_free(state.situation, place)
        notes = [*warnings, *_neighbours(place, target, force)]
        with build(source, target) as built:
            record = new_record(built, source, target, 1, "load", entry=entry)
            folder = place.generation(1)
            folder.mkdir(parents=True)
            try:
                built.pin(folder, record)
                if lacks_qdisc(target):
                    place.qdisc.mkdir()
                _attach(built, source, place, target, entry, force)
            except BaseException:
                _take_back(place, target.fd)
                raise
    return Done(
        operation="load", place=place, target=target, generation=1, repaired=state.repaired,
        notes=tuple(notes),
    )  # fmt: skip


def rehearse(
    source: Source, place: ChainPlace, target: Target, *, entry: int | None = None,
    force: bool = False,
) -> Done:  # fmt: skip
    """Everything that ``load`` does up to the first pin; the kernel verifies all programs."""
    _check_exchangeable(target, entry)
    warnings = check(source, target, entry=entry, bpffs=place.root.parent)
    with Situation(place, fd=target.fd) as situation:
        _check_free(situation, place)
    notes = [*warnings, *_neighbours(place, target, force)]
    with build(source, target) as built:
        if entry is not None:
            with _entry_array() as array, _entry(source, array, entry):
                array.set_fd(0, built.head.fileno())
    return Done(operation="load", place=place, target=target, generation=None, notes=tuple(notes))


def _check_exchangeable(target: Target, entry: int | None) -> None:
    """Where the hook cannot exchange its program, something that can must stand there."""
    if entry is None and not driver(target).swaps:
        raise UsageError(
            f"{target} cannot exchange its program: the chain there could never be changed",
            "give --entry CODE, what the entry program returns should the chain be missing",
        )


def _check_free(situation: Situation, place: ChainPlace) -> None:
    """This chain must not run there already."""
    if situation.current is not None:
        number = situation.current.number
        raise HostError(
            f"{place} is loaded already (generation {number})",
            "`bpfchain recreate` exchanges it, `bpfchain unload` ends it",
        )


def _neighbours(place: ChainPlace, target: Target, force: bool) -> list[str]:
    """Warnings of what else is on the hook. HostError for what is in the way, unless ``force``."""
    hook = driver(target)
    chains = {}
    for other in siblings(place):
        if other.folder != place.folder:
            with Situation(other) as situation:
                if situation.current is not None:
                    chains[other.chain] = situation.own_ids
    notes = []
    for one in hook.foreign(target, ()):
        ours = next((name for name, ids in chains.items() if one.program_id in ids), None)
        what = f"chain {ours} of bpfchain" if ours is not None else one.what
        if not one.exclusive:
            notes.append(f"{target}: also there: {what}")
            continue
        if ours is not None:
            raise HostError(
                f"cannot attach to {target}: it is taken: {what}",
                f"`bpfchain unload {ours}` first, or put all links into one chain",
            )
        if not force:
            raise HostError(
                f"cannot attach to {target}: it is taken: {what}",
                "detach it first, or displace it with --force",
            )
        notes.append(f"{target}: displaced: {what}")
    return notes


def _entry_array() -> Map:
    return Map.create(MapType.PROG_ARRAY, 4, 4, 1, name=ENTRY_ARRAY)


def _entry(source: Source, array: Map, code: int) -> Program:
    hook = source.manifest.hook
    check_code(hook, code)
    try:
        return entry_program(hook, array, code, frags=source.manifest.links[0].frags)
    except BpfError as error:
        raise HostError(f"cannot load the entry program: {error}") from error


def _attach(
    built: Built, source: Source, place: ChainPlace, target: Target, entry: int | None,
    force: bool,
) -> None:  # fmt: skip
    if entry is None:
        _hang(built.head, place, target, force)
        return
    with _entry_array() as array, _entry(source, array, entry) as first:
        try:
            array.set_fd(0, built.head.fileno())
        except BpfError as error:
            raise HostError(f"the entry program takes no such head: {error}") from error
        array.pin(place.entry_slots)
        first.pin(place.entry)
        _hang(first, place, target, force)


def _hang(program: Program, place: ChainPlace, target: Target, force: bool) -> None:
    """Attach and pin. Killed in between, a link goes with the process; others need no pin."""
    attachment = driver(target).attach(program, target, force=force)
    try:
        if not attachment.lasts:
            raise HostError(
                f"an attachment at {target} ends with this process on this kernel",
                "it has no link for it: a newer kernel has (5.15)",
            )
        attachment.pin(place.link)
    except BaseException as error:
        attachment.detach()
        if isinstance(error, BpfError):
            raise HostError(f"cannot pin {place.link}: {error}") from error
        raise
    finally:
        attachment.close()


def _take_back(place: ChainPlace, fd: int | None) -> None:
    """After a failure, wherever it was: what was attached is detached, and no pin stays."""
    # the first error is the one to tell; what stays is repaired by the next command
    with contextlib.suppress(OSError, BpfchainError), Situation(place, fd=fd) as situation:
        detach(situation)
        free_all(situation)

"""What a bpffs keeps of a chain: generations, each with its programs, maps and a frozen record.

A generation's folder ``g<N>`` holds ``slots``, ``p<slot>`` for each program, ``m<link>_<map>`` for
the links' maps, ``o<link>_<map>`` for PROG_ARRAYs of their own, and, pinned last and removed first,
``manifest``: a frozen array of one entry with JSON in it. A folder without ``manifest`` is
incomplete or being freed, and never runs. An object that a replace patched on the way, and that is
no file, is a frozen array too (``x<link>``). A replace pins what is new under ``new_`` and the same
name, ``new_manifest`` last, and renames after the slot was updated.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from bpfchain.loader.hooks.protocol import Target
from bpfchain.loader.maps import Map
from bpfchain.loader.places import ChainPlace, escape
from bpfchain.loader.programs import Program
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import MapType
from bpfchain.transform.errors import HostError
from bpfchain.transform.manifest import Manifest
from bpfchain.transform.manifest_link import LinkRecord
from bpfchain.transform.policy import hook_named

RECORD: Final = "manifest"
SLOTS: Final = "slots"
SAVED: Final = "saved"
NEW: Final = "new_"
_FORMAT: Final = 1
_MAP_NAME: Final = "bpfchain_gen"


def program_pin(slot: int) -> str:
    """The name of the pin of the program in ``slot``."""
    return f"p{slot}"


def object_pin(index: int) -> str:
    """The name of the pin of a link's object, where it is no file."""
    return f"x{index}"


def map_pin(index: int, name: str, *, programs: bool = False) -> str:
    """The name of the pin of a link's map (``programs``: its own PROG_ARRAY)."""
    return f"{'o' if programs else 'm'}{index}_{escape(name)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a generation says of itself."""

    number: int
    created_ns: int
    """CLOCK_REALTIME when it was built, or when a link was last replaced in it."""
    operation: str
    """``load``, ``recreate``, ``replace`` or ``bypass``."""
    target: Target
    entry: int | None
    """What the entry program returns on a miss; None: there is no entry program."""
    folder: str
    """Where the manifest was read from: its objects are named relative to it."""
    pins: Mapping[str, int]
    """Ids of the programs and maps, by the names of their pins."""
    bypassed: tuple[int, ...]
    """Links in whose place a pass-through program stands."""
    manifest: Manifest

    def to_json(self) -> bytes:
        """The content of the frozen array."""
        value = {
            "format": _FORMAT,
            "generation": self.number,
            "created_ns": self.created_ns,
            "operation": self.operation,
            "target": target_dict(self.target),
            "entry": self.entry,
            "folder": self.folder,
            "pins": dict(self.pins),
            "bypassed": list(self.bypassed),
            "manifest": self.manifest.to_dict(),
        }
        return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode(
            "utf-8", "surrogateescape"
        )

    @classmethod
    def from_json(cls, data: bytes) -> Record:
        """Raises ValueError, KeyError or a BpfchainError for what no version like this one wrote."""
        value = json.loads(data.decode("utf-8", "surrogateescape"))
        if value["format"] != _FORMAT:
            raise ValueError(f"format {value['format']}")
        return cls(
            number=value["generation"],
            created_ns=value["created_ns"],
            operation=value["operation"],
            target=target_of(value["target"]),
            entry=value["entry"],
            folder=value["folder"],
            pins=value["pins"],
            bypassed=tuple(value["bypassed"]),
            manifest=Manifest.from_dict(value["manifest"]),
        )


_TARGET_FIELDS = (
    "kind", "interface", "ifindex", "direction", "mode", "cgroup", "name", "at_return", "priority",
)  # fmt: skip


def target_dict(target: Target) -> dict[str, Any]:
    """The target as JSON; a socket's descriptor is left out."""
    return {"hook": target.hook.name} | {key: getattr(target, key) for key in _TARGET_FIELDS}


def target_of(value: Mapping[str, Any]) -> Target:
    """What :func:`target_dict` made."""
    fields = {key: value[key] for key in _TARGET_FIELDS}
    return Target(hook=hook_named(value["hook"]), **fields)


def frozen_array(data: bytes, name: str) -> Map:
    """A new array of one entry with this content, which nobody can change any more."""
    array = Map.create(MapType.ARRAY, 4, len(data), 1, name=name)
    try:
        array.update(bytes(4), data)
        array.freeze()
    except BaseException:
        array.close()
        raise
    return array


def object_array(record: LinkRecord, data: bytes) -> Map:
    """An array that holds a link's object: bpfchain patched it, and no file has it. HostError."""
    try:
        return frozen_array(data, "bpfchain_object")
    except BpfError as error:
        raise HostError(
            f"{record.label}: no room in the kernel for {len(data)} bytes of object: {error}",
            "write it to a file with -o",
        ) from error


def pin_record(path: Path, record: Record) -> None:
    """Put the record into a new frozen array and pin it: no reader sees half of it."""
    with frozen_array(record.to_json(), _MAP_NAME) as array:
        array.pin(path)


def read_record(path: Path) -> Record | None:
    """The record at ``path``, None where there is none. HostError for one that is not readable."""
    try:
        with Map.get_pinned(path) as array:
            data = array.lookup(bytes(4))
    except BpfError as error:
        if error.errno == 2:  # ENOENT
            return None
        raise HostError(f"{path}: cannot be opened: {error.strerror}", _permission(error)) from None
    try:
        return Record.from_json((data or b"").rstrip(b"\0"))
    except Exception as error:
        raise HostError(
            f"{path}: is not readable ({error})",
            "it was pinned by another version: use that one to unload the chain",
        ) from None


def _permission(error: OSError) -> str | None:
    if error.errno in (1, 13):  # EPERM, EACCES
        return "run it as the user whom the bpffs belongs to, with CAP_BPF"
    return None


class Generation:
    """One generation that is there: a complete one if it has a record."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.number = int(folder.name[1:])
        self.record = read_record(folder / RECORD)

    @cached_property
    def new_record(self) -> Record | None:
        """What an unfinished replace left."""
        return read_record(self.folder / (NEW + RECORD))

    @property
    def whole(self) -> Record:
        """The record of a complete generation."""
        assert self.record is not None, f"{self.folder} is complete"
        return self.record

    def names(self) -> list[str]:
        """The pins in the folder."""
        return sorted(os.listdir(self.folder))

    def slots(self) -> Map:
        """The chain's PROG_ARRAY; the caller closes it."""
        return Map.get_pinned(self.folder / SLOTS)

    def map(self, name: str) -> Map:
        """The map of that pin; the caller closes it."""
        return Map.get_pinned(self.folder / name)

    def program(self, name: str) -> Program:
        """The program of that pin; the caller closes it."""
        return Program.get_pinned(self.folder / name)

    def objects(self) -> dict[str, bytes]:
        """The objects that are pinned here, by their names in the manifest."""
        found = {}
        for link in self.whole.manifest.links:
            if object_pin(link.index) in self.whole.pins:
                with self.map(object_pin(link.index)) as array:
                    found[link.object] = array.lookup(bytes(4)) or b""
        return found

    def program_id(self, name: str) -> int | None:
        """The id of the pinned program, None where there is no such pin."""
        try:
            with self.program(name) as program:
                return program.info().id
        except BpfError as error:
            if error.errno == 2:  # ENOENT
                return None
            raise

    def heads(self) -> frozenset[int]:
        """Ids of the programs that may stand at the hook for this generation."""
        found = (self.program_id(name) for name in ("p0", NEW + "p0"))
        return frozenset(number for number in found if number is not None)

    def __repr__(self) -> str:
        return f"<Generation {self.folder}>"


def generations(place: ChainPlace) -> list[Generation]:
    """The generations of a chain, complete or not, by number."""
    return sorted((Generation(path) for path in _numbered(place)), key=lambda one: one.number)


def _numbered(place: ChainPlace) -> Iterator[Path]:
    try:
        entries = list(place.folder.iterdir())
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.name[:1] == "g" and entry.name[1:].isdigit():
            yield entry


def remove_generation(folder: Path) -> None:
    """Free a generation that nothing runs any more: its record first, so that what is left of a
    removal that was cut short is known to be garbage."""
    for name in (RECORD, NEW + RECORD):
        (folder / name).unlink(missing_ok=True)
    for path in sorted(folder.iterdir()):
        path.unlink(missing_ok=True)
    folder.rmdir()


def remove_rest(place: ChainPlace) -> None:
    """Remove what a chain without generations still has: pins of its attachment, the folder."""
    for path in (place.link, place.entry, place.entry_slots):
        path.unlink(missing_ok=True)
    for folder in (place.qdisc, place.folder):
        with contextlib.suppress(FileNotFoundError):
            folder.rmdir()


def finish_new(generation: Generation) -> None:
    """Put what a replace made in the place of what was there. The grace period has passed."""
    record = generation.new_record
    assert record is not None, "a replace is under way"
    present = [name for name in generation.names() if name.startswith(NEW)]
    for name in present:
        if name != NEW + RECORD:
            os.rename(generation.folder / name, generation.folder / name.removeprefix(NEW))
    os.rename(generation.folder / (NEW + RECORD), generation.folder / RECORD)
    drop_unnamed(generation.folder, record)


def drop_new(generation: Generation) -> None:
    """Take back a replace whose slot was not updated."""
    (generation.folder / (NEW + RECORD)).unlink(missing_ok=True)
    for name in generation.names():
        if name.startswith(NEW):
            (generation.folder / name).unlink(missing_ok=True)


def unnamed(folder: Path, record: Record) -> list[str]:
    """Pins that the generation's record does not name: of maps that a replaced link had."""
    return [n for n in sorted(os.listdir(folder)) if n not in record.pins and n != RECORD
            and not n.startswith(NEW)]  # fmt: skip


def drop_unnamed(folder: Path, record: Record) -> None:
    """Remove them."""
    for name in unnamed(folder, record):
        (folder / name).unlink(missing_ok=True)


def retarget(record: Record, target: Target) -> Record:
    """The record with another target (an interface that was renamed)."""
    return replace(record, target=target)

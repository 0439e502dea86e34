"""Building a generation: all links of a manifest loaded, joined, and only then given names.

Nothing is pinned before everything is loaded, so a link that the kernel refuses leaves nothing.
"""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from bpfchain.loader.arguments import check_arguments
from bpfchain.loader.caps import permission_hint
from bpfchain.loader.entry import pass_program
from bpfchain.loader.hooks.explain import NEEDS
from bpfchain.loader.hooks.protocol import Target
from bpfchain.loader.hooks.targets import kinds_of
from bpfchain.loader.libbpf import LibbpfError, ObjectFile, ObjectMap
from bpfchain.loader.maps import Map
from bpfchain.loader.places import unescape
from bpfchain.loader.programs import Program
from bpfchain.loader.store import (
    RECORD,
    SAVED,
    SLOTS,
    Generation,
    Record,
    map_pin,
    object_array,
    object_pin,
    pin_record,
    program_pin,
)
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import MapType, ProgType
from bpfchain.loader.verifierlog import condense
from bpfchain.transform.elf_read import read_object
from bpfchain.transform.errors import BpfchainError, HostError, RefusedError
from bpfchain.transform.link import saved_map_name
from bpfchain.transform.manifest import Manifest
from bpfchain.transform.manifest_link import LinkRecord

_STT_FUNC = 2


@dataclass(frozen=True, slots=True)
class Source:
    """A manifest with the bytes of its objects, whose digests were compared."""

    manifest: Manifest
    folder: str
    """Absolute; what the object names are relative to."""
    objects: Mapping[str, bytes]
    """By the names in the manifest."""


def read_source(manifest: Manifest, folder: Path, given: Mapping[str, bytes] = {}) -> Source:
    """Read the objects of ``manifest``, which are relative to ``folder`` unless ``given``.

    Raises RefusedError for one whose sha256 is not the manifest's, HostError.
    """
    folder = folder.resolve()
    objects: dict[str, bytes] = {}
    for record in manifest.links:
        path = folder / record.object
        if record.object not in objects:
            try:
                data = given.get(record.object) or path.read_bytes()
            except OSError as error:
                raise HostError(
                    f"link {record.index}: {path}: {(error.strerror or '').lower()}",
                    "the manifest names its objects relative to its own folder",
                ) from None
            objects[record.object] = data
        digest = hashlib.sha256(objects[record.object]).hexdigest()
        if digest != record.output_sha256:
            raise RefusedError(
                f"{path} is not the object of link {record.index}: sha256 {digest[:12]}…, the "
                f"manifest says {record.output_sha256[:12]}…",
                "build the chain again, so that manifest and objects belong together",
            )
    return Source(manifest, str(folder), objects)


@dataclass(slots=True)
class Kept:
    """Maps of an older generation that new links may go on with: ``links[index]`` is a map's name,
    without what libbpf puts in front of a section's, and its pin."""

    links: dict[int, dict[str, Path]] = field(default_factory=dict)
    data: bool = False
    """``.data`` and ``.bss`` too."""


class Built:
    """Loaded links with their slots filled, not attached and not pinned. Close it, or use with."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.programs: dict[int, Program] = {}
        """By slot."""
        self.pins: dict[str, Program | Map] = {}
        """Everything that a generation pins, by the pin's name."""
        self.kept: list[str] = []
        """``link 1: counters``: maps that go on with their content."""
        self.fresh: list[str] = []
        """Maps of the older generation that could not be kept, and why."""

    @property
    def slots(self) -> Map:
        """The chain's PROG_ARRAY."""
        found = self.pins[SLOTS]
        assert isinstance(found, Map)
        return found

    @property
    def head(self) -> Program:
        """Link 0 in state none."""
        return self.programs[0]

    def own(self, name: str, item: Program | Map) -> None:
        """Keep an object until :meth:`close`, to be pinned under ``name``."""
        self._stack.enter_context(item)
        self.pins[name] = item

    def ids(self) -> dict[str, int]:
        """The kernel's ids by name of pin."""
        return {name: item.id if isinstance(item, Map) else item.info().id
                for name, item in self.pins.items()}  # fmt: skip

    def pin(self, folder: Path, record: Record, *, prefix: str = "") -> None:
        """Pin everything into ``folder``, the record last."""
        try:
            for name, item in self.pins.items():
                item.pin(folder / (prefix + name))
            pin_record(folder / (prefix + RECORD), record)
        except BpfError as error:
            raise HostError(f"cannot pin in {folder}: {error}", _permission(error)) from error

    def close(self) -> None:
        """Give all descriptors back: what is not pinned and not attached is gone."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()


def _permission(error: OSError) -> str | None:
    if error.errno in (errno.EPERM, errno.EACCES):
        return "the bpffs must belong to the user who runs this, with CAP_BPF"
    return None


def build(
    source: Source, target: Target, *, kept: Kept | None = None, bypassed: Collection[int] = (),
    embedded: Collection[str] = (),
) -> Built:  # fmt: skip
    """Load every link of the manifest, last to first, and fill the slots of a new PROG_ARRAY.

    Slot 0 stays empty: nothing jumps to the head. ``bypassed`` links get the pass-through program;
    ``embedded`` names objects that are pinned with the generation, because no file has them.
    Raises RefusedError or HostError, naming the link; nothing is left then.
    """
    manifest = source.manifest
    built = Built()
    try:
        built.own(SLOTS, _new_slots(manifest, target))
        loader = _Loader(built, source, target, kept or Kept())
        for record in reversed(manifest.links):
            loader.load(record)
            if record.index in bypassed:
                bypass(built, record)
            if record.object in embedded:
                embed(built, source, record)
            for entry in record.entries:
                if entry.slot != 0:
                    set_slot(built.slots, entry.slot, built.programs[entry.slot], record)
        check_arguments(target, _heads_of(built, manifest.links))
    except BaseException:
        built.close()
        raise
    return built


def build_one(source: Source, target: Target, index: int, current: Generation, kept: Kept) -> Built:
    """Load link ``index`` alone, for the slots of the ``current`` generation; fills none."""
    built = Built()
    try:
        with current.slots() as slots:
            record = source.manifest.record(index)
            assert record is not None, f"link {index} is in the manifest"
            loader = _Loader(built, source, target, kept, slots=slots)
            if source.manifest.saved_code == "map" and SAVED in current.whole.pins:
                loader.saved = loader.stack.enter_context(current.map(SAVED))
            loader.shared = _shared_pins(source.manifest, current, loader.stack)
            loader.load(record)
            loader.stack.close()
            check_arguments(target, _heads_of(built, (record,)))
    except BaseException:
        built.close()
        raise
    return built


def _heads_of(built: Built, records: tuple[LinkRecord, ...]) -> list[tuple[LinkRecord, Program]]:
    return [(record, built.programs[record.entries[0].slot]) for record in records]


def bypass(built: Built, record: LinkRecord, slots: Map | None = None) -> None:
    """Put pass-through programs in the place of the link's own (in ``built``, not in the slots)."""
    for entry in record.entries:
        name = program_pin(entry.slot)
        if entry.slot in built.programs:
            built.programs.pop(entry.slot).close()
            built.pins.pop(name)
        try:
            program = pass_program(
                record.link, entry.state, slots or built.slots, frags=record.frags
            )
        except BpfError as error:
            denied = error.errno == errno.EPERM
            raise HostError(
                f"cannot load the pass-through program: {'not permitted' if denied else error}",
                permission_hint(NEEDS[kinds_of(record.link.hook)[0]]) if denied else None,
            ) from error
        built.programs[entry.slot] = program
        built.own(name, program)


def embed(built: Built, source: Source, record: LinkRecord) -> None:
    """Pin the link's object with the generation: a later recreate needs it, and no file has it."""
    built.own(object_pin(record.index), object_array(record, source.objects[record.object]))


def new_record(
    built: Built, source: Source, target: Target, number: int, operation: str,
    *, entry: int | None, bypassed: tuple[int, ...] = (), older: Mapping[str, int] = {},
) -> Record:  # fmt: skip
    """The record of what was built; ``older``: pins of the generation that stay."""
    return Record(
        number=number, created_ns=time.time_ns(), operation=operation, target=target, entry=entry,
        folder=source.folder, pins=dict(sorted((dict(older) | built.ids()).items())),
        bypassed=bypassed, manifest=source.manifest,
    )  # fmt: skip


def set_slot(slots: Map, slot: int, program: Program, record: LinkRecord) -> None:
    """Put the program into its slot. RefusedError with what the kernel's EINVAL means."""
    try:
        slots.set_fd(slot, program.fileno())
    except BpfError as error:
        if error.errno == errno.EINVAL:
            raise _alien(record) from error
        raise HostError(f"{record.label}: slot {slot}: {error}") from error


def _alien(record: LinkRecord) -> RefusedError:
    return RefusedError(
        f"{record.label}: the kernel lets {record.program} into no chain with the other links: its "
        "type, attach type, frags setting, cgroup storage or JIT differs from theirs",
        "the verifier has no complaint about it; compare the links with `bpfchain inspect`",
    )


def _new_slots(manifest: Manifest, target: Target) -> Map:
    try:
        return Map.create(
            MapType.PROG_ARRAY, 4, 4, manifest.hook.slots, name=manifest.slots_map[:15]
        )
    except BpfError as error:
        hint = permission_hint(NEEDS[target.kind]) if error.errno == errno.EPERM else None
        raise HostError(f"cannot make the chain's PROG_ARRAY: {error}", hint) from error


def _shared_pins(manifest: Manifest, current: Generation, stack: ExitStack) -> dict[str, Map]:
    """The shared maps of a running generation, by the names of the shares."""
    found: dict[str, Map] = {}
    for share in manifest.share:
        for member in share.links:
            name = map_pin(member.index, member.map)
            if name in current.whole.pins:
                found[share.map] = stack.enter_context(current.map(name))
                break
    return found


class _Loader:
    """Loads objects, giving each map its place: the chain's own, shared, kept, or new."""

    def __init__(
        self, built: Built, source: Source, target: Target, kept: Kept, slots: Map | None = None
    ) -> None:
        self.built = built
        self.source = source
        self.target = target
        self.kept = kept
        self.slots = slots or built.slots
        self.saved: Map | None = None
        self.shared: dict[str, Map] = {}
        self.stack = ExitStack()  # descriptors needed while loading
        self._loaded: set[str] = set()
        manifest = source.manifest
        self._share_of = {
            (member.index, member.map): share.map
            for share in manifest.share
            for member in share.links
        }
        self._saved_name = (
            saved_map_name(manifest.slots_map) if manifest.saved_code == "map" else ""
        )

    def load(self, record: LinkRecord) -> None:
        """Load the object of ``record``, unless another link in the same file already did."""
        if record.object in self._loaded:
            return
        self._loaded.add(record.object)
        records = [one for one in self.source.manifest.links if one.object == record.object]
        data = self.source.objects[record.object]
        try:
            with ObjectFile.open(
                data, Path(record.object).stem.split(".")[0][:15] or "link"
            ) as obj:
                self._prepare(obj, records, data)
                obj.load()
                self._take(obj, records)
        except LibbpfError as error:
            raise self._explained(error, record) from error

    def _prepare(self, obj: ObjectFile, records: list[LinkRecord], data: bytes) -> None:
        hook = self.source.manifest.hook
        wanted = {entry.name for record in records for entry in record.entries}
        absent = wanted - obj.programs.keys()
        if absent:
            raise RefusedError(f"{records[0].label} has no program {sorted(absent)[0]}")
        wanted |= set(_initial_programs(data)) & obj.programs.keys()
        for program in obj.programs.values():
            program.set_autoload(program.name in wanted)
            if program.name in wanted:
                program.set_type(ProgType(hook.prog_type_id))
                program.set_expected_attach_type(hook.attach_type_id)
        for found in obj.maps.values():
            self._place_map(found, records)

    def _place_map(self, found: ObjectMap, records: list[LinkRecord]) -> None:
        indexes = [record.index for record in records]
        if found.name == self.source.manifest.slots_map:
            found.set_pin_path(None)
            found.reuse(self.slots)
        elif found.name == self._saved_name:
            if self.saved is not None:
                found.reuse(self.saved)
        elif share := self._share(indexes, found):
            if share in self.shared:
                found.reuse(self.shared[share])
            else:
                self._keep(found, indexes, shares=share)
        else:
            self._keep(found, indexes)

    def _share(self, indexes: list[int], found: ObjectMap) -> str | None:
        return next(
            (self._share_of[i, found.name] for i in indexes if (i, found.name) in self._share_of),
            None,
        )

    def _keep(self, found: ObjectMap, indexes: list[int], shares: str | None = None) -> None:
        """Go on with an older generation's map of the same name and definition."""
        name = bare_name(found)
        if not keepable(found, data=self.kept.data):
            return
        members = [(i, name) for i in indexes]
        if shares:
            members += [key for key, share in self._share_of.items() if share == shares]
        for index, member in members:
            pin = self.kept.links.get(index, {}).get(member)
            if pin is None:
                continue
            with Map.get_pinned(pin) as old:
                try:
                    found.reuse(old)
                except LibbpfError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    self.built.fresh.append(
                        f"link {indexes[0]}: {name}: defined otherwise than before"
                    )
                    return
            self.built.kept.append(f"link {indexes[0]}: {name}")
            return

    def _take(self, obj: ObjectFile, records: list[LinkRecord]) -> None:
        """Own what was loaded. Maps of a file with several links are pinned with the first."""
        for record in records:
            for entry in record.entries:
                program = obj.programs[entry.name].program()
                self.built.programs[entry.slot] = program
                self.built.own(program_pin(entry.slot), program)
        first = min(record.index for record in records)
        for found in obj.maps.values():
            if found.name == self.source.manifest.slots_map or not found.autocreate:
                continue
            if found.name == self._saved_name:
                if self.saved is None or SAVED not in self.built.pins:
                    self.built.own(SAVED, found.map())
                    self.saved = self.built.pins[SAVED]  # type: ignore[assignment]
                continue
            programs = found.type == MapType.PROG_ARRAY
            taken = found.map()
            self.built.own(map_pin(first, bare_name(found), programs=programs), taken)
            share = self._share([record.index for record in records], found)
            if share:
                self.shared.setdefault(share, taken)

    def _explained(self, error: LibbpfError, record: LinkRecord) -> BpfchainError:
        if error.errno == errno.EPERM:
            return HostError(
                f"{record.label}: not permitted to load it",
                permission_hint(NEEDS[self.target.kind]),
            )
        loading = "BPF program load failed" in error.log or "failed to load" in error.log
        if error.errno == errno.EINVAL and loading and not condense(error.verifier_log):
            return _alien(record)
        return HostError(
            f"{record.label}: {error.message.split(': ', 1)[-1]}",
            "`bpftool -d prog load` shows the verifier's whole log" if error.verifier_log else None,
        )


def bare_name(found: ObjectMap) -> str:
    """The map's name, for a data section without the object's name that libbpf puts in front."""
    return (
        found.name[found.name.find(".") :] if found.internal and "." in found.name else found.name
    )


def keepable(found: ObjectMap, *, data: bool) -> bool:
    """Whether a map may go on in a new generation: never programs, constants or kernel settings
    (libbpf would write into the live one); ``.data`` and ``.bss`` only if ``data``."""
    if found.type == MapType.PROG_ARRAY or not found.autocreate or found.pin_path:
        return False
    if not found.internal:
        return True
    return data and bare_name(found).startswith((".data", ".bss"))


def kept_from(
    old: Generation, manifest: Manifest, *, data: bool, same: Collection[int] = ()
) -> Kept:
    """The maps of ``old`` that links of ``manifest`` may go on with.

    A link is the same one as before if its program has the same name, at the same index or, where
    only one other link has it, at another; those in ``same`` are, whatever they are called.
    """
    before = old.whole.manifest
    kept = Kept(data=data)
    pins: dict[int, dict[str, Path]] = {}
    for link in before.links:
        first = min(one.index for one in before.links if one.object == link.object)
        prefix = map_pin(first, "")[:-1]
        pins[link.index] = {
            unescape(name.removeprefix(prefix)): old.folder / name
            for name in old.whole.pins if name.startswith(prefix)
        }  # fmt: skip
    for record in manifest.links:
        index = record.index
        at = before.record(index)
        if index in same or (at is not None and at.program == record.program):
            kept.links[index] = pins.get(index, {})
            continue
        named = [one.index for one in before.links if one.program == record.program]
        if len(named) == 1:
            kept.links[index] = pins[named[0]]
    return kept


def _initial_programs(data: bytes) -> Iterator[str]:
    """Programs that the object's own PROG_ARRAYs hold from the start (``values`` in ``.maps``)."""
    obj = read_object(data)
    maps = obj.section(".maps")
    if maps is None:
        return
    for relocation in obj.relocations(maps.id):
        symbol = obj.symbol_by_id[relocation.symbol]
        if symbol.type == _STT_FUNC:
            yield symbol.name

"""One world in the kernel: loaded objects, a slots map with markers, test runs one by one."""

from __future__ import annotations

import errno
import os
import struct
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from bpfchain.loader.libbpf import LibbpfError, ObjectFile, ObjectMap
from bpfchain.loader.maps import Map
from bpfchain.loader.programs import Program, TestRun
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import BPF_F_XDP_HAS_FRAGS, MapType, ProgType

from .hooks import L2_BYTES, MD_BYTES, SKB_BYTES, context_kind
from .kernel_maps import items_of, note_of, seed, update
from .markers import Markers
from .protocol import (
    NO_MARKER,
    NOT_TAKEN,
    CannotRunError,
    Coverage,
    Event,
    Inputs,
    LoadError,
    MapItems,
    ProgramRef,
    RunFault,
    Runs,
    Session,
    Setup,
    Slots,
)
from .ringbuf import RingReader

__all__ = ["KernelRuns", "KernelSession"]

_ENOTSUPP = 524
_LOOPBACK = 1
_ANY_IPV4 = bytes.fromhex("02000000000202000000000108004500001400000000401100000a0000010a000002")
_SK_LOOKUP_END = 64
_MD = struct.Struct("=6I")


@dataclass(slots=True)
class KernelRuns:
    """See :class:`.protocol.Runs`."""

    codes: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    not_taken: dict[int, str] = field(default_factory=dict)
    packets: list[bytes] = field(default_factory=list)
    metadatas: list[bytes] = field(default_factory=list)
    contexts: list[bytes] = field(default_factory=list)
    records: list[list[Event]] = field(default_factory=list)
    faults: Mapping[int, RunFault] = field(default_factory=dict)
    instructions: Sequence[int] = ()
    tail_calls: Sequence[int] = ()

    def __len__(self) -> int:
        return len(self.codes)

    def packet(self, index: int) -> bytes:
        """The frame after the run, as the program sees it."""
        return self.packets[index]

    def metadata(self, index: int) -> bytes:
        """XDP's, in front of the frame."""
        return self.metadatas[index]

    def context(self, index: int) -> bytes:
        """What the test run gives back; pointers left out."""
        return self.contexts[index]

    def events(self, index: int) -> list[Event]:
        """Ring buffer records, map by map."""
        return self.records[index]

    def differing(self, other: Runs) -> list[int]:
        """Positions where anything but the verdict differs."""
        assert isinstance(other, KernelRuns)
        mine = zip(self.packets, self.metadatas, self.contexts, self.records, strict=True)
        theirs = zip(other.packets, other.metadatas, other.contexts, other.records, strict=True)
        return [n for n, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b]

    def add(self, run: TestRun, kind: str, mark: int, records: list[Event]) -> None:
        """One finished run."""
        packet, metadata, context = run.data_out, b"", run.ctx_out
        if kind == "xdp":
            # data_end counts the linear part only; a longer frame goes on in fragments
            (start,) = struct.unpack_from("=I", context)
            packet, metadata, context = packet[start:], packet[:start], context[12:MD_BYTES]
        elif kind == "skb-l3":
            packet = packet[L2_BYTES:]  # the kernel puts an empty Ethernet header back in front
        self.codes.append(run.signed)
        self.ended.append(mark)
        self.packets.append(packet)
        self.metadatas.append(metadata)
        self.contexts.append(context)
        self.records.append(records)

    def refuse(self, reason: str) -> None:
        """The kernel did not take the packet."""
        self.not_taken[len(self.codes)] = reason
        self.codes.append(0)
        self.ended.append(NOT_TAKEN)
        for empty in (self.packets, self.metadatas, self.contexts):
            empty.append(b"")
        self.records.append([])


class KernelSession:
    """See :class:`.protocol.Session`. ``reset`` loads everything anew."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._kind = context_kind(setup.hook)
        self._slots: Slots = {}
        self._stack = ExitStack()
        self._markers: Markers | None = None
        self._dirty = False
        self._load()

    # loading

    def _load(self) -> None:
        self._stack = ExitStack()
        self._objects: list[ObjectFile] = []
        self._maps: list[dict[str, Map]] = []
        self._programs: dict[ProgramRef, Program] = {}
        self._rings: list[tuple[str, RingReader]] = []
        self._slots_array: Map | None = None
        try:
            shared: dict[str, Map] = {}
            for number, data in enumerate(self._setup.objects):
                self._load_object(number, data, shared)
            for maps in self._maps:
                seed(maps, self._setup.scenario)
            self._fill()
        except BaseException:
            self.close()
            raise
        self._dirty = False

    def _load_object(self, number: int, data: bytes, shared: dict[str, Map]) -> None:
        setup = self._setup
        try:
            obj = self._stack.enter_context(self._open(number, data))
        except LibbpfError as error:
            raise LoadError(str(error), number) from None
        wanted = {ref.name for ref in setup.programs if ref.object == number}
        names = {_name(found): found for found in obj.maps.values()}
        others = any(
            found.type == MapType.PROG_ARRAY and name != setup.slots_map
            for name, found in names.items()
        )
        for program in obj.programs.values():
            # what an own PROG_ARRAY is initialised with must be loaded: libbpf puts it there
            load = program.name in wanted or (others and program.autoload)
            program.set_autoload(load)
            if program.name in wanted:
                program.set_type(ProgType(setup.hook.prog_type_id))
                program.set_expected_attach_type(setup.hook.attach_type_id)
        for name, found in names.items():
            found.set_pin_path(None)
            known = shared.get(self._shared_name(number, name))
            if known is not None:
                found.reuse(known)
        missing = wanted - obj.programs.keys()
        if missing:
            raise LoadError(f"the object has no program {min(missing)}", number)
        try:
            obj.load()
        except LibbpfError as error:
            if error.errno == errno.EPERM and os.geteuid() != 0:
                raise
            raise LoadError(str(error), number) from None
        self._objects.append(obj)
        maps = {name: self._stack.enter_context(found.map()) for name, found in names.items()}
        self._maps.append(maps)
        for name, opened in maps.items():
            key = self._shared_name(number, name)
            if key and key not in shared:
                shared[key] = opened
            if opened.type == MapType.RINGBUF:
                reader = RingReader(opened)
                self._stack.callback(reader.close)
                self._rings.append((name, reader))
            if name == setup.slots_map:
                self._slots_array = opened
        for ref in setup.programs:
            if ref.object == number:
                self._programs[ref] = self._stack.enter_context(obj.programs[ref.name].program())

    def _open(self, number: int, data: bytes) -> ObjectFile:
        name = f"link{number}"
        if self._setup.btf is None:
            return ObjectFile.open(data, name)
        # libbpf takes a path only, and reads it when it loads
        file = self._stack.enter_context(tempfile.NamedTemporaryFile(suffix=".btf"))  # noqa: SIM115
        file.write(self._setup.btf)
        file.flush()
        return ObjectFile.open(data, name, btf=file.name)

    def _shared_name(self, number: int, name: str) -> str:
        if name and name == self._setup.slots_map:
            return name
        return self._setup.share.get((number, name), "")

    def _fill(self) -> None:
        array = self._slots_array
        if array is None:
            if self._slots:
                raise LoadError(f"no object has the slots map {self._setup.slots_map!r}")
            return
        for index in range(array.max_entries):
            if index not in self._slots and array.slot(index) is not None:
                array.delete(struct.pack("=I", index))
        for index, slot in self._slots.items():
            if isinstance(slot, ProgramRef):
                program = self._programs[slot]
            else:
                if self._markers is None:
                    self._markers = Markers(self._setup.hook, self._flags())
                program = self._markers.program(slot.tag)
            try:
                array.set_fd(index, program.fileno())
            except BpfError as error:
                raise CannotRunError(
                    f"the kernel puts no marker into slot {index}: {error.strerror}"
                ) from None

    def _flags(self) -> int:
        first = self._setup.programs[0]
        section = self._objects[first.object].programs[first.name].section
        # libbpf takes the flag from the section's name, at the load, and does not tell it
        return BPF_F_XDP_HAS_FRAGS if section.removeprefix("?").startswith("xdp.frags") else 0

    # the protocol

    def run(
        self, program: ProgramRef, inputs: Inputs, *, fill: int = 0, coverage: bool = False
    ) -> KernelRuns:
        """Run one by one, on one CPU, so that per-CPU maps count in one place."""
        loaded = self._programs[program]
        runs = KernelRuns()
        self._dirty = True
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(before)})
        try:
            for packet, context in zip(inputs.packets, inputs.contexts, strict=True):
                self._run_one(loaded, packet, context, runs)
        finally:
            os.sched_setaffinity(0, before)
        return runs

    def _run_one(self, program: Program, packet: bytes, context: bytes, runs: KernelRuns) -> None:
        if self._markers is not None:
            self._markers.clear()
        data: bytes = packet
        given: bytes | None
        if self._kind == "xdp":
            fields = list(_MD.unpack(context.ljust(MD_BYTES, b"\0")[:MD_BYTES]))
            fields[:3] = [0, len(packet), 0]
            if fields[3] == _LOOPBACK:  # the default, which has no queue that XDP could be told of
                fields[3] = 0
            given = _MD.pack(*fields)
        elif self._kind.startswith("skb"):
            given = context.ljust(SKB_BYTES, b"\0")
        elif self._setup.hook.prog_type_id == ProgType.NETFILTER:
            data, given = _ANY_IPV4, None  # the kernel makes the context, and wants a packet for it
        elif self._setup.hook.prog_type_id == ProgType.SK_LOOKUP:
            # the test run wants no ingress_ifindex
            data, given = b"", context[:_SK_LOOKUP_END].ljust(len(context), b"\0")
        else:
            data, given = b"", context
        try:
            done = program.test_run(data, given, ctx_out=None if data else False)
        except BpfError as error:
            if error.errno in (_ENOTSUPP, errno.EOPNOTSUPP):
                name = self._setup.hook.name
                raise CannotRunError(f"the kernel runs no {name} programs on request") from None
            runs.refuse(f"the kernel refused it ({errno.errorcode.get(error.errno or 0, '?')})")
            return
        mark = NO_MARKER if self._markers is None else self._markers.seen()
        records = [
            ("ringbuf", name, record) for name, ring in self._rings for record in ring.take()
        ]
        runs.add(done, self._kind if data else "plain", mark, records)

    def reset(self, slots: Slots | None = None) -> None:
        """Load anew, unless nothing has run; then fill the slots."""
        if slots is not None:
            self._slots = dict(slots)
        if self._dirty:
            self._stack.close()
            self._load()
        else:
            self._fill()

    def map_names(self, object: int) -> list[str]:
        """By the names in the file, data sections' by the section."""
        return list(self._maps[object])

    def map_items(self, object: int, name: str) -> MapItems:
        """Contents, sorted by key."""
        return items_of(self._maps[object][name])

    def map_update(self, object: int, name: str, key: bytes, value: bytes) -> None:
        """Write; one value for all CPUs."""
        self._dirty = True
        update(self._maps[object][name], key, value)

    def map_note(self, object: int, name: str) -> str:
        """Why not comparable; "" where it is."""
        return note_of(self._maps[object][name])

    def map_differs(self, object: int, name: str, other: Session, other_object: int) -> bool:
        """By reading both."""
        return self.map_items(object, name) != other.map_items(other_object, name)

    def code(self, program: ProgramRef) -> bytes:
        """As libbpf gave it to the kernel."""
        return self._objects[program.object].programs[program.name].instructions()

    def origin(self, program: ProgramRef) -> tuple[tuple[str, int], ...]:
        """Not known."""
        return ()

    def coverage(self, program: ProgramRef) -> Coverage | None:
        """The kernel tells none."""
        return None

    def close(self) -> None:
        """Unload."""
        self._stack.close()
        if self._markers is not None:
            self._markers.close()
            self._markers = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()


def _name(found: ObjectMap) -> str:
    """Libbpf puts the object's name in front of a data section's: ``link0.bss`` is ``.bss``."""
    if found.internal and "." in found.name[1:] and not found.name.startswith("."):
        return found.name[found.name.index(".") :]
    return found.name

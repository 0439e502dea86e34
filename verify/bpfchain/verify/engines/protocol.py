"""What every engine can do: open a world of objects, run programs on packets, show the maps.

A ``Setup`` says what is in the world, a ``Session`` is one such world with its own maps, ``Runs``
are the results of one batch. Verdicts are compared as codes: the low 32 bits of r0, signed
(DESIGN section 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

from bpfchain.transform.errors import InconclusiveError
from bpfchain.transform.policy import Hook
from bpfchain.verify.scenario import EMPTY, Scenario

__all__ = [
    "DIMENSIONS",
    "FAULTED",
    "NOT_TAKEN",
    "NO_MARKER",
    "CannotRunError",
    "Engine",
    "Event",
    "Inputs",
    "LoadError",
    "MapItems",
    "Marker",
    "ProgramRef",
    "RunFault",
    "Runs",
    "Session",
    "Setup",
    "Slot",
    "Slots",
]

DIMENSIONS = ("verdict", "packet", "metadata", "context", "map", "events", "order", "fault")
"""What is compared (``Counterexample.dimension``); ``order`` is that of the events."""

NO_MARKER, FAULTED, NOT_TAKEN = -1, -2, -3
"""Values of ``Runs.ended`` that are no marker's tag: the program's own end, a fault, a packet that
the engine did not take."""

MapItems = Sequence[tuple[bytes, bytes]]
Event = tuple[str, str, bytes]
"""A helper's effect: its kind, the map's label or "", the payload."""


class CannotRunError(InconclusiveError):
    """The engine runs no such program (type, object, host); says nothing about the program."""


class LoadError(Exception):
    """The engine refused a program. ``object`` is the index in ``Setup.objects``; ``unmodelled``
    where the engine lacks something, not the program."""

    def __init__(self, message: str, object: int = 0, *, unmodelled: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.object = object
        self.unmodelled = unmodelled


class ProgramRef(NamedTuple):
    """A program of one of the objects."""

    object: int
    name: str


class Marker(NamedTuple):
    """What stands in a slot in place of a program: it ends the run, which is told by its tag (0…)."""

    tag: int


Slot = ProgramRef | Marker
Slots = Mapping[int, Slot]
"""Index in the slots map -> what is there; the other entries are empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A world: object files (bytes), of which ``programs`` will be run or stand in slots.

    ``share`` maps (object, map name) to a name; maps of one name are one map. The scenario's map
    entries are in every object's map of that name. ``btf``: the types that CO-RE relocations
    resolve against (None: the engine's choice).
    """

    objects: tuple[bytes, ...]
    hook: Hook
    programs: tuple[ProgramRef, ...]
    slots_map: str = ""
    """The chain's PROG_ARRAY, "" where there is none. It is one map in all objects that have it."""
    share: Mapping[tuple[int, str], str] = field(default_factory=dict)
    scenario: Scenario = EMPTY
    btf: bytes | None = None
    seed: int = 0
    """Of random numbers, added to the scenario's own."""
    instruction_limit: int = 1_000_000


class Inputs:
    """A batch's inputs: frames, contexts and times (ns), one each; made once, run by many sessions.

    ``origin`` are the packets' indexes in their recording. Of a selection, ``root`` and ``order``
    tell what of which whole it is. ``prepared`` is the engines' own.
    """

    __slots__ = ("contexts", "order", "origin", "packets", "prepared", "root", "times")

    def __init__(
        self,
        packets: Sequence[bytes],
        contexts: Sequence[bytes] = (),
        times: Sequence[int] = (),
        origin: Sequence[int] = (),
    ) -> None:
        self.packets = tuple(packets)
        self.contexts = tuple(contexts) or (b"",) * len(self.packets)
        self.times = tuple(times)
        self.origin = tuple(origin) or tuple(range(len(self.packets)))
        self.root: Inputs | None = None
        self.order: Sequence[int] = ()
        self.prepared: Any = None
        counts = {len(self.packets), len(self.contexts), len(self.origin)}
        if len(counts) > 1 or (self.times and len(self.times) != len(self.packets)):
            raise ValueError("packets, contexts, times and origins differ in number")

    def __len__(self) -> int:
        return len(self.packets)

    def select(self, indexes: Sequence[int]) -> Inputs:
        """Some of them, in this order; random numbers stay those of the packet in the whole."""
        chosen = Inputs(
            [self.packets[i] for i in indexes],
            [self.contexts[i] for i in indexes],
            [self.times[i] for i in indexes] if self.times else (),
            [self.origin[i] for i in indexes],
        )
        chosen.root = self if self.root is None else self.root
        chosen.order = [i if self.root is None else self.order[i] for i in indexes]
        return chosen

    def changed(self, packets: Sequence[bytes], contexts: Sequence[bytes]) -> Inputs:
        """The same inputs with other frames and contexts, in the same places of the same whole."""
        if self.root is None:
            return Inputs(packets, contexts, self.times, self.origin)
        whole, all_contexts = list(self.root.packets), list(self.root.contexts)
        for place, packet, context in zip(self.order, packets, contexts, strict=True):
            whole[place], all_contexts[place] = packet, context
        root = Inputs(whole, all_contexts, self.root.times, self.root.origin)
        return root.select(self.order)


class RunFault(NamedTuple):
    """Why a run ended without a verdict; fields as in ``_ubpf.Fault``, and the program's name."""

    kind: str
    what: str
    program: str = ""
    pc: int = -1
    address: int = 0
    size: int = 0

    @property
    def modelled(self) -> bool:
        """False where the engine lacks something; then the program may be all right."""
        return self.kind != "unmodelled"

    @property
    def consequence(self) -> bool:
        """True for a packet that has no result because the process died on another one."""
        return self.what.startswith("no result")

    def __str__(self) -> str:
        if self.kind == "unmodelled":
            return f"{self.what} is not modelled"
        if self.kind == "limit":
            return "it does not end: the instruction limit was reached"
        where = f" at instruction {self.pc}" if self.pc >= 0 else ""
        if self.kind in ("read", "write"):
            return f"{self.kind} of {self.size} bytes out of bounds{where} ({self.address:#x})"
        return f"{self.what or self.kind}{where}"


class Runs(Protocol):
    """The results of one batch, by position in its ``Inputs``."""

    @property
    def codes(self) -> Sequence[int]:
        """Signed low 32 bits of r0. Meaningless where ``ended`` is not NO_MARKER."""

    @property
    def ended(self) -> Sequence[int]:
        """Tag of the marker that ran, or NO_MARKER, FAULTED, NOT_TAKEN."""

    @property
    def faults(self) -> Mapping[int, RunFault]: ...
    @property
    def not_taken(self) -> Mapping[int, str]:
        """Reasons of the engine for packets that it did not take."""

    @property
    def instructions(self) -> Sequence[int]:
        """Executed; empty where the engine does not tell."""

    @property
    def tail_calls(self) -> Sequence[int]:
        """Tail calls that succeeded; empty where the engine does not tell."""

    def packet(self, index: int, /) -> bytes: ...
    def metadata(self, index: int, /) -> bytes: ...
    def context(self, index: int, /) -> bytes: ...
    def events(self, index: int, /) -> Sequence[Event]: ...
    def differing(self, other: Runs) -> Sequence[int]:
        """Positions where packet, metadata, context or events are not equal, in order. ``other`` is
        of the same engine."""

    def __len__(self) -> int: ...


class Session(Protocol):
    """One world. Maps persist from run to run until ``reset``."""

    def run(
        self, program: ProgramRef, inputs: Inputs, *, fill: int = 0, coverage: bool = False
    ) -> Runs:
        """Run the program on every input, in order. ``fill``: the byte on the stack before each.
        ``coverage``: remember what was executed. Raises CannotRunError."""

    def reset(self, slots: Slots | None = None) -> None:
        """All maps as after the start, the slots map filled so (None: as it was last)."""

    def map_names(self, object: int) -> Sequence[str]:
        """Maps of the object, in its order, by the names in its file."""

    def map_items(self, object: int, name: str) -> MapItems:
        """Contents, sorted by key; entries of arrays that are all zeros are left out."""

    def map_update(self, object: int, name: str, key: bytes, value: bytes) -> None:
        """Write; per-CPU kinds take one value for all CPUs."""

    def map_note(self, object: int, name: str) -> str:
        """Why the map's contents are not to be compared; "" where they are."""

    def map_differs(self, object: int, name: str, other: Session, other_object: int) -> bool:
        """Whether the map of the same name in another session of this engine differs."""

    def code(self, program: ProgramRef) -> bytes:
        """The instructions as they are run, little-endian; b"" where the engine does not know."""

    def origin(self, program: ProgramRef) -> Sequence[tuple[str, int]]:
        """(section, instruction there) of every instruction of ``code``; empty where not known.
        KeyError: no such program."""

    def coverage(self, program: ProgramRef) -> Coverage | None:
        """What the runs with ``coverage`` executed; None where the engine does not tell."""

    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...  # fmt: skip


class Coverage(NamedTuple):
    """Coverage of one program's linked code, by instruction: executed, and for conditional jumps
    not taken and taken; ``origin`` is each instruction's (section, index) in the object, ``maps``
    the name of the map that an instruction refers to."""

    code: bytes
    origin: Sequence[tuple[str, int]]
    executed: bytes
    fell: bytes
    taken: bytes
    maps: Mapping[int, str]


class Engine(Protocol):
    """A kind of session."""

    name: str
    fills: bool
    """Whether ``Session.run`` decides what lies on the stack."""
    deterministic: bool
    """Whether time, random numbers and the like are the same in every session."""

    def refuses(self, hook: Hook) -> str | None:
        """Why no program of that hook can be run; None where they can."""

    def blind(self, hook: Hook) -> Mapping[str, str]:
        """Dimensions that the engine does not tell -> what and why."""

    def open(self, setup: Setup) -> Session:
        """A new world, maps at their start. Raises LoadError, CannotRunError, HostError."""

"""One world in the emulator: linked objects in a ``Machine``, which runs whole batches at once."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from bpfchain.emulator.interpreter import Machine, Packets
from bpfchain.emulator.link import LinkedObject, link_object
from bpfchain.transform.errors import RefusedError, UsageError

from .hooks import context_kind
from .protocol import (
    Coverage,
    Event,
    Inputs,
    LoadError,
    MapItems,
    Marker,
    ProgramRef,
    RunFault,
    Runs,
    Session,
    Setup,
    Slots,
)

if TYPE_CHECKING:
    from bpfchain.emulator._ubpf import Batch

__all__ = ["BatchRuns", "MachineSession"]

_REFERENCES = frozenset({3, 4, 8, 12, 13, 14, 15, 16, 17, 18, 25})
"""Maps that hold programs, maps, devices, sockets, CPUs: programs cannot write what is in them
(PROG_ARRAY, PERF_EVENT_ARRAY, CGROUP_ARRAY, maps of maps, DEVMAP, SOCKMAP, CPUMAP, XSKMAP …)."""


_LDDW, _MAP_SOURCES = 0x18, (1, 2)
_MASK64 = (1 << 64) - 1
_ENDS = ["verdict", "ended", "fault"]


class BatchRuns:
    """A batch's results as :class:`.protocol.Runs`."""

    instructions: Sequence[int]
    tail_calls: Sequence[int]

    def __init__(self, batch: Batch, machine: Machine) -> None:
        self.batch = batch
        codes = array("i")
        codes.frombytes(_low_halves(batch.verdicts))
        self.codes: Sequence[int] = codes
        self.ended: Sequence[int] = array("i", batch.ended)
        self.instructions = array("I", batch.instructions)
        self.tail_calls = array("I", batch.tail_calls)
        self.faults: Mapping[int, RunFault] = {
            fault.packet: RunFault(
                fault.kind,
                machine.explain(fault),
                _program_name(machine, fault.program),
                fault.pc,
                fault.address,
                fault.size,
            )
            for fault in batch.faults
        }
        self.not_taken: Mapping[int, str] = {}
        self.packet: Callable[[int], bytes] = batch.packet
        self.metadata: Callable[[int], bytes] = batch.metadata
        self.context: Callable[[int], bytes] = batch.context
        self.events: Callable[[int], Sequence[Event]] = batch.events

    def __len__(self) -> int:
        return len(self.codes)

    def differing(self, other: Runs) -> list[int]:
        """Positions where packet, metadata, context or events differ, compared in native code."""
        assert isinstance(other, BatchRuns)
        try:
            found = self.batch.differences(other.batch, len(self), _ENDS)
        except TypeError:  # the JIT's batches, which come from a child
            return [
                n
                for n in range(len(self))
                if self.packet(n) != other.packet(n)
                or self.context(n) != other.context(n)
                or self.metadata(n) != other.metadata(n)
                or self.events(n) != other.events(n)
            ]
        return [position for position, _ in found]


def _program_name(machine: Machine, ref: int) -> str:
    try:
        return machine.program_name(ref)[1]
    except KeyError:
        return ""


def _low_halves(verdicts: bytes) -> bytes:
    """The low 32 bits of each u64."""
    words = memoryview(verdicts).cast("I")
    return words[::2].tobytes()


class MachineSession:
    """See :class:`.protocol.Session`."""

    def __init__(self, setup: Setup, machine: type[Machine]) -> None:
        scenario = setup.scenario
        self._setup = setup
        self._objects = [_linked(setup, number) for number in range(len(setup.objects))]
        share = dict(setup.share)
        for number, obj in enumerate(self._objects):
            if any(spec.name == setup.slots_map for spec in obj.maps):
                share[number, setup.slots_map] = setup.slots_map
        answers = scenario.answers.by_helper()
        try:
            self._machine = machine(
                self._objects,
                context=context_kind(setup.hook),
                share=share,
                seed=(setup.seed + scenario.answers.seed) & _MASK64,
                instruction_limit=setup.instruction_limit,
                answers=answers,
                memory=scenario.memory,
            )
        except RefusedError as error:
            raise LoadError(error.message) from None
        try:
            self._refs = {ref: self._ref(ref) for ref in setup.programs}
            self._seed()
            self._slots_at = self._find_slots()
            self._handles: dict[Any, int] = {}
            self._slots: Slots = {}
            self.reset({})
        except BaseException:
            self.close()
            raise

    def _ref(self, ref: ProgramRef) -> Any:
        try:
            return self._machine.program(*ref)
        except KeyError:
            raise LoadError(f"the object has no program {ref.name}", ref.object) from None
        except RefusedError as error:
            raise LoadError(error.message, ref.object) from None
        except ValueError as error:
            raise LoadError(f"uBPF refuses program {ref.name}: {error}", ref.object,
                            unmodelled=True) from None  # fmt: skip

    def _seed(self) -> None:
        scenario = self._setup.scenario
        if not scenario.maps:
            return
        for number, obj in enumerate(self._objects):
            sizes = {spec.name: (spec.key_size, spec.value_size) for spec in obj.maps}
            for name, key, value in scenario.seeds(sizes, "little"):
                try:
                    self._machine.map(number, name).update(key, value)
                except (OSError, ValueError) as error:
                    raise UsageError(f"scenario: map {name}: {error}") from None

    def _find_slots(self) -> int | None:
        name = self._setup.slots_map
        for number, obj in enumerate(self._objects):
            if name and any(spec.name == name for spec in obj.maps):
                return number
        return None

    # the protocol

    def run(
        self, program: ProgramRef, inputs: Inputs, *, fill: int = 0, coverage: bool = False
    ) -> BatchRuns:
        """The whole batch in one call."""
        batch = self._machine.run(
            self._refs[program], _packets(inputs), fill=fill, coverage=coverage
        )
        return BatchRuns(batch, self._machine)

    def reset(self, slots: Slots | None = None) -> None:
        """All maps as after the start; the contents of every filling are kept for the next time."""
        if slots is not None:
            self._slots = slots
        key = tuple(sorted(self._slots.items()))
        if key not in self._handles:
            if self._handles:
                self._machine.restore(next(iter(self._handles.values())))
            self._fill()
            self._handles[key] = self._machine.save()
        else:
            self._machine.restore(self._handles[key])

    def _fill(self) -> None:
        if self._slots_at is None:
            if self._slots:
                raise LoadError(f"no object has the slots map {self._setup.slots_map!r}")
            return
        found = self._machine.map(self._slots_at, self._setup.slots_map)
        for key, _ in found.items():
            found.delete(key)
        for index, slot in self._slots.items():
            if isinstance(slot, Marker):
                found.set_marker(index, slot.tag)
            else:
                found.set_program(index, self._refs[slot])

    def map_names(self, object: int) -> list[str]:
        """In the object's order."""
        return [spec.name for spec in self._objects[object].maps]

    def map_items(self, object: int, name: str) -> MapItems:
        """Sorted by key."""
        items: MapItems = self._machine.map(object, name).items()
        return items

    def map_update(self, object: int, name: str, key: bytes, value: bytes) -> None:
        """One value for all CPUs."""
        self._machine.map(object, name).update(key, value)

    def map_note(self, object: int, name: str) -> str:
        """All maps are compared."""
        return ""

    def map_differs(self, object: int, name: str, other: Session, other_object: int) -> bool:
        """In native code; maps of programs, maps and devices hold what no program can change."""
        spec = self._objects[object].maps[self._objects[object].map_index(name)]
        if spec.type in _REFERENCES:
            return False
        assert isinstance(other, MachineSession)
        theirs = other._machine.map(other_object, name)
        differs: bool = self._machine.map(object, name).differs(theirs)
        return differs

    def code(self, program: ProgramRef) -> bytes:
        """As linked."""
        return self._objects[program.object].programs[program.name].code

    def origin(self, program: ProgramRef) -> Sequence[tuple[str, int]]:
        """Where each instruction stands in the object."""
        return self._objects[program.object].programs[program.name].origin

    def coverage(self, program: ProgramRef) -> Coverage | None:
        """Since the world was made, of runs with ``coverage``."""
        told = self._machine.coverage(self._refs[program])
        if told is None:
            return None
        # of a conditional jump: not taken and taken; of any other instruction: executed, nothing
        fell, taken = told
        executed = bytes(map(int.__or__, fell, taken))
        return Coverage(
            self.code(program),
            self.origin(program),
            executed,
            fell,
            taken,
            self._references(program),
        )

    def _references(self, program: ProgramRef) -> dict[int, str]:
        """Instruction -> the map that it loads."""
        obj = self._objects[program.object]
        image = obj.programs[program.name]
        found, pc = {}, 0
        while pc < len(image):
            opcode, registers = image.code[8 * pc : 8 * pc + 2]
            if opcode == _LDDW and registers >> 4 in _MAP_SOURCES:
                place = int.from_bytes(image.code[8 * pc + 4 : 8 * pc + 8], "little")
                found[pc] = obj.maps[image.maps[place]].name
            pc += 2 if opcode == _LDDW else 1
        return found

    @cached_property
    def assumed(self) -> tuple[str, ...]:
        """What the objects take from a kernel and were not given."""
        return tuple(dict.fromkeys(text for obj in self._objects for text in obj.assumed))

    def close(self) -> None:
        """Free the world."""
        self._machine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()


def _packets(inputs: Inputs) -> Packets:
    """For a machine; some of a whole keep the random numbers that they have there."""
    known: Packets | None = inputs.prepared
    if known is None:
        if inputs.root is not None:
            known = _packets(inputs.root).select(inputs.order)
        else:
            alike = len(set(inputs.contexts)) == 1
            known = Packets(
                inputs.packets,
                inputs.contexts[0] if alike else inputs.contexts,
                inputs.times or None,
            )
        inputs.prepared = known
    return known


def _linked(setup: Setup, number: int) -> LinkedObject:
    try:
        return link_object(
            setup.objects[number], btf=setup.btf, kconfig=setup.scenario.kconfig_bytes(),
            ksyms=setup.scenario.ksyms,
        )  # fmt: skip
    except RefusedError as error:
        raise LoadError(error.message, number) from None

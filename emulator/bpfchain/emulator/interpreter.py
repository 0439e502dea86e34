"""Linked objects in one native world: maps made and filled, programs added when they are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from bpfchain.transform.errors import InconclusiveError, RefusedError

from .link import LinkedObject, MapSpec
from .link_maps import ARRAY_OF_MAPS, HASH_OF_MAPS

if TYPE_CHECKING:
    from . import _ubpf

__all__ = ["EmulatorMissingError", "Machine", "MachineMap", "Packets", "native"]

PERF_EVENT_ARRAY, RINGBUF = 4, 27
_OF_MAPS = (ARRAY_OF_MAPS, HASH_OF_MAPS)
_WITHOUT_SIZE = frozenset({19, 21, 24, 28, 29, 32})
"""Storage kinds (cgroup, socket, inode, task): the kernel wants 0 entries."""
_UNSIZED = 1024
"""Entries of a map whose size the object leaves to its loader."""
_PAGE = 4096
_NOTHING: Mapping[Any, Any] = MappingProxyType({})


class EmulatorMissingError(InconclusiveError):
    """The native part is not there: nothing can be run in user space."""


def native() -> Any:
    """The native module. Raises EmulatorMissingError where it is not built, or not for this host."""
    try:
        from . import _ubpf
    except ImportError as error:
        raise EmulatorMissingError(
            f"the emulator's native part cannot be loaded: {error}",
            "install a wheel (make wheel), or build it: pip install . with cargo, a C compiler, "
            "cmake and libclang; or use --engine kernel",
        ) from None
    return _ubpf


class Packets:
    """Inputs of a batch for any machine: frames, one context for all or one each, times in ns.

    See ``_ubpf.Packets``, which is made of it at the first use.
    """

    __slots__ = ("_native", "contexts", "data", "order", "root", "times")

    def __init__(
        self,
        data: Sequence[bytes],
        contexts: bytes | Sequence[bytes] = b"",
        times: Sequence[int] | None = None,
    ) -> None:
        self.data = list(data)
        self.contexts = contexts if isinstance(contexts, bytes) else list(contexts)
        self.times = None if times is None else list(times)
        self.root: Packets | None = None
        self.order: list[int] = []
        self._native: _ubpf.Packets | None = None

    def __len__(self) -> int:
        return len(self.data) if self.root is None else len(self.order)

    def select(self, indexes: Sequence[int]) -> Packets:
        """Some of them, in this order. Each keeps the random numbers that it had among all."""
        chosen = Packets(())
        chosen.root = self if self.root is None else self.root
        chosen.order = [i if self.root is None else self.order[i] for i in indexes]
        return chosen

    @property
    def native(self) -> _ubpf.Packets:
        """For the native world of this process."""
        if self._native is None:
            if self.root is not None:
                self._native = self.root.native.select(self.order)
            else:
                self._native = native().Packets(self.data, self.contexts, self.times)
        return self._native


class MachineMap:
    """A map of a machine. Keys and values are bytes as in memory. OSError carries the kernel's errno."""

    __slots__ = ("_machine", "index", "spec")

    def __init__(self, machine: Machine, spec: MapSpec, index: int) -> None:
        self._machine, self.spec, self.index = machine, spec, index

    def update(self, key: bytes, value: bytes, flags: int = 0) -> None:
        """Per-CPU kinds take one value for all CPUs."""
        self._machine.world.map_update(self.index, key, value, flags)

    def lookup(self, key: bytes) -> bytes | None:
        """None where there is no such entry."""
        return self._machine.world.map_lookup(self.index, key)

    def delete(self, key: bytes) -> None:
        """Remove an entry; of a prog array, empty the slot."""
        self._machine.world.map_delete(self.index, key)

    def items(self) -> list[tuple[bytes, bytes]]:
        """Sorted by key; entries of arrays that are zero are left out."""
        return self._machine.world.map_items(self.index)

    def set_program(self, key: int, ref: int) -> None:
        """Put a program, as ``Machine.program`` names it, into a slot of a prog array."""
        self._machine.world.set_program(self.index, key, ref)

    def set_marker(self, key: int, tag: int) -> None:
        """Put a marker into a slot: a tail call of it ends the run, which tells the tag."""
        self._machine.world.set_marker(self.index, key, tag)

    def differs(self, other: MachineMap) -> bool:
        """Whether the contents differ. ``other`` is of any machine of the same class."""
        return self._machine.world.map_differs(self.index, other._machine.world, other.index)


class Machine:
    """A world of linked objects under uBPF's interpreter.

    ``context``: "xdp", "skb", "skb-l3" or "plain", as ``_ubpf.World.add_program`` explains.
    ``share``: (object, map) -> a name; maps given one name are one map. ``answers`` and ``memory``:
    as ``World.answers`` and ``World.add_memory``. Raises EmulatorMissingError, RefusedError for maps
    that no kernel makes, InconclusiveError for what is too large to be held here.
    """

    def __init__(
        self,
        objects: Sequence[LinkedObject],
        *,
        context: str,
        share: Mapping[tuple[int, str], str] = _NOTHING,
        seed: int = 0,
        instruction_limit: int = 1_000_000,
        answers: Mapping[str, Any] = _NOTHING,
        memory: Mapping[int, bytes] = _NOTHING,
    ) -> None:
        self.objects = tuple(objects)
        self.context = context
        self.world: _ubpf.World = self._new_world(seed, instruction_limit)
        self._maps: list[dict[str, int]] = []
        self._programs: dict[tuple[int, str], int] = {}
        self._refs: dict[int, tuple[int, str]] = {}
        try:
            if answers:
                self.world.answers(dict(answers))
            for address, content in memory.items():
                self.world.add_memory(address, content)
            self._make_maps(share)
            self._fill_maps()
        except BaseException:
            self.close()
            raise

    def _new_world(self, seed: int, instruction_limit: int) -> _ubpf.World:
        world: _ubpf.World = native().World(seed=seed, instruction_limit=instruction_limit)
        return world

    # maps

    def _make_maps(self, share: Mapping[tuple[int, str], str]) -> None:
        shared: dict[str, tuple[int, MapSpec]] = {}
        for number, obj in enumerate(self.objects):
            indexes: dict[str, int] = {}
            for spec in obj.maps:
                common = share.get((number, spec.name))
                known = shared.get(common) if common is not None else None
                if known is None:
                    index = self._make_map(spec, spec.name if common is None else common)
                    if common is not None:
                        shared[common] = index, spec
                else:
                    index = known[0]
                    if _shape(known[1]) != _shape(spec):
                        raise RefusedError(
                            f"map {spec.name} is to be one with others of the name {common}, and "
                            "its type, sizes, entries or flags differ from theirs"
                        )
                indexes[spec.name] = index
            self._maps.append(indexes)

    def _make_map(self, spec: MapSpec, label: str) -> int:
        inner = None if spec.inner is None else self._make_map(spec.inner, spec.inner.name)
        entries = spec.max_entries
        if not entries and spec.type not in _WITHOUT_SIZE:
            entries = {PERF_EVENT_ARRAY: 1, RINGBUF: _PAGE}.get(spec.type, _UNSIZED)
        try:
            return self.world.add_map(
                label, spec.type, spec.key_size, spec.value_size, entries, spec.flags, inner,
                spec.readonly,
            )  # fmt: skip
        except MemoryError:
            raise InconclusiveError(
                f"map {spec.name}: {entries} entries of {spec.value_size} bytes are more than is "
                "held here",
                "run it with --engine kernel",
            ) from None
        except (ValueError, OSError) as error:
            raise RefusedError(f"map {spec.name}: {error}") from None

    def _fill_maps(self) -> None:
        filled: set[int] = set()
        for number, obj in enumerate(self.objects):
            for spec in obj.maps:
                index = self._maps[number][spec.name]
                if index in filled and not spec.values:
                    continue
                filled.add(index)
                if spec.contents is not None and any(spec.contents):
                    self.world.map_update(index, bytes(4), spec.contents)
                for key, name in spec.values:
                    if spec.type in _OF_MAPS:
                        self.world.set_inner(
                            index, key.to_bytes(4, "little"), self._maps[number][name]
                        )
                        continue
                    try:
                        ref = self.program(number, name)
                    except ValueError as error:
                        raise InconclusiveError(
                            f"map {spec.name}: uBPF does not take its program {name}: {error}"
                        ) from None
                    self.world.set_program(index, key, ref)

    def map(self, object: int, name: str) -> MachineMap:
        """The map that an object calls so. KeyError where it has none."""
        obj = self.objects[object]
        return MachineMap(self, obj.maps[obj.map_index(name)], self._maps[object][name])

    # programs

    def program(self, object: int, name: str) -> int:
        """The program, added to the world at the first call.

        KeyError where the object has none of that name; RefusedError where libbpf would not load
        it; ValueError where uBPF does not.
        """
        ref = self._programs.get((object, name))
        if ref is None:
            image = self.objects[object].programs[name]
            names = [self.objects[object].maps[index].name for index in image.maps]
            maps = [self._maps[object][one] for one in names]
            ref = self.world.add_program(
                image.name, self.context, image.code, maps, list(image.functions)
            )
            self._programs[object, name] = ref
            self._refs[ref] = object, name
        return ref

    def program_name(self, ref: int) -> tuple[int, str]:
        """Object and name of a program of this machine (``Fault.program``)."""
        return self._refs[ref]

    def explain(self, fault: _ubpf.Fault) -> str:
        """What a fault met, with the kernel function's name where that is it."""
        known = self._refs.get(fault.program)
        if fault.kind == "unmodelled" and known is not None:
            image = self.objects[known[0]].programs[known[1]]
            for pc, name in image.kfuncs:
                if pc == fault.pc:
                    return f"kernel function {name}"
            if fault.pc in image.poisoned:
                return "a CO-RE relocation that this kernel's types do not resolve"
        return fault.what

    # runs

    def run(
        self, ref: int, packets: Packets | _ubpf.Packets, *, fill: int = 0, coverage: bool = True
    ) -> _ubpf.Batch:
        """Run a program on all packets, in order. ``fill``: the stack's byte before each."""
        given = packets.native if isinstance(packets, Packets) else packets
        return self.world.run_batch(ref, given, fill=fill, coverage=coverage)

    def coverage(self, ref: int) -> tuple[bytes, bytes] | None:
        """As ``_ubpf.World.coverage``; None where the machine does not tell."""
        return self.world.coverage(ref)

    def save(self) -> int:
        """Remember the contents of all maps, for ``restore``."""
        return self.world.save()

    def restore(self, handle: int) -> None:
        """The maps as they were saved."""
        self.world.restore(handle)

    def close(self) -> None:
        """Free the world. The machine cannot be used any more."""
        self.__dict__.pop("world", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()


def _shape(spec: MapSpec) -> tuple[object, ...]:
    inner = None if spec.inner is None else _shape(spec.inner)
    return spec.type, spec.key_size, spec.value_size, spec.max_entries, spec.flags, inner

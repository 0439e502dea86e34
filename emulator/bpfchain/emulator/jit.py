"""Linked objects under uBPF's JIT, in a child process: as ``Machine``, but a crash or an endless run
is a fault of the batch, and nothing is bounded inside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Any

from .interpreter import Machine, Packets
from .jit_process import ChildDiedError, JitProcess
from .link import LinkedObject

if TYPE_CHECKING:
    from . import _ubpf

__all__ = ["JitBatch", "JitFault", "JitMachine"]

_EAGER = 4096
"""Batches up to this size come back whole, so that they outlive the child."""
_PACKETS = 16
"""Inputs kept in the child: a few are run again and again, others once."""
_NO_VERDICT = -2
_U64, _I32, _U32 = Struct("<Q"), Struct("<i"), Struct("<I")
_OWN_END = _I32.pack(-1)
Detail = tuple[bytes, bytes, bytes, list[tuple[str, str, bytes]]]


@dataclass(frozen=True, slots=True)
class JitFault:
    """As ``_ubpf.Fault``."""

    packet: int
    program: int
    kind: str
    pc: int
    address: int
    size: int
    what: str


class JitBatch:
    """As ``_ubpf.Batch``; what each packet became stays in the child until it is asked for."""

    def __init__(
        self, process: JitProcess, number: int, arrays: Sequence[bytes], faults: list[JitFault],
        details: list[Detail] | None,
    ) -> None:  # fmt: skip
        self.verdicts, self.ended, self.instructions, self.tail_calls = arrays
        self.faults = faults
        self._process, self._number, self._generation = process, number, process.generation
        self._details = details

    def __len__(self) -> int:
        return len(self.verdicts) // 8

    def _detail(self, index: int) -> Detail:
        if self._details is None:
            if self._generation != self._process.generation:
                raise LookupError("the batch's packets were in a process that has died since")
            self._details = self._process.request("details", self._number)
        detail: Detail = self._details[index]
        return detail

    def packet(self, index: int) -> bytes:
        """The frame after the run."""
        return self._detail(index)[0]

    def metadata(self, index: int) -> bytes:
        """Bytes between data_meta and data."""
        return self._detail(index)[1]

    def context(self, index: int) -> bytes:
        """The context after the run."""
        return self._detail(index)[2]

    def events(self, index: int) -> list[tuple[str, str, bytes]]:
        """Helper effects in order."""
        return self._detail(index)[3]

    def differences(
        self, other: JitBatch, limit: int = 100, ignore: Sequence[str] = ()
    ) -> list[tuple[int, str]]:
        """As ``_ubpf.Batch.differences``; compared in the child where both still are there."""
        alive = self._process.generation == self._generation == other._generation
        if alive and self._number and other._number and self._process is other._process:
            found: list[tuple[int, str]] = self._process.request(
                "differences", self._number, other._number, limit, list(ignore)
            )
            return found
        return _compare(self, other, limit, ignore)

    def __del__(self) -> None:
        if self._number and self._generation == self._process.generation:
            self._process.forget("batch", self._number)


def _compare(
    one: JitBatch, other: JitBatch, limit: int, ignore: Sequence[str]
) -> list[tuple[int, str]]:
    """The same in Python, for batches of two processes, of which one may have died."""
    faults = {f.packet: (f.kind, f.what) for f in one.faults}
    others = {f.packet: (f.kind, f.what) for f in other.faults}

    def pairs(i: int) -> Iterator[tuple[str, bool]]:
        ends = one.ended[4 * i : 4 * i + 4], other.ended[4 * i : 4 * i + 4]
        same = one.verdicts[8 * i : 8 * i + 8] == other.verdicts[8 * i : 8 * i + 8]
        yield "verdict", same or ends != (_OWN_END, _OWN_END)
        yield "ended", ends[0] == ends[1]
        yield "fault", faults.get(i) == others.get(i)
        for name in ("packet", "metadata", "context", "events"):
            yield name, getattr(one, name)(i) == getattr(other, name)(i)

    found: list[tuple[int, str]] = []
    for i in range(len(one)):
        dead = _NO_VERDICT in (_I32.unpack_from(b.ended, 4 * i)[0] for b in (one, other))
        for name, equal in pairs(i):
            if not equal and name not in ignore and not (dead and name not in ("ended", "fault")):
                found.append((i, name))
                break
        if len(found) >= limit:
            break
    return found


class JitWorld:
    """A ``_ubpf.World`` in the child. What made it is remembered, and done again in a new child.

    After a death the maps are as they were saved last and restored since, with the updates behind
    that; what programs wrote to them is lost.
    """

    def __init__(self, process: JitProcess, seconds: float, options: dict[str, Any]) -> None:
        self._process, self._seconds, self._options = process, seconds, options
        self._number = process.number()
        self._generation = -1
        self._kept: list[tuple[str, tuple[Any, ...]]] = []
        self._since: list[tuple[str, tuple[Any, ...]]] = []
        self._ran = False
        self._sent: dict[int, tuple[int, Packets]] = {}

    def _live(self) -> None:
        """Make sure that the world is in the child."""
        if self._generation == self._process.generation:
            return
        self._process.request("new", self._number, self._options)
        self._generation, self._ran, self._sent = self._process.generation, False, {}
        for method, arguments in (*self._kept, *self._since):
            self._process.request("call", self._number, method, arguments)

    def _ask(self, method: str, *arguments: Any) -> Any:
        self._live()
        return self._process.request("call", self._number, method, arguments)

    def _do(self, method: str, *arguments: Any) -> Any:
        answer = self._ask(method, *arguments)
        self._since.append((method, arguments))
        return answer

    def add_map(self, *arguments: Any) -> int:
        return int(self._do("add_map", *arguments))

    def add_program(self, *arguments: Any) -> int:
        return int(self._do("add_program", *arguments))

    def map_update(self, map: int, key: bytes, value: bytes, flags: int = 0) -> None:
        self._do("map_update", map, key, value, flags)

    def map_delete(self, map: int, key: bytes) -> None:
        self._do("map_delete", map, key)

    def set_program(self, map: int, key: int, program: int) -> None:
        self._do("set_program", map, key, program)

    def set_marker(self, map: int, key: int, tag: int) -> None:
        self._do("set_marker", map, key, tag)

    def set_inner(self, map: int, key: bytes, inner: int) -> None:
        self._do("set_inner", map, key, inner)

    def answers(self, values: Mapping[str, Any]) -> None:
        self._do("answers", dict(values))

    def add_memory(self, address: int, data: bytes) -> None:
        self._do("add_memory", address, data)

    def map_lookup(self, map: int, key: bytes) -> bytes | None:
        value: bytes | None = self._ask("map_lookup", map, key)
        return value

    def map_items(self, map: int) -> list[tuple[bytes, bytes]]:
        items: list[tuple[bytes, bytes]] = self._ask("map_items", map)
        return items

    def map_differs(self, map: int, other: JitWorld, other_map: int) -> bool:
        self._live()
        other._live()
        if self._process is not other._process:
            return self.map_items(map) != other.map_items(other_map)
        self._live()
        return bool(
            self._process.request("map_differs", self._number, map, other._number, other_map)
        )

    def save(self) -> int:
        if self._ran:
            raise ValueError("under the JIT maps are saved before programs ran, or after a restore")
        handle = int(self._do("save"))
        self._kept += self._since
        self._since = []
        return handle

    def restore(self, handle: int) -> None:
        self._ask("restore", handle)
        made = [one for one in self._since if one[0] in ("add_map", "add_program", "add_memory")]
        self._since = [*made, ("restore", (handle,))]
        self._ran = False

    def run(self, program: int, packets: Packets, fill: int) -> JitBatch:
        """Run; a death becomes faults."""
        process, seconds = self._process, self._seconds
        number, fresh = process.number(), False
        try:
            self._live()
            sent = self._send(packets)
            fresh = not self._ran
            self._ran = True
            details = len(packets) <= _EAGER
            arrays, faults, told = process.request(
                "run", self._number, program, sent, fill, number, details, seconds=seconds
            )
        except ChildDiedError as error:
            packet = self._find(program, packets, fill) if fresh else -1
            return _dead(process, program, len(packets), packet, error)
        found = [JitFault(*fault) for fault in faults]
        return JitBatch(process, number, arrays, found, told)

    def _send(self, packets: Packets) -> int:
        known = self._sent.get(id(packets))
        if known is None:
            if packets.root is not None:
                root = self._send(packets.root)
                number = self._process.number()
                self._process.request("select", number, root, packets.order)
            else:
                number = self._process.number()
                parts = packets.data, packets.contexts, packets.times
                self._process.request("packets", number, parts)
            while len(self._sent) >= _PACKETS:
                old = next(iter(self._sent))
                self._process.forget("packets", self._sent.pop(old)[0])
            known = self._sent[id(packets)] = number, packets
        return known[0]

    def _find(self, program: int, packets: Packets, fill: int) -> int:
        """Run one by one to learn at which packet the child dies; -1 where it does not again."""
        try:
            self._live()
            sent = self._send(packets)
            self._process.request(
                "slowly", self._number, program, sent, fill, seconds=self._seconds
            )
        except ChildDiedError:
            return self._process.packet
        self._ran = True
        self.forget()
        return -1

    def forget(self) -> None:
        """Leave the child's world; it is made anew when it is used again."""
        if self._generation == self._process.generation:
            self._process.forget("world", self._number)
        self._generation = -1


def _dead(
    process: JitProcess, program: int, count: int, packet: int, error: ChildDiedError
) -> JitBatch:
    """A batch without results. The packet that did it, where known, says why; the others that they
    were lost with it."""
    lost = f"no result: {error.message}" + (f" at packet {packet}" if packet >= 0 else "")
    faults = [
        JitFault(i, program, error.fault, -1, 0, 0, error.message if i == packet else lost)
        for i in range(count)
    ]
    arrays = bytes(8 * count), _I32.pack(_NO_VERDICT) * count, bytes(4 * count), bytes(4 * count)
    return JitBatch(process, 0, arrays, faults, [(b"", b"", b"", [])] * count)


class JitMachine(Machine):
    """As ``Machine``. ``time_limit``: seconds that a batch may take before its child is killed.

    Faults are "crash" or "limit" of whole batches. Nothing tells which instructions ran.
    """

    def __init__(
        self,
        objects: Sequence[LinkedObject],
        *,
        time_limit: float = 10.0,
        process: JitProcess | None = None,
        **options: Any,
    ) -> None:
        self._seconds = time_limit
        self._own = process
        self._process = process or JitProcess.acquire()
        super().__init__(objects, **options)

    def _new_world(self, seed: int, instruction_limit: int) -> _ubpf.World:
        options = {"seed": seed, "instruction_limit": instruction_limit}
        world: Any = JitWorld(self._process, self._seconds, options)
        return world  # type: ignore[no-any-return] # it does all that a Machine asks of a World

    def run(  # type: ignore[override]
        self, ref: int, packets: Packets, *, fill: int = 0, coverage: bool = False
    ) -> JitBatch:
        """As ``Machine.run``; ``coverage`` is not told by the JIT."""
        del coverage
        world: Any = self.world
        batch: JitBatch = world.run(ref, packets, fill)
        return batch

    def coverage(self, ref: int) -> None:
        """Not told by the JIT."""
        return

    def close(self) -> None:
        """Free the world; the last machine ends the child."""
        world: Any = self.__dict__.pop("world", None)
        if world is not None:
            world.forget()
        process, self._process = self.__dict__.get("_process"), None  # type: ignore[assignment]
        if process is not None and self._own is None:
            process.release()

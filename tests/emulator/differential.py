"""The same world in the kernel and in the emulator: what they tell apart, dimension by dimension.

``compare`` opens a ``Setup`` in both engines, runs the same inputs, and gives every dimension in
which they differ with an example. The kernel is right. What is known to differ is in
``differences.toml``, by name and with the reason; ``expect`` fails for a difference that is not there
and for an entry that no longer occurs.
"""

from __future__ import annotations

import functools
import random
import struct
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from bpfchain.emulator.link import LinkedObject
from bpfchain.transform.policy import Hook
from bpfchain.verify.engines import engine_named
from bpfchain.verify.engines.hooks import context_kind, has_packets
from bpfchain.verify.engines.protocol import (
    CannotRunError,
    Inputs,
    LoadError,
    ProgramRef,
    Runs,
    Session,
    Setup,
    Slots,
)
from bpfchain.verify.mutate import MapShape, mutated_maps
from bpfchain.verify.scenario import MapEntry

LISTED = Path(__file__).with_name("differences.toml")

SKB_FIELDS = {
    "mark": (8, 4), "priority": (32, 4), "ingress_ifindex": (36, 4), "ifindex": (40, 4),
    "cb": (48, 20), "tstamp": (152, 8), "wire_len": (160, 4), "gso_segs": (164, 4),
    "hwtstamp": (184, 8),
}  # fmt: skip
"""Fields of ``struct __sk_buff`` that a test run gives back (convert_skb_to___skb in
net/bpf/test_run.c): offset and bytes."""
XDP_FIELDS = {"ingress_ifindex": (12, 4), "rx_queue_index": (16, 4), "egress_ifindex": (20, 4)}

HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, LRU_HASH, LRU_PERCPU_HASH, LPM_TRIE = 1, 2, 5, 6, 9, 10, 11
LOCKS = {"buckets": 0, "flow_state_map": 0}
"""Maps (of the corpus and of xdp-tools) whose values hold a ``bpf_spin_lock``, and where. The kernel
neither stores nor shows it; the emulator does not know which bytes are one. No program can read it."""
_SEEDED = {HASH, ARRAY, PERCPU_HASH, PERCPU_ARRAY, LRU_HASH, LRU_PERCPU_HASH, LPM_TRIE}
_REFERENCES = {3, 4, 8, 12, 13, 14, 15, 16, 17, 18, 25}
"""Maps of programs, maps, devices …: ids in the kernel, indexes here; no program writes them."""


@dataclass(slots=True)
class Compared:
    """What was compared: runs that both took, maps; and ``found``: dimension -> an example."""

    runs: int = 0
    maps: int = 0
    verdicts: Counter[int] = field(default_factory=Counter)
    found: dict[str, str] = field(default_factory=dict)

    def differ(self, dimension: str, example: str) -> None:
        """Note it, with the first example."""
        self.found.setdefault(dimension, example)

    def join(self, other: Compared) -> None:
        """Add what another run found."""
        self.runs += other.runs
        self.maps += other.maps
        self.verdicts += other.verdicts
        for dimension, example in other.found.items():
            self.differ(dimension, example)


class Pair:
    """A ``Setup`` in both engines; a context manager. ``compared.found`` says where one is missing."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.compared = Compared()
        self.sessions: tuple[Session, Session] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        sessions: list[Session] = []
        for name, kind in (("kernel", "kernel"), ("emulator", "ubpf")):
            try:
                sessions.append(self._stack.enter_context(engine_named(kind).open(self.setup)))
            except LoadError as error:
                self.compared.differ(f"{name} load", error.message.splitlines()[-1])
                return self
        self.sessions = sessions[0], sessions[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def reset(self, slots: Slots | None = None) -> None:
        """Maps as at the start; ``slots``: what is in the slots map."""
        for session in self.sessions or ():
            session.reset(slots)

    def update(self, name: str, key: bytes, value: bytes) -> None:
        """Write to a map of the first object in both."""
        for session in self.sessions or ():
            session.map_update(0, name, key, value)

    def run(self, inputs: Inputs, program: int = 0) -> Compared:
        """Run one of the programs on all inputs in both. Gives what was found so far."""
        if self.sessions is None:
            return self.compared
        kernel, emulator = self.sessions
        try:
            ours = emulator.run(self.setup.programs[program], inputs)
            theirs = kernel.run(self.setup.programs[program], inputs)
        except CannotRunError as error:
            self.compared.differ("kernel run", error.message)
            return self.compared
        _runs(theirs, ours, self.setup.hook, inputs, self.compared)
        if not theirs.not_taken and not ours.faults:
            for number in range(len(self.setup.objects)):
                _maps(kernel, emulator, number, self.compared)
        return self.compared


def compare(setup: Setup, inputs: Inputs, slots: Slots | None = None) -> Compared:
    """Run ``setup.programs[0]`` on all inputs in both; ``slots``: what is in the slots map."""
    with Pair(setup) as pair:
        if slots is not None:
            pair.reset(slots)
        return pair.run(inputs)


def _runs(kernel: Runs, emulator: Runs, hook: Hook, inputs: Inputs, compared: Compared) -> None:
    kind = context_kind(hook)
    rings = ("ringbuf",)
    for n in range(len(inputs)):
        if n in kernel.not_taken:
            compared.differ("not taken", f"packet {n}: {kernel.not_taken[n]}")
            continue
        if n in emulator.faults:
            compared.differ("fault", f"packet {n}: {emulator.faults[n]}")
            continue
        compared.runs += 1
        where = f"packet {n} ({len(inputs.packets[n])} bytes)"
        _equal(compared, "ended", where, kernel.ended[n], emulator.ended[n])
        if kernel.ended[n] == emulator.ended[n] == -1:
            compared.verdicts[kernel.codes[n]] += 1
            _equal(compared, "verdict", where, kernel.codes[n], emulator.codes[n])
        records = [event for event in emulator.events(n) if event[0] in rings]
        _equal(compared, "ringbuf", where, sorted(kernel.events(n)), sorted(records))
        if has_packets(hook):
            _equal(compared, "packet", where, kernel.packet(n), emulator.packet(n))
            _equal(compared, "metadata", where, kernel.metadata(n), emulator.metadata(n))
            _contexts(kernel.context(n), emulator.context(n), kind, where, compared)


def _contexts(theirs: bytes, ours: bytes, kind: str, where: str, compared: Compared) -> None:
    if kind == "xdp":
        theirs = bytes(12) + theirs  # without the pointers
        if not any(theirs):  # asked for the loopback device by 0, and given back so
            theirs = theirs[:12] + (1).to_bytes(4, "little") + theirs[16:]
    for name, (at, size) in (XDP_FIELDS if kind == "xdp" else SKB_FIELDS).items():
        _equal(compared, f"context {name}", where, theirs[at : at + size], ours[at : at + size])


def _equal(
    compared: Compared, dimension: str, where: str, kernel: object, emulator: object
) -> None:
    if kernel != emulator:
        compared.differ(dimension, f"{where}: kernel {_shown(kernel)}, emulator {_shown(emulator)}")


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _maps(kernel: Session, emulator: Session, number: int, compared: Compared) -> None:
    """All maps that programs can change; of per-CPU values the CPU that ran (and those after it are
    as the kernel has them, where nothing runs)."""
    for name in kernel.map_names(number):
        spec = next(s for s in _linked(emulator, number).maps if s.name == name)
        if spec.type in _REFERENCES or kernel.map_note(number, name):
            continue
        theirs, ours = kernel.map_items(number, name), emulator.map_items(number, name)
        size = spec.value_size
        same = [(key, value[:size]) for key, value in theirs] == [
            (key, value[:size]) for key, value in ours
        ]
        compared.maps += 1
        if not same:
            compared.differ(f"map {name}", _first_difference(dict(theirs), dict(ours), size))


def _linked(session: Session, number: int) -> LinkedObject:
    linked: LinkedObject = session._objects[number]  # type: ignore[attr-defined]
    return linked


def _first_difference(theirs: Mapping[bytes, bytes], ours: Mapping[bytes, bytes], size: int) -> str:
    for key in sorted(theirs.keys() | ours.keys()):
        a, b = theirs.get(key), ours.get(key)
        if (a is None) != (b is None) or (a or b"")[:size] != (b or b"")[:size]:
            shown = [None if v is None else v[:size].hex() for v in (a, b)]
            return f"[{key.hex()}]: kernel {shown[0]}, emulator {shown[1]}"
    return "?"


def setup_of(data: bytes, hook: Hook, program: str, **more: Any) -> Setup:
    """A world of one object and one program of it."""
    return Setup(objects=(data,), hook=hook, programs=(ProgramRef(0, program),), **more)


def seeds(
    linked: LinkedObject, packets: Sequence[bytes], seed: int
) -> dict[str, tuple[MapEntry, ...]]:
    """Mutated contents for all maps of an object that user space may write and programs read."""
    shapes = [
        MapShape(spec.name, spec.key_size, spec.value_size, max(1, spec.max_entries),
                 spec.type in (ARRAY, PERCPU_ARRAY))
        for spec in linked.maps
        if spec.type in _SEEDED and not spec.readonly and not spec.name.startswith((".k", ".r"))
    ]  # fmt: skip
    kinds = {spec.name: spec.type for spec in linked.maps}
    rng = random.Random(seed)
    found = {}
    for name, entries in mutated_maps(shapes, (), packets, seed).items():
        if kinds[name] == LPM_TRIE:  # a prefix length that the kernel takes
            entries = [  # noqa: PLW2901
                (struct.pack("<I", rng.randint(0, 8 * (len(key) - 4))) + key[4:], value)
                for key, value in entries
            ]
        if kinds[name] in (LRU_HASH, LRU_PERCPU_HASH):
            entries = entries[:1]  # noqa: PLW2901 - which ones fall out is no business of this test
        at = LOCKS.get(name)
        if at is not None:
            entries = [  # noqa: PLW2901
                (key, value[:at] + bytes(4) + value[at + 4 :]) for key, value in entries
            ]
        found[name] = tuple(MapEntry(key, value) for key, value in entries)
    return found


@functools.cache
def listed() -> Mapping[str, Mapping[str, tuple[str, bool]]]:
    """Subject -> dimension -> reason, and whether it occurs always; of ``differences.toml``."""
    found: dict[str, dict[str, tuple[str, bool]]] = {}
    for entry in tomllib.loads(LISTED.read_text())["difference"]:
        for name in entry["where"]:
            for dimension in entry["dimensions"]:
                assert dimension not in found.get(name, {}), f"{name}: {dimension} is listed twice"
                found.setdefault(name, {})[dimension] = entry["why"], not entry.get("sometimes")
    return found


def expect(name: str, compared: Compared) -> None:
    """Fail for a difference that is not listed, and for a listed one that does not occur."""
    known = listed().get(name, {})
    new = [f"{what}: {example}" for what, example in compared.found.items() if what not in known]
    gone = [f"{what} is listed in {LISTED.name} and did not occur: {reason}"
            for what, (reason, always) in known.items() if always and what not in compared.found]  # fmt: skip
    assert not new + gone, "\n".join([f"{name}:", *new, *gone])


def unknown(names: Iterable[str], prefix: str) -> set[str]:
    """Listed subjects of a kind that do not exist."""
    return {name for name in listed() if name.startswith(prefix)} - set(names)

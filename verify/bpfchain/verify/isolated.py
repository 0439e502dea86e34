"""One link beside its original: both run on the same packets, and everything they do is compared.

The next link's slots hold markers, so what holds for a link alone holds for a chain of them by
induction (DESIGN section 5). The caller decides which recordings, fills and states are run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from bpfchain.transform.policy import Hook
from bpfchain.verify.static.intent import Intent

from .engines.protocol import (
    NO_MARKER,
    Coverage,
    Engine,
    Event,
    Inputs,
    LoadError,
    ProgramRef,
    RunFault,
    Runs,
    Session,
    Setup,
)
from .expected import Case, Expected, describe, expect, marker_slots, saved_text, saved_value
from .result import Place

__all__ = ["Difference", "Pair", "PatchedLoadError", "differing_dimension", "show_difference"]

MORE_INSTRUCTIONS = 100_000
"""What the patched program may execute beyond the original: it must not be the one that reaches
the limit first."""

_APART = -3
"""World of runs that are not to disturb the maps which another run left."""


class PatchedLoadError(Exception):
    """The engine took the original and not the patched object."""


class Difference(NamedTuple):
    """The first packet (position in the inputs) on which the two differ, and how."""

    position: int
    dimension: str
    expected: str
    got: str
    fault: RunFault | None = None
    map: str = ""


class Compared(NamedTuple):
    """One batch of the patched program, compared."""

    difference: Difference | None
    runs: Runs


class Pair:
    """The original alone and the patched link, in one scenario (``world``: a setup of neither).

    Raises LoadError for an original that the engine does not take, PatchedLoadError.
    """

    def __init__(
        self, engine: Engine, original: bytes, patched: bytes, intent: Intent, world: Setup
    ) -> None:
        self.engine, self.intent = engine, intent
        self.entries = {
            case_state: ProgramRef(0, intent.entry_name(case_state)) for case_state in intent.states
        }
        self.program = ProgramRef(0, intent.program)
        self.world, self._original, self._data = world, original, patched
        self._stack = ExitStack()
        self._originals: dict[int, Session] = {}
        try:
            first = self.original(0)
            self.patched = self._open_patched(patched)
        except BaseException:
            self.close()
            raise
        theirs = set(self.patched.map_names(0))
        self.missing_maps = [name for name in first.map_names(0) if name not in theirs]
        self.notes = {name: first.map_note(0, name) for name in first.map_names(0)}
        own = (intent.slots_map, intent.saved_map)
        self.maps = [
            name for name, note in self.notes.items()
            if not note and name in theirs and name not in own
        ]  # fmt: skip
        self._markers = marker_slots(intent)

    def original(self, number: int) -> Session:
        """A world of the original alone; another one for each number, so that the maps which two
        fills leave can be compared."""
        if number not in self._originals:
            setup = replace(self.world, objects=(self._original,), programs=(self.program,))
            self._originals[number] = self._stack.enter_context(self.engine.open(setup))
        return self._originals[number]

    def _open_patched(self, patched: bytes) -> Session:
        setup = replace(
            self.world, objects=(patched,), programs=tuple(dict.fromkeys(self.entries.values())),
            slots_map=self.intent.slots_map if self._has_slots else "",
            instruction_limit=self.world.instruction_limit + MORE_INSTRUCTIONS,
        )  # fmt: skip
        try:
            return self._stack.enter_context(self.engine.open(setup))
        except LoadError as error:
            raise PatchedLoadError(error.message) from None

    @property
    def _has_slots(self) -> bool:
        """Whether a slots map is to be expected: not in a link that needed no patch."""
        return self.intent.strategy != "none" and not self.intent.ends

    def run_original(
        self, inputs: Inputs, fill: int, number: int = 0, *, coverage: bool = False
    ) -> Runs:
        """From the start of the maps; they stay as the run left them until the next one."""
        session = self.original(number)
        session.reset()
        return session.run(self.program, inputs, fill=fill, coverage=coverage)

    def run_patched(self, inputs: Inputs, fill: int, case: Case) -> Runs:
        """From the start of the maps, with a marker in every slot or with none."""
        session, intent = self.patched, self.intent
        session.reset((self._markers if case.marked else {}) if self._has_slots else None)
        if self._saves:
            session.map_update(0, intent.saved_map, bytes(4), saved_value(case.state))
        return session.run(ProgramRef(0, self.entry_name(case)), inputs, fill=fill)

    @property
    def _saves(self) -> bool:
        return self.intent.mode == "map" and self.intent.saved_map in self.patched.map_names(0)

    def compare(
        self, inputs: Inputs, original: Runs, fill: int, case: Case, number: int = 0
    ) -> Compared:
        """Run the patched link and compare it with ``original``, the last run of that number's
        original on the same inputs. Map differences are found at the end: their position is the
        last packet's (see ``locate``)."""
        right = expect(self.intent, original, case)
        runs = self.run_patched(inputs, fill, case)
        found = self._first(original, runs, right)
        if found is None and not _limits(original):
            found = self._maps(number, len(inputs), right)
        return Compared(found, runs)

    def differs(self, inputs: Inputs, fill: int, case: Case) -> Difference | None:
        """Both run on these inputs alone, from the start of the maps."""
        original = self.run_original(inputs, fill, _APART)
        return self.compare(inputs, original, fill, case, _APART).difference

    def after(self, inputs: Inputs, fill: int, case: Case) -> tuple[bytes, bytes]:
        """The last packet as the original and as the patched program leave it."""
        last = len(inputs) - 1
        original = self.run_original(inputs, fill, _APART)
        return original.packet(last), self.run_patched(inputs, fill, case).packet(last)

    def divergence(self, inputs: Inputs, fill: int, case: Case, found: Difference) -> Place | None:
        """The first instruction that was done otherwise on the last packet, if that can be told."""
        if found.fault is not None and found.fault.pc >= 0:
            return self.place_of(found.fault, patched=True)
        both = self.traced(inputs, fill, case)
        if both is None:
            return None
        from .divergence import first_divergence

        return first_divergence(*both, self.intent, self.entry_name(case))

    @property
    def hook(self) -> Hook:
        """Of both."""
        return self.intent.hook

    # comparison

    def _first(self, original: Runs, runs: Runs, right: Expected) -> Difference | None:
        wrong = _wrong(runs, right)
        if runs.faults or original.faults:
            wrong += [n for n in runs.faults if not _same_fault(original, runs, n)]
        effects = original.differing(runs)
        skipped = _limits(original)
        candidates = [n for n in (*wrong, *effects) if n not in skipped]
        if not candidates:
            return None
        position = min(
            candidates, key=lambda n: (n in runs.faults and runs.faults[n].consequence, n)
        )
        if position in wrong:
            return self._verdict(original, runs, right, position)
        return show_difference(original, runs, position)

    def _verdict(self, original: Runs, runs: Runs, right: Expected, at: int) -> Difference:
        fault = runs.faults.get(at)
        before = original.faults.get(at)
        return Difference(
            at,
            "fault" if fault or before else "verdict",
            describe(self.intent, right.ended[at], right.codes[at], before),
            describe(self.intent, runs.ended[at], runs.codes[at], fault),
            fault,
        )

    def _maps(self, number: int, count: int, right: Expected) -> Difference | None:
        original = self.original(number)
        for name in self.maps:
            if original.map_differs(0, name, self.patched, 0):
                a, b = original.map_items(0, name), self.patched.map_items(0, name)
                key, ours, theirs = _map_difference(a, b)
                return Difference(count - 1, "map", ours, f"map {name}{key} {theirs}", map=name)
        name = self.intent.saved_map
        if self._saves and count:
            wanted = saved_value(right.saved)
            found = dict(self.patched.map_items(0, name)).get(bytes(4), bytes(8))
            # the kernel gives one value for each CPU: that of the CPU which ran
            if wanted != found[: len(wanted)]:
                told = [saved_text(self.intent, value) for value in (wanted, found[:8])]
                return Difference(count - 1, "map", told[0], f"map {name}: {told[1]}", map=name)
        return None

    def entry_name(self, case: Case) -> str:
        """The program that the case runs."""
        return self.entries[None if self.intent.mode == "map" else case.state].name

    def place_of(self, fault: RunFault, *, patched: bool = False) -> Place | None:
        """Where a fault happened; None where the engine does not tell."""
        session = self.patched if patched else self.original(0)
        program = ProgramRef(0, fault.program or self.intent.program)
        try:
            origin = session.origin(program)
        except KeyError:
            return None
        if not 0 <= fault.pc < len(origin):
            return None
        section, index = origin[fault.pc]
        return Place("out" if patched else "in", section, index, program.name)

    def traced(self, inputs: Inputs, fill: int, case: Case) -> tuple[Coverage, Coverage] | None:
        """What the last packet alone made both execute, in worlds of their own."""
        last = len(inputs) - 1
        before, final = inputs.select(range(last)), inputs.select([last])
        with Pair(self.engine, self._original, self._data, self.intent, self.world) as fresh:
            fresh.run_original(before, fill)
            fresh.original(0).run(fresh.program, final, fill=fill, coverage=True)
            fresh.run_patched(before, fill, case)
            entry = ProgramRef(0, self.entry_name(case))
            fresh.patched.run(entry, final, fill=fill, coverage=True)
            a, b = fresh.original(0).coverage(fresh.program), fresh.patched.coverage(entry)
        return None if a is None or b is None else (a, b)

    def close(self) -> None:
        """Close all worlds."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()


def _wrong(runs: Runs, right: Expected) -> list[int]:
    """Positions of runs that did not end as they must."""
    if runs.ended == right.ended and runs.codes == right.codes:  # arrays: a large recording's time
        return []
    both = zip(runs.ended, runs.codes, right.ended, right.codes, strict=True)
    return [
        position
        for position, (how, code, ended, wanted) in enumerate(both)
        if how != ended or (code != wanted and how == NO_MARKER)
    ]


def _limits(original: Runs) -> frozenset[int]:
    """Packets on which the original itself did not end: what it did until then is not compared."""
    if not original.faults:
        return frozenset()
    return frozenset(n for n, fault in original.faults.items() if fault.kind in ("limit", "crash"))


def _same_fault(original: Runs, runs: Runs, position: int) -> bool:
    a, b = original.faults.get(position), runs.faults.get(position)
    if a is None or b is None:
        return a is b
    return (a.kind, a.what, a.size) == (b.kind, b.what, b.size)


def differing_dimension(a: Seen, b: Seen, position: int) -> str:
    """Which of packet, metadata, context, events, order differs there first; "" if none does."""
    if a.packet(position) != b.packet(position):
        return "packet"
    if a.metadata(position) != b.metadata(position):
        return "metadata"
    if a.context(position) != b.context(position):
        return "context"
    ours, theirs = list(a.events(position)), list(b.events(position))
    if ours == theirs:
        return ""
    return "order" if sorted(ours) == sorted(theirs) else "events"


class Seen(Protocol):
    """What runs leave, as far as it is compared (``Runs``, or composed ones)."""

    @property
    def ended(self) -> Sequence[int]: ...
    def packet(self, index: int, /) -> bytes: ...
    def metadata(self, index: int, /) -> bytes: ...
    def context(self, index: int, /) -> bytes: ...
    def events(self, index: int, /) -> Sequence[Event]: ...


def show_difference(a: Seen, b: Seen, position: int) -> Difference | None:
    """The difference but for the verdict there, both sides in words; None where there is none."""
    dimension = differing_dimension(a, b, position)
    if not dimension:
        return None
    if dimension in ("events", "order"):
        return Difference(position, dimension, *_events(a.events(position), b.events(position)))
    look = {"packet": (a.packet, b.packet), "metadata": (a.metadata, b.metadata)}
    ours, theirs = look.get(dimension, (a.context, b.context))
    told = _around(ours(position).hex(), theirs(position).hex())
    return Difference(position, dimension, told[0], f"{dimension} {told[1]}")


def _events(ours: Sequence[Event], theirs: Sequence[Event]) -> tuple[str, str]:
    """The first helper effect that differs, on both sides."""
    at = next(
        (n for n, (x, y) in enumerate(zip(ours, theirs, strict=False)) if x != y),
        min(len(ours), len(theirs)),
    )
    pair = [side[at] if at < len(side) else None for side in (ours, theirs)]
    payloads = _around(*("" if event is None else event[2].hex() for event in pair))
    told = [
        "nothing" if event is None else " ".join(filter(None, (event[0], event[1], payload)))
        for event, payload in zip(pair, payloads, strict=True)
    ]
    return told[0], f"effect {at}: {told[1]}"


def _around(a: str, b: str) -> tuple[str, str]:
    """Two long hexadecimal texts cut to where they first differ, with the offset."""
    if len(a) <= 64 and len(b) <= 64:
        return a or "(empty)", b or "(empty)"
    first = next(
        (n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    start = max(0, first - first % 2 - 8)
    where = f"{len(a) // 2} bytes, {{}}{'…' if start else ''}{{}}… (from byte {start // 2})"
    return (
        where.format("", a[start : start + 48]),
        where.replace(str(len(a) // 2), str(len(b) // 2), 1).format("", b[start : start + 48]),
    )


def _map_difference(
    a: Sequence[tuple[bytes, bytes]], b: Sequence[tuple[bytes, bytes]]
) -> tuple[str, str, str]:
    """The first key at which two contents differ, what is expected there, and what is there."""
    ours: Mapping[bytes, bytes] = dict(a)
    theirs: Mapping[bytes, bytes] = dict(b)
    for key in sorted(ours.keys() | theirs.keys()):
        x, y = ours.get(key), theirs.get(key)
        if x != y:
            shown = ["nothing" if v is None else _short(v, x, y) for v in (x, y)]
            return f"[{key.hex()}] holds", shown[0], shown[1]
    return " has", f"{len(a)} entries in another order", f"{len(b)} entries"


def _short(value: bytes, a: bytes | None, b: bytes | None) -> str:
    if len(value) <= 16 or a is None or b is None:
        return value[:16].hex() + ("…" if len(value) > 16 else "")
    first = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0)
    first -= first % 8
    return f"{value[first : first + 16].hex()} (from byte {first})"

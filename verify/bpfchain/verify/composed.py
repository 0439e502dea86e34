"""A chain's two sides: the originals composed by the reference, and the patched links in slots.

Engines run one program on one batch. So the reference runs link by link: link i on the packets that
reach it, as the link before left them. Where links share maps, or helpers give their answers in
turn, packet by packet.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import NamedTuple, Self

from bpfchain.transform.policy import Hook
from bpfchain.verify.static.intent import Intent

from .engines.hooks import L2_BYTES, context_kind
from .engines.protocol import (
    FAULTED,
    NO_MARKER,
    NOT_TAKEN,
    Engine,
    Event,
    Inputs,
    LoadError,
    ProgramRef,
    RunFault,
    Runs,
    Session,
    Setup,
    Slot,
)
from .expected import Case, describe, reference_link, slot_of
from .isolated import MORE_INSTRUCTIONS, Difference, PatchedLoadError, Seen, show_difference
from .reads import answered_helpers
from .reference import low32, step
from .result import Place

__all__ = ["ComposedRuns", "Worlds"]

Link = tuple[bytes, bytes, Intent]
"""Original, patched, intent."""
_XDP_POINTERS, _SKB_POINTERS = (0, 4, 8), (76, 80, 140)
"""Offsets of data, data_end and data_meta in the contexts."""
_NOWHERE = bytes(4)
_METADATA = "a link leaves metadata, which the reference cannot hand to the next original"
_FRAGMENTS = "a link resizes a frame near or above a page, which moves its room and fragments"
_LINEAR = 3000
"""Bytes of a frame up to which growing and shrinking depends on nothing but the frame."""


@dataclass(slots=True)
class ComposedRuns:
    """What the reference says of each packet of a batch."""

    codes: list[int]
    ended: list[int]
    packets: list[bytes]
    metadatas: list[bytes]
    contexts: list[bytes]
    told: list[list[Event]]
    reached: list[int]
    """How many links ran."""
    failed: dict[int, tuple[int, RunFault]] = field(default_factory=dict)
    """Packet -> the link (place) that faulted, and its fault."""
    left_out: dict[int, str] = field(default_factory=dict)
    """Packets that cannot be composed, and why."""

    def __len__(self) -> int:
        return len(self.codes)

    def packet(self, index: int) -> bytes:
        """The frame after the last link."""
        return self.packets[index]

    def metadata(self, index: int) -> bytes:
        """XDP's, after the last link."""
        return self.metadatas[index]

    def context(self, index: int) -> bytes:
        """After the last link."""
        return self.contexts[index]

    def events(self, index: int) -> list[Event]:
        """Of all links, in order."""
        return self.told[index]


class ChainCompared(NamedTuple):
    """One batch of the chain, compared."""

    difference: Difference | None
    runs: Runs


class _Unpointed:
    """Runs whose contexts hold no addresses."""

    def __init__(self, runs: Seen, pointers: Sequence[int]) -> None:
        self._runs, self._pointers = runs, pointers
        self.ended = runs.ended
        self.packet, self.metadata, self.events = runs.packet, runs.metadata, runs.events

    def context(self, index: int, /) -> bytes:
        """With zeros for data, data_end and data_meta."""
        found = self._runs.context(index)
        for at in self._pointers:
            if at + 4 <= len(found):
                found = found[:at] + _NOWHERE + found[at + 4 :]
        return found


class Worlds:
    """Both sides in one scenario. Raises LoadError (an original), PatchedLoadError."""

    def __init__(self, engine: Engine, links: Sequence[Link], world: Setup) -> None:
        self._engine, self._links, self.world = engine, links, world
        self.hook: Hook = world.hook
        self.deterministic = engine.deterministic
        self._intents = [intent for _, _, intent in links]
        self._stack = ExitStack()
        own = [ProgramRef(place, i.program) for place, i in enumerate(self._intents)]
        try:
            self._originals: Session = self._stack.enter_context(
                engine.open(
                    replace(world, objects=tuple(o for o, _, _ in links), programs=tuple(own))
                )
            )
            self._chain = self._open_chain()
        except BaseException:
            self.close()
            raise
        self._own = own
        kind = context_kind(self.hook)
        self._pointers = (
            _XDP_POINTERS if kind == "xdp" else _SKB_POINTERS if kind != "plain" else ()
        )
        first = self._intents[0]
        chains = (first.slots_map, first.saved_map)
        self._maps = [
            (place, name)
            for place in range(len(links))
            for name in self._originals.map_names(place)
            if name not in chains
            and not self._originals.map_note(place, name)
            and name in self._chain.map_names(place)
        ]
        self.notes = {
            f"map {name} of link {place}": note
            for place in range(len(links))
            for name in self._originals.map_names(place)
            if (note := self._originals.map_note(place, name))
        }
        asking = [bool(answered_helpers(code)) for code in self.codes()]
        self.answers_in_order = any(asking)
        self._one_by_one = bool(world.share) or sum(asking) > 1
        self._asking = any(asking)

    def _open_chain(self) -> Session:
        first = self._intents[0]
        programs: dict[ProgramRef, None] = {}
        slots: dict[int, Slot] = {}
        for place, intent in enumerate(self._intents):
            for state, name in intent.entries.items():
                ref = ProgramRef(place, name)
                programs[ref] = None
                slots[slot_of(intent, state, intent.index)] = ref
        share = dict(self.world.share)
        if first.mode == "map":
            share |= {
                (place, first.saved_map): first.saved_map for place in range(len(self._links))
            }
        alone = len(self._links) == 1 and first.ends
        setup = replace(
            self.world, objects=tuple(p for _, p, _ in self._links), programs=tuple(programs),
            slots_map="" if alone else first.slots_map, share=share,
            instruction_limit=self.world.instruction_limit * len(self._links) + MORE_INSTRUCTIONS,
        )  # fmt: skip
        try:
            session = self._stack.enter_context(self._engine.open(setup))
            if not alone:
                session.reset(slots)
        except LoadError as error:
            raise PatchedLoadError(f"link {error.object}: {error.message}") from None
        return session

    def codes(self) -> list[bytes]:
        """The originals' instructions, link by link."""
        return [self._originals.code(ref) for ref in self._own]

    def run_chain(self, inputs: Inputs, fill: int) -> Runs:
        """The patched chain from its head, from the start of the maps."""
        self._chain.reset()
        head = ProgramRef(0, self._intents[0].entry_name(None))
        return self._chain.run(head, inputs, fill=fill)

    def reference(self, inputs: Inputs, fill: int) -> ComposedRuns:
        """The composed originals, from the start of the maps."""
        self._originals.reset()
        count = len(inputs)
        result = ComposedRuns(
            [0] * count, [NO_MARKER] * count, list(inputs.packets), [b""] * count,
            list(inputs.contexts), [[] for _ in range(count)], [0] * count,
        )  # fmt: skip
        if not self._one_by_one:
            self._compose(inputs, fill, range(count), result)
        else:
            for number in range(count):
                self._compose(inputs, fill, [number], result)
        return result

    def _compose(
        self, inputs: Inputs, fill: int, numbers: Sequence[int], result: ComposedRuns
    ) -> None:
        """Algorithm of DESIGN section 2 for these packets, link by link."""
        active = list(numbers)
        saved: dict[int, int | None] = dict.fromkeys(active)
        l3 = context_kind(self.hook) == "skb-l3"
        for place, intent in enumerate(self._intents):
            if not active:
                return
            batch = inputs.select(active)
            if place:
                frames = [inputs.packets[n][:L2_BYTES] * l3 + result.packets[n] for n in active]
                contexts = [result.contexts[n] for n in active]
                if self._asking:  # random numbers are those of the packet's place in the whole
                    batch = batch.changed(frames, contexts)
                else:
                    batch = Inputs(frames, contexts, batch.times, batch.origin)
            runs = self._originals.run(self._own[place], batch, fill=fill)
            link = reference_link(intent)
            steps: dict[tuple[int | None, int], tuple[bool, int | None]] = {}
            going = []
            for position, n in enumerate(active):
                result.reached[n] = place + 1
                result.ended[n] = runs.ended[position]
                if runs.ended[position] == NOT_TAKEN:
                    result.left_out[n] = runs.not_taken[position]
                    continue
                before = len(result.packets[n])
                result.packets[n] = runs.packet(position)
                result.metadatas[n] = runs.metadata(position)
                result.contexts[n] = runs.context(position)
                result.told[n] += runs.events(position)
                if position in runs.faults:
                    result.failed[n] = place, runs.faults[position]
                    continue
                own = runs.codes[position]
                known = steps.get((saved[n], own))
                if known is None:
                    known = steps[saved[n], own] = step(link, saved[n], own)
                on, then = known
                saved[n] = then
                result.codes[n] = low32(own) if not on or then is None else then
                if not on:
                    continue
                reason = self._why_not_carried(result, n, before)
                if reason and place + 1 < len(self._intents):
                    result.left_out[n] = reason
                else:
                    going.append(n)
            active = going

    def _why_not_carried(self, result: ComposedRuns, number: int, before: int) -> str:
        """Why the next original cannot be given the packet as this one left it; "" if it can."""
        if result.metadatas[number]:
            return _METADATA
        size = len(result.packets[number])
        if size != before and max(size, before) > _LINEAR:
            return _FRAGMENTS
        return ""

    def compare(self, inputs: Inputs, right: ComposedRuns, fill: int) -> ChainCompared:
        """Run the chain and compare it with the last reference run on the same inputs."""
        runs = self.run_chain(inputs, fill)
        intent = self._intents[0]
        # the frame may begin elsewhere: the reference starts each link with a fresh headroom
        wanted, seen = _Unpointed(right, self._pointers), _Unpointed(runs, self._pointers)
        for n in range(len(inputs)):
            if n in right.left_out:
                continue
            fault = runs.faults.get(n)
            before = right.failed.get(n)
            if before is not None and before[1].kind in ("limit", "crash"):
                return ChainCompared(None, runs)
            same = runs.ended[n] == right.ended[n] and (
                runs.codes[n] == right.codes[n] or right.ended[n] == FAULTED
            )
            if same and before is not None and fault is not None:
                same = (before[1].kind, before[1].what) == (fault.kind, fault.what)
            if not same:
                return ChainCompared(
                    Difference(
                        n, "fault" if fault or before else "verdict",
                        describe(intent, right.ended[n], right.codes[n], before and before[1]),
                        describe(intent, runs.ended[n], runs.codes[n], fault), fault,
                    ), runs,
                )  # fmt: skip
            found = show_difference(wanted, seen, n)
            if found is not None:
                return ChainCompared(found, runs)
        return ChainCompared(self._map_difference(len(inputs)), runs)

    def _map_difference(self, count: int) -> Difference | None:
        for place, name in self._maps:
            if self._originals.map_differs(place, name, self._chain, place):
                label = f"map {name} of link {place}"
                return Difference(
                    count - 1, "map", f"{label}: as the originals leave it", f"{label}: otherwise",
                    map=name,
                )  # fmt: skip
        return None

    # for minimising

    def differs(self, inputs: Inputs, fill: int, case: Case) -> Difference | None:
        """Both sides on these inputs alone."""
        return self.compare(inputs, self.reference(inputs, fill), fill).difference

    def after(self, inputs: Inputs, fill: int, case: Case) -> tuple[bytes, bytes]:
        """The last packet as the reference and as the chain leave it."""
        last = len(inputs) - 1
        right = self.reference(inputs, fill)
        return right.packet(last), self.run_chain(inputs, fill).packet(last)

    def divergence(self, inputs: Inputs, fill: int, case: Case, found: Difference) -> Place | None:
        """Not told for a chain: the links' own proofs do."""
        return None

    def close(self) -> None:
        """Close both."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

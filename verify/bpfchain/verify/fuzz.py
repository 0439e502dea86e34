"""Fuzzing: packets and map contents mutated until they take new edges, each run compared.

A ``Campaign`` is one link. Its pool begins with the recordings' packets; a packet that takes an edge
of the original's body which none before it took joins the pool, so that mutations go on from there.
What the programs compare with is the dictionary. Every batch is a recording of its own, checked as
``dynamic`` checks any other.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from .contexts import kind_of
from .covered import program_coverage
from .dictionary import dictionary
from .dynamic import check_dynamic
from .engines import engine_named
from .engines.protocol import Inputs, ProgramRef, Session, Setup
from .inputs import inputs_of
from .mutate import MapShape, mutated_maps, mutated_packets
from .reads import context_bytes
from .recording import Recording
from .result import Counterexample, DynamicResult, Outcome
from .scenario import MapEntry, Scenario

if TYPE_CHECKING:
    from .prove import Options, Subject
    from .static.intent import Intent

__all__ = ["BATCH", "Campaign", "Found", "campaign_of"]

BATCH = 1024
"""Packets of one batch."""
_CONTEXTS_MAX = 256
_ARRAYS = frozenset((2, 6))
_NO_CONTENTS = frozenset((3, 4, 7, 12, 13, 14, 16, 17, 18, 22, 23, 25, 27, 31))
"""Kinds whose contents are programs, maps, devices or streams: not mutated."""
Edge = tuple[str, int, bool]


@dataclass(frozen=True, slots=True)
class Found:
    """An input that took new edges, with the maps' contents that it ran on."""

    packet: bytes
    scenario: Scenario
    edges: frozenset[Edge]


@dataclass(slots=True, kw_only=True)
class Campaign:
    """The fuzzing of one link. ``round`` runs one batch; the same seed gives the same batches."""

    subject: Subject
    intent: Intent
    options: Options
    seed: int
    pool: list[bytes]
    values: tuple[bytes, ...]
    shapes: tuple[MapShape, ...]
    recording: Recording
    of: int
    """Edges of the body and its subprograms."""
    context_size: int
    known: set[Edge]
    began_with: int
    """Edges that the recordings took."""
    found: list[Found] = field(default_factory=list)
    packets: int = 0
    rounds: int = 0
    outcome: Outcome = Outcome.EQUAL
    unmodelled: tuple[str, ...] = ()
    result: DynamicResult | None = None
    """Of the batch that ended the campaign."""

    @property
    def counterexample(self) -> Counterexample | None:
        """What shows the difference, where there is one."""
        return self.result.counterexample if self.result is not None else None

    @property
    def plain(self) -> bool:
        """Whether the link runs on contexts, not on packets."""
        return kind_of(self.intent.hook) == "plain"

    def round(self, extra: Sequence[bytes] = (), size: int = BATCH) -> bool:
        """Run one batch of at most ``size`` inputs; False where it ended the campaign.

        ``extra`` are packets that other links' campaigns found.
        """
        self.rounds += 1
        batch = self._batch(list(extra), size)
        checked = check_dynamic(
            self.subject.original, self.subject.patched, self.intent, [batch],
            engine=self.options.engines[0], fills=self.options.fills, btf=self.options.btf,
            allow_residue=self.options.allow_residue, seed=self.seed + self.rounds,
            save_to=self.options.save_to,
        )  # fmt: skip
        self.packets += checked.packets
        self.unmodelled = tuple(dict.fromkeys((*self.unmodelled, *checked.unmodelled)))
        self.outcome = max(self.outcome, checked.outcome)
        if checked.outcome in (Outcome.NOT_EQUAL, Outcome.INCONCLUSIVE):
            self.result = checked
            return False
        if checked.coverage is not None:
            seen = {edge for edge, taken in checked.coverage.edges.items() if taken}
            if seen - self.known:
                self._keep(batch)
                self.known |= seen  # also what takes more than one input
        return True

    def _batch(self, extra: list[bytes], size: int) -> Recording:
        rng = random.Random(f"{self.seed} {self.rounds}")
        number = rng.getrandbits(63)
        scenario = self.recording.scenario
        if self.shapes and rng.random() < 0.7:
            contents = mutated_maps(self.shapes, self.values, self.pool, number)
            entries = {
                name: tuple(MapEntry(key, value) for key, value in found)
                for name, found in contents.items()
            }
            scenario = replace(scenario, maps={**scenario.maps, **entries})
        if self.plain:
            raw = _mutated_contexts(self.pool, self.values, rng, min(size, _CONTEXTS_MAX))
            scenario = replace(scenario, raw=raw, times=())
            packets = self.recording.packets[:1]
        else:
            made = mutated_packets(self.pool, self.values, number, max(size - len(extra), 1))
            packets = (*extra, *made)
            scenario = replace(scenario, times=())
        return Recording(
            name=f"fuzz {self.seed}/{self.rounds}",
            sha256="",
            packets=tuple(packets),
            times=tuple(1_000_000 * n for n in range(len(packets))),
            scenario=scenario,
        )

    def _keep(self, batch: Recording) -> None:
        """Put the inputs of the batch that take new edges by themselves into the pool."""
        inputs, _ = inputs_of(batch, self.intent.hook, self.context_size)
        for position, edges in self._adders(batch.scenario, inputs):
            packet = inputs.contexts[position] if self.plain else inputs.packets[position]
            self.pool.append(packet)
            self.found.append(Found(packet, batch.scenario, edges))

    def _adders(self, scenario: Scenario, inputs: Inputs) -> Iterator[tuple[int, frozenset[Edge]]]:
        """Positions that take edges which neither the known nor earlier ones take: by halves."""
        known = set(self.known)
        todo = [range(len(inputs))]
        while todo:
            part = todo.pop()
            fresh = self._edges(scenario, inputs.select(part)) - known
            if not fresh:
                continue
            if len(part) == 1:
                known |= fresh
                yield part[0], frozenset(fresh)
                continue
            middle = len(part) // 2
            todo += [part[middle:], part[:middle]]

    def _edges(self, scenario: Scenario, inputs: Inputs) -> set[Edge]:
        """Edges that the original alone takes on these inputs, from the start of the maps."""
        with _opened(self.subject.original, self.intent, self.options, scenario) as session:
            program = ProgramRef(0, self.intent.program)
            session.run(program, inputs, fill=self.options.fills[0], coverage=True)
            covered = session.coverage(program)
        if covered is None:
            return set()
        edges = program_coverage(self.intent.program, covered).edges
        return {edge for edge, taken in edges.items() if taken}


def campaign_of(subject: Subject, intent: Intent, options: Options) -> Campaign:
    """A campaign that begins where the recordings end: they are run first, for their coverage.

    Raises InconclusiveError where the engine cannot run the program at all, UsageError for a
    recording that does not fit.
    """
    first = check_dynamic(
        subject.original, subject.patched, intent, options.recordings, engine=options.engines[0],
        fills=options.fills, btf=options.btf, allow_residue=options.allow_residue,
        seed=options.seed, save_to=options.save_to,
    )  # fmt: skip
    edges = first.coverage.edges if first.coverage is not None else {}
    known = {edge for edge, taken in edges.items() if taken}
    recording = options.recordings[0]
    with _opened(subject.original, intent, options, recording.scenario) as session:
        code = session.code(ProgramRef(0, intent.program))
    size = min(context_bytes(code), 4096)
    pool: list[bytes] = []
    for one in options.recordings:
        inputs, _ = inputs_of(one, intent.hook, size)
        pool += inputs.contexts if kind_of(intent.hook) == "plain" else inputs.packets
    ended = first.outcome in (Outcome.NOT_EQUAL, Outcome.INCONCLUSIVE)
    return Campaign(
        subject=subject, intent=intent, options=options, seed=options.seed,
        pool=list(dict.fromkeys(pool)), values=dictionary([code]), recording=recording,
        shapes=_shapes(subject.original), of=len(edges), context_size=size,
        known=known, began_with=len(known), packets=first.packets, outcome=first.outcome,
        unmodelled=first.unmodelled, result=first if ended else None,
    )  # fmt: skip


def _opened(original: bytes, intent: Intent, options: Options, scenario: Scenario) -> Session:
    setup = Setup(
        objects=(original,), hook=intent.hook, programs=(ProgramRef(0, intent.program),),
        btf=options.btf, seed=options.seed, scenario=scenario,
    )  # fmt: skip
    return engine_named(options.engines[0]).open(setup)


def _shapes(original: bytes) -> tuple[MapShape, ...]:
    """The maps whose contents a user writes: constants and the kernel's own are none."""
    from bpfchain.emulator.link import link_object

    return tuple(
        MapShape(m.name, m.key_size, m.value_size, m.max_entries, array=m.type in _ARRAYS)
        for m in link_object(original).maps
        if m.type not in _NO_CONTENTS and not m.readonly and m.contents is None and m.key_size
    )


def _mutated_contexts(
    pool: Sequence[bytes], values: Sequence[bytes], rng: random.Random, count: int
) -> tuple[bytes, ...]:
    """Raw contexts of the pool's length with words changed: the dictionary's, small and random."""
    made = []
    for _ in range(count):
        context = bytearray(rng.choice(pool))
        for _ in range(rng.choice((1, 1, 2, 4))):
            pick = rng.random()
            if values and pick < 0.5:
                word = rng.choice(values)
            elif pick < 0.75:
                word = rng.randrange(256).to_bytes(8, "little")
            else:
                word = rng.randbytes(rng.choice((1, 2, 4, 8)))
            room = len(context) - len(word)
            if room >= 0:
                at = rng.randrange(room + 1) & -min(len(word), 8)
                context[at : at + len(word)] = word
        made.append(bytes(context))
    return tuple(made)

"""The dynamic half of a proof of one link: every recording, fill and state, beside the original.

``check_dynamic`` decides what is run and what follows from it; ``isolated`` runs and compares,
``minimise`` makes what differs small.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bpfchain.transform.codes import CodeSet
from bpfchain.verify.static.intent import Intent

from .covered import program_coverage
from .engines import engine_named
from .engines.hooks import context_kind
from .engines.protocol import (
    NO_MARKER,
    NOT_TAKEN,
    Engine,
    Inputs,
    LoadError,
    RunFault,
    Runs,
    Setup,
)
from .expected import Case, Failure, cases_of
from .inputs import inputs_of
from .isolated import Difference, Pair, PatchedLoadError
from .protocols import protocol_of
from .reads import answered_helpers, context_bytes, starts_timers
from .residue import residue_finding
from .result import (
    CorpusUse,
    Counterexample,
    DynamicResult,
    Finding,
    Outcome,
    Place,
    ProgramCoverage,
    Residue,
    worst,
)

if TYPE_CHECKING:
    from .recording import Recording

__all__ = ["FILLS", "check_dynamic"]

FILLS = (0x00, 0xA5)
"""What lies on the stack before a run: two bytes that differ in every bit that matters."""
Progress = Callable[[int, int, str], None]


def check_dynamic(
    original: bytes,
    patched: bytes,
    intent: Intent,
    recordings: Sequence[Recording],
    *,
    engine: str = "ubpf",
    fills: tuple[int, ...] = FILLS,
    btf: bytes | None = None,
    residue: Sequence[Residue] = (),
    allow_residue: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    stop_early: bool = True,
    instruction_limit: int = 1_000_000,
    save_to: Path | None = None,
) -> DynamicResult:
    """Run the original and the patched program on the recordings and compare all they do.

    ``residue``: what the static checker found to be read before it is written; it names a verdict
    that depends on the fill. ``allow_residue`` records such a verdict instead of refusing it.
    ``stop_early``: one difference is enough. ``save_to``: where a counterexample is written
    (pcapng, with a scenario file beside it). Raises InconclusiveError where the engine cannot run
    such programs at all, UsageError for a scenario that does not fit, HostError.
    """
    chosen = engine_named(engine)
    reason = chosen.refuses(intent.hook)
    if reason is not None:
        return _not_run(chosen, recordings, reason)
    check = _Check(
        engine=chosen, original=original, patched=patched, intent=intent,
        fills=fills if chosen.fills else fills[:1], residue=tuple(residue),
        allow_residue=allow_residue, stop_early=stop_early, progress=progress, save_to=save_to,
        world=Setup(
            objects=(), hook=intent.hook, programs=(), btf=btf, seed=seed,
            instruction_limit=instruction_limit,
        ),
    )  # fmt: skip
    return check.run(recordings)


def _not_run(engine: Engine, recordings: Sequence[Recording], reason: str) -> DynamicResult:
    return DynamicResult(
        outcome=Outcome.UNMODELLED,
        engines=(engine.name,),
        corpora=tuple(_unused(recording) for recording in recordings),
        unmodelled=(reason,),
        findings=(
            Finding(rule="not-run", outcome=Outcome.UNMODELLED, message=f"not run: {reason}"),
        ),
        dimensions={"verdict": f"not run: {reason}"},
    )


def _unused(recording: Recording) -> CorpusUse:
    return CorpusUse(name=recording.name, sha256=recording.sha256, packets=0)


@dataclass(slots=True, kw_only=True, repr=False, eq=False)
class _Check:
    """One call of ``check_dynamic``, and what it has seen so far."""

    engine: Engine
    original: bytes
    patched: bytes
    intent: Intent
    fills: tuple[int, ...]
    residue: tuple[Residue, ...]
    allow_residue: bool
    stop_early: bool
    progress: Progress | None
    world: Setup
    save_to: Path | None
    corpora: list[CorpusUse] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    unmodelled: dict[str, None] = field(default_factory=dict)
    answered: tuple[str, ...] = ()
    codes: Counter[int] = field(default_factory=Counter)
    protocols: Counter[str] = field(default_factory=Counter)
    executed: list[int] = field(default_factory=lambda: [0, 0])
    packets: int = 0
    coverage: ProgramCoverage | None = None
    counterexample: Counterexample | None = None
    notes: dict[str, str] = field(default_factory=dict)
    differing: set[str] = field(default_factory=set)
    context_size: int = 0
    _pair: Pair | None = None

    def run(self, recordings: Sequence[Recording]) -> DynamicResult:
        """All recordings."""
        with ExitStack() as stack:
            stack.callback(self._close)
            for number, recording in enumerate(recordings):
                if self.progress is not None:
                    self.progress(number, len(recordings), recording.name)
                self._recording(recording)
                if self.stop_early and self._outcome() is Outcome.NOT_EQUAL:
                    self.corpora += [_unused(one) for one in recordings[number + 1 :]]
                    break
            if self.progress is not None:
                self.progress(len(recordings), len(recordings), "")
        if not self.packets and not self.findings:
            names = ", ".join(recording.name for recording in recordings) or "no recording"
            self._find("corpus", Outcome.INCONCLUSIVE, f"no packet of {names} could be run",
                       hint=self._why_skipped())  # fmt: skip
        return self._result()

    def _why_skipped(self) -> str:
        reasons = [f"{count} packets: {why}" for use in self.corpora for why, count in use.skipped]
        return "; ".join(reasons[:3]) or "give one with --corpus FILE"

    def _close(self) -> None:
        if self._pair is not None:
            self._pair.close()
            self._pair = None

    def _find(
        self, rule: str, outcome: Outcome, message: str, *, place: Place | None = None,
        hint: str | None = None,
    ) -> None:  # fmt: skip
        found = Finding(rule=rule, outcome=outcome, message=message, place=place, hint=hint)
        if found not in self.findings:
            self.findings.append(found)

    def _pair_for(self, recording: Recording) -> Pair:
        """The two worlds of the recording's scenario; the ones before, where it is the same."""
        if self._pair is None or recording.scenario != self._pair.world.scenario:
            self._close()
            world = replace(self.world, scenario=recording.scenario)
            self._pair = Pair(self.engine, self.original, self.patched, self.intent, world)
            code = self._pair.original(0).code(self._pair.program)
            self.answered = answered_helpers(code)
            self.context_size = min(context_bytes(code), 4096)
        return self._pair

    def _recording(self, recording: Recording) -> None:
        use = CorpusUse(
            name=recording.name, sha256=recording.sha256, packets=len(recording.packets)
        )
        try:
            pair = self._pair_for(recording)
        except LoadError as error:
            self._not_loaded(error)
        except PatchedLoadError as error:
            self._find("load", Outcome.NOT_EQUAL,
                       f"the patched object does not load, the original does: {error}")  # fmt: skip
        else:
            if pair.missing_maps:
                self._find("map", Outcome.NOT_EQUAL,
                           f"the patched object has no map {pair.missing_maps[0]}")  # fmt: skip
            inputs, skipped = inputs_of(recording, self.intent.hook, self.context_size)
            refused = self._runs(recording, pair, inputs) if len(inputs) else {}
            use = replace(use, skipped=(*skipped.items(), *refused.items()))
        self.corpora.append(use)

    def _not_loaded(self, error: LoadError) -> None:
        if error.unmodelled:
            self.unmodelled[error.message] = None
            self._find("unmodelled", Outcome.UNMODELLED, f"not run: {error.message}")
        else:
            self._find("load", Outcome.INCONCLUSIVE,
                       f"the original does not load: {error.message}")  # fmt: skip

    # one recording

    def _runs(self, recording: Recording, pair: Pair, inputs: Inputs) -> Mapping[str, int]:
        """All fills and cases; the reasons for which the engine did not take packets."""
        first: Runs | None = None
        probe = pair.run_original(inputs.select([0]), self.fills[0])
        if any(fault.kind == "limit" for fault in probe.faults.values()):
            self._count(recording, pair, inputs.select([0]), probe)
            return {}  # all packets and fills would take hours
        for number, fill in enumerate(self.fills):
            original = pair.run_original(inputs, fill, number, coverage=number == 0)
            if first is None:
                first = original
                self._count(recording, pair, inputs, original)
                if any(fault.kind == "limit" for fault in original.faults.values()):
                    break
            else:
                self._residue(recording, pair, inputs, first, original, number)
            for case in cases_of(self.intent):
                self._case(recording, pair, inputs, original, Failure(fill, case), number)
                if self.stop_early and self._outcome() is Outcome.NOT_EQUAL:
                    break
            else:
                self._saved_codes(recording, pair, inputs, original, fill)
                continue
            break
        covered = pair.original(0).coverage(pair.program)
        if covered is not None:
            now = program_coverage(self.intent.program, covered)
            if self.coverage is None:
                self.coverage = now
            else:
                from .coverage import merge

                self.coverage = merge([self.coverage, now])
        reasons = Counter(first.not_taken.values()) if first is not None else Counter()
        return dict(reasons)

    def _case(
        self, recording: Recording, pair: Pair, inputs: Inputs, original: Runs, how: Failure,
        number: int,
    ) -> None:  # fmt: skip
        while True:
            compared = pair.compare(inputs, original, how.fill, how.case, number)
            found = compared.difference
            if number == 0 and how.case == Case(None, True) and compared.runs.instructions:
                self.executed[0] += sum(original.instructions)
                self.executed[1] += sum(compared.runs.instructions)
            if found is None:
                return
            if self.engine.deterministic or not self._unstable(pair, inputs, how, found):
                self._differs(recording, pair, inputs, how, found)
                return
            if not found.map:
                return
            pair.maps.remove(found.map)
            original = pair.run_original(inputs, how.fill, number)

    def _saved_codes(
        self, recording: Recording, pair: Pair, inputs: Inputs, original: Runs, fill: int
    ) -> None:
        """Mode ``map``: what each code saves is seen only where the batch ends with it."""
        if self.intent.mode != "map":
            return
        kinds = [
            str(code) if code in self.intent.redirect else str(code in self.intent.success)
            for code in original.codes
        ]
        firsts = {kind: n for n, kind in reversed(list(enumerate(kinds)))}
        for position in sorted(firsts.values()):
            for case in cases_of(self.intent):
                part = inputs.select(range(position + 1))
                found = pair.differs(part, fill, case)
                if found is not None:
                    self._differs(recording, pair, part, Failure(fill, case), found)
                    return

    def _unstable(self, pair: Pair, inputs: Inputs, how: Failure, found: Difference) -> bool:
        """Whether the original alone gives something else from run to run there (time, chance)."""
        a = pair.run_original(inputs, how.fill, -1)
        b = pair.run_original(inputs, how.fill, -2)
        if found.map == pair.intent.saved_map:
            unstable = list(a.codes) != list(b.codes)
        elif found.dimension == "map":
            unstable = pair.original(-1).map_differs(0, found.map, pair.original(-2), 0)
        elif found.dimension == "verdict":
            unstable = list(a.codes) != list(b.codes)
        else:
            unstable = bool(a.differing(b))
        timers = starts_timers(pair.original(0).code(pair.program))
        if not (unstable or timers or (self.residue and not self.engine.fills)):
            return False
        why = ", ".join(self.answered) or "time, chance, or what lies on the stack"
        if timers:
            why = "a timer fires when it will"
        what = f"map {found.map}" if found.map else found.dimension
        text = f"{what}: the original alone can differ from run to run ({why})"
        if found.dimension == "map":
            self.notes[f"map {found.map}"] = text
        else:
            self.notes[found.dimension] = text
            self._find("nondeterministic", Outcome.INCONCLUSIVE, text, hint="--engine ubpf")
        return True

    def _count(self, recording: Recording, pair: Pair, inputs: Inputs, original: Runs) -> None:
        ran = [
            n for n, ended in enumerate(original.ended) if ended != NOT_TAKEN
        ]  # fmt: skip
        self.packets += len(ran)
        if set(original.ended) == {NO_MARKER}:
            self.codes.update(original.codes)
        else:
            self.codes.update(
                code for code, how in zip(original.codes, original.ended, strict=True)
                if how == NO_MARKER
            )  # fmt: skip
        if context_kind(self.intent.hook) != "plain":
            self.protocols.update(protocol_of(inputs.packets[n]) for n in ran)
        seen: set[tuple[str, str, int]] = set()
        for position, fault in sorted(original.faults.items()):
            key = (fault.kind, fault.what, fault.pc)
            if key not in seen and not fault.consequence:
                seen.add(key)
                count = sum((f.kind, f.what, f.pc) == key for f in original.faults.values())
                self._fault(recording, pair, inputs.origin[position], fault, count)
        for name, note in pair.notes.items():
            if note:
                self.notes[f"map {name}"] = note

    def _fault(
        self, recording: Recording, pair: Pair, packet: int, fault: RunFault, count: int
    ) -> None:
        where = f"packet {packet} of {recording.name}"
        more = f", and on {count - 1} more" if count > 1 else ""
        if not fault.modelled:
            self.unmodelled[fault.what] = None
            self._find("unmodelled", Outcome.UNMODELLED, f"{where}{more}: {fault}")
            return
        found = pair.place_of(fault)
        place = None if found is None else self._with_source(found)
        if fault.kind == "limit":
            how = fault.what or f"more than {self.world.instruction_limit} instructions"
            message = f"the original does not end ({how}): {where}{more}"
            self._find("endless", Outcome.INCONCLUSIVE, message, place=place)
        else:
            self._find("fault", Outcome.INCONCLUSIVE,
                       f"the original itself faults: {where}{more}: {fault}", place=place)  # fmt: skip

    def _residue(
        self, recording: Recording, pair: Pair, inputs: Inputs, first: Runs, other: Runs,
        number: int,
    ) -> None:  # fmt: skip
        fills = (self.fills[0], self.fills[number])
        found = residue_finding(pair, inputs, first, other, number, self.residue)
        if found is None:
            return
        message = f"{found.message} (packet {found.packet} of {recording.name}, stack filled with "
        message += " and ".join(f"0x{fill:02x}" for fill in fills) + ")"
        fatal = found.decides and not self.allow_residue
        self._find(
            "residue", Outcome.INCONCLUSIVE if fatal else Outcome.EQUAL, message,
            place=found.place,
            hint="initialise it, or take it on with --allow stack-residue" if fatal else None,
        )  # fmt: skip

    def _differs(
        self, recording: Recording, pair: Pair, inputs: Inputs, how: Failure, found: Difference
    ) -> None:
        self.differing.add(found.dimension)
        if self.counterexample is not None:
            return
        from .minimise import counterexample_of

        example = counterexample_of(pair, inputs, how, found, recording, self.save_to)
        if example.first_difference is not None:
            place = self._with_source(example.first_difference)
            example = replace(example, first_difference=place)
        self.counterexample = example
        where = f"packet {example.packet} of {example.corpus}"
        message = f"{where}: {example.got}, was {example.expected} ({how.case}"
        message += f", after {len(example.before)} other packets)" if example.before else ")"
        self._find(
            example.dimension,
            Outcome.NOT_EQUAL,
            message,
            place=example.first_difference,
            hint=None if example.saved_as is None else f"saved as {example.saved_as}",
        )

    def _with_source(self, place: Place) -> Place:
        """The place with its source line, where the object has line records."""
        from .coverage import sources_of

        sources = sources_of(self.original if place.file == "in" else self.patched)
        at = (place.section, place.instruction)
        line = sources.lines.get(at)
        return replace(
            place,
            function=sources.functions.get(at, place.function),
            source="" if line is None else f"{line[0].rsplit('/', 1)[-1]}:{line[1]}",
        )

    # the result

    def _outcome(self) -> Outcome:
        return worst([Outcome.EQUAL, *(found.outcome for found in self.findings)])

    def _result(self) -> DynamicResult:
        hook = self.intent.hook
        seen = {hook.name_of(code): count for code, count in self.codes.most_common()}
        unseen = [
            hook.name_of(code)
            for code in dict.fromkeys(
                (*(c.value for c in hook.codes if c.value in hook.legal),
                 *_few(self.intent.success), *_few(self.intent.redirect))
            )
            if code not in self.codes
        ]  # fmt: skip
        return DynamicResult(
            outcome=self._outcome(),
            engines=(self.engine.name,),
            corpora=tuple(self.corpora),
            packets=self.packets,
            fills=self.fills if self.engine.fills else (),
            findings=tuple(sorted(self.findings, key=lambda found: -found.outcome)),
            unmodelled=tuple(self.unmodelled),
            nondeterministic=self.answered,
            codes=seen,
            codes_unseen=tuple(unseen),
            coverage=self.coverage,
            counterexample=self.counterexample,
            dimensions=self._dimensions(),
            protocols=dict(self.protocols.most_common()),
            executed=(self.executed[0], self.executed[1]) if self.executed[1] else None,
        )

    def _dimensions(self) -> dict[str, str]:
        if not self.packets:
            return {}
        kind = context_kind(self.intent.hook)
        names = ["verdict", "context", "map", "events", "order"]
        if kind != "plain":
            names.insert(1, "packet")
        if kind == "xdp":
            names.insert(2, "metadata")
        found = dict.fromkeys(names, "equal")
        found |= self.engine.blind(self.intent.hook)
        if "events" in self.engine.blind(self.intent.hook):
            found["order"] = found["events"]
        return found | self.notes | dict.fromkeys(self.differing, "not equal")


def _few(codes: CodeSet) -> list[int]:
    """The codes of a set that a person would list; none of a complement."""
    return list(codes) if len(codes) <= 16 else []

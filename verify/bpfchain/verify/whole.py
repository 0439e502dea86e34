"""Whole chains: the patched links with their slots filled, beside the composed reference.

The reference runs the originals one after the other, each on the packet, context and maps that the
one before left, as DESIGN section 2 says. What holds for every link alone holds for the chain by
induction; this shows it, and what induction does not cover: shared maps, and links that see each
other's stack residue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bpfchain.emulator.link import link_object
from bpfchain.transform.errors import InconclusiveError, RefusedError
from bpfchain.transform.manifest import Share
from bpfchain.verify.static.intent import Intent

from .composed import ComposedRuns, Worlds
from .engines import engine_named
from .engines.hooks import context_kind
from .engines.protocol import NO_MARKER, Inputs, LoadError, Setup
from .expected import Case, Failure
from .inputs import inputs_of
from .isolated import PatchedLoadError
from .minimise import counterexample_of
from .protocols import protocol_of
from .reads import answered_helpers, context_bytes
from .result import (
    ChainResult,
    CorpusUse,
    Counterexample,
    DynamicResult,
    Finding,
    Outcome,
    worst,
)
from .tail_budget import check_budget, own_attempts

if TYPE_CHECKING:
    from .recording import Recording

__all__ = ["ChainLink", "check_chain", "share_of"]

Progress = Callable[[int, int, str], None]
_ALONE = Case(None, False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainLink:
    """One link: the original object, the patched one, and what the patch says it is."""

    original: bytes
    patched: bytes
    intent: Intent
    name: str = ""
    """For messages: ``link1.o``."""

    @property
    def what(self) -> str:
        """``link 1 (link1.o)``."""
        return f"link {self.intent.index}" + (f" ({self.name})" if self.name else "")


def share_of(shares: Sequence[Share]) -> dict[tuple[int, str], str]:
    """A manifest's shares as ``check_chain`` takes them: (link index, map) -> name of the one map."""
    return {(member.index, member.map): share.map for share in shares for member in share.links}


def check_chain(
    links: Sequence[ChainLink],
    recordings: Sequence[Recording],
    *,
    name: str = "",
    engine: str = "ubpf",
    fills: tuple[int, ...] = (0x00, 0xA5),
    share: Mapping[tuple[int, str], str] | None = None,
    btf: bytes | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    instruction_limit: int = 1_000_000,
    save_to: Path | None = None,
) -> ChainResult:
    """Run the chain and the composed reference on the recordings and compare all they do.

    Raises RefusedError for a chain that is not whole: gaps, links of several hooks, slots that are
    reachable and not filled, more tail calls than the kernel follows, or an unknown number of them.
    A native engine that is not built makes the result UNMODELLED, with the reason.
    """
    ordered = sorted(links, key=lambda link: link.intent.index)
    _check_whole(ordered)
    _check_budget(ordered)
    chosen = engine_named(engine)
    hook = ordered[0].intent.hook
    reason = chosen.refuses(hook)
    if reason is not None:
        return _not_run(name, chosen.name, recordings, f"not run: {reason}", None)
    places = {link.intent.index: place for place, link in enumerate(ordered)}
    check = _ChainCheck(
        links=ordered,
        recordings=recordings,
        fills=fills if chosen.fills else fills[:1],
        progress=progress,
        save_to=save_to,
        world=Setup(
            objects=(), hook=hook, programs=(), btf=btf, seed=seed,
            share={(places[index], map): one for (index, map), one in (share or {}).items()},
            instruction_limit=instruction_limit,
        ),
    )  # fmt: skip
    with ExitStack() as stack:
        check.open = lambda world: stack.enter_context(
            Worlds(chosen, [(o.original, o.patched, o.intent) for o in ordered], world)
        )
        try:
            check.run()
        except InconclusiveError as error:
            return _not_run(name, chosen.name, recordings, error.message, error.hint)
    return check.result(name, chosen.name, chosen.fills, chosen.blind(hook))


def _not_run(
    name: str, engine: str, recordings: Sequence[Recording], reason: str, hint: str | None
) -> ChainResult:
    found = Finding(rule="engine", outcome=Outcome.UNMODELLED, message=reason, hint=hint)
    dynamic = DynamicResult(
        outcome=Outcome.UNMODELLED,
        engines=(engine,),
        corpora=tuple(CorpusUse(name=r.name, sha256=r.sha256, packets=0) for r in recordings),
        unmodelled=(reason,),
        findings=(found,),
        dimensions={"verdict": reason},
    )
    return ChainResult(name=name, dynamic=dynamic)


def _composable(
    worlds: Worlds, inputs: Inputs, fill: int
) -> tuple[Inputs, Counter[str], ComposedRuns]:
    """Without the packets that the reference cannot hand from link to link; why, and how many; what
    it says of the others, which was the last to run."""
    skipped: Counter[str] = Counter()
    while True:
        right = worlds.reference(inputs, fill)
        if not right.left_out:
            return inputs, skipped, right
        skipped.update(right.left_out.values())
        inputs = inputs.select([n for n in range(len(inputs)) if n not in right.left_out])


def _unopened(_: Setup) -> Worlds:
    raise ValueError("no engine")


def _check_whole(links: Sequence[ChainLink]) -> None:
    if not links:
        raise RefusedError("the chain has no links")
    first = links[0].intent
    for place, link in enumerate(links):
        intent = link.intent
        if intent.index != place:
            raise RefusedError(
                f"the chain has no link {place}, or has it twice: {link.what} comes next",
                "number the links from 0 without gaps",
            )
        for what, mine, theirs in (
            ("hook", intent.hook.name, first.hook.name),
            ("saved-code mode", intent.mode, first.mode),
            ("slots map", intent.slots_map, first.slots_map),
        ):
            if mine != theirs:
                raise RefusedError(f"{link.what} has {what} {mine}, link 0 has {theirs}")
        if intent.last and place + 1 < len(links):
            raise RefusedError(f"{link.what} was patched with --last, but {links[-1].what} follows")
    reaching: dict[int, ChainLink] = {}
    for link in links:
        if first.mode == "slots":
            for code in sorted(reaching.keys() - set(link.intent.saved)):
                raise RefusedError(
                    f"{link.what} has no entry for a saved {first.hook.name_of(code)}, which "
                    f"{reaching[code].what} can save: the chain would end there silently",
                    f"patch {link.what} again with --saved",
                )
        for code in link.intent.redirect:
            reaching.setdefault(code, link)


def _check_budget(links: Sequence[ChainLink]) -> None:
    attempts = sum(not link.intent.ends for link in links)
    own = sum(
        own_attempts(link_object(link.original), link.intent.program, link.what) for link in links
    )
    check_budget(attempts, own, "the chain")


class _ChainCheck:
    """One call of ``check_chain``, and what it has seen so far."""

    def __init__(
        self, *, links: Sequence[ChainLink], recordings: Sequence[Recording],
        fills: tuple[int, ...], progress: Progress | None, world: Setup, save_to: Path | None,
    ) -> None:  # fmt: skip
        self.links, self.recordings = links, recordings
        self.fills, self.progress, self.world = fills, progress, world
        self.save_to = save_to
        self.open: Callable[[Setup], Worlds] = _unopened
        self.corpora: list[CorpusUse] = []
        self.findings: list[Finding] = []
        self.unmodelled: dict[str, None] = {}
        self.verdicts: Counter[tuple[str, str]] = Counter()
        self.codes: Counter[str] = Counter()
        self.protocols: Counter[str] = Counter()
        self.reached: Counter[int] = Counter()
        self.answered: tuple[str, ...] = ()
        self.notes: dict[str, str] = {}
        self.differing: set[str] = set()
        self.packets = self.tail_calls = 0
        self.counterexample: Counterexample | None = None
        self._worlds: Worlds | None = None

    def run(self) -> None:
        """All recordings, until one shows a difference."""
        for number, recording in enumerate(self.recordings):
            if self.progress is not None:
                self.progress(number, len(self.recordings), recording.name)
            use = CorpusUse(
                name=recording.name, sha256=recording.sha256, packets=len(recording.packets)
            )
            if self._outcome() is not Outcome.NOT_EQUAL:
                use = replace(use, skipped=self._recording(recording))
            self.corpora.append(use)
        if self.progress is not None:
            self.progress(len(self.recordings), len(self.recordings), "")
        if not self.packets and not self.findings:
            names = ", ".join(recording.name for recording in self.recordings) or "no recording"
            self._find("corpus", Outcome.INCONCLUSIVE, f"no packet of {names} could be run")

    def _recording(self, recording: Recording) -> tuple[tuple[str, int], ...]:
        skipped: Counter[str] = Counter()
        try:
            worlds = self._worlds_for(recording)
        except LoadError as error:
            outcome = Outcome.UNMODELLED if error.unmodelled else Outcome.INCONCLUSIVE
            self._find("load", outcome, f"link {error.object} does not load: {error.message}")
        except PatchedLoadError as error:
            self._find("load", Outcome.NOT_EQUAL, f"the chain does not load: {error}")
        else:
            size = max(map(context_bytes, worlds.codes()))
            inputs, why = inputs_of(recording, self.links[0].intent.hook, size)
            skipped.update(why)
            inputs, more, right = _composable(worlds, inputs, self.fills[0])
            skipped.update(more)
            if len(inputs):
                self._runs(recording, worlds, inputs, right)
        return tuple(skipped.items())

    def _worlds_for(self, recording: Recording) -> Worlds:
        if self._worlds is None or self._worlds.world.scenario != recording.scenario:
            if self._worlds is not None:
                self._worlds.close()
            self._worlds = self.open(replace(self.world, scenario=recording.scenario))
            self.answered = tuple(
                dict.fromkeys(h for code in self._worlds.codes() for h in answered_helpers(code))
            )
        return self._worlds

    def _runs(
        self, recording: Recording, worlds: Worlds, inputs: Inputs, right: ComposedRuns
    ) -> None:
        """``right``: what the reference says with the first fill."""
        for number, fill in enumerate(self.fills):
            if number:
                right = worlds.reference(inputs, fill)
            compared = worlds.compare(inputs, right, fill)
            if number == 0:
                self._count(worlds, inputs, right, compared.runs.codes, compared.runs.ended)
                self.tail_calls = max(self.tail_calls, *compared.runs.tail_calls, 0)
            found = compared.difference
            if found is None:
                continue
            self.differing.add(found.dimension)
            if worlds.answers_in_order and self._order_matters(worlds):
                who = ", ".join(self.answered)
                self.unmodelled[f"answers of {who} in a chain"] = None
                self._find("answers", Outcome.UNMODELLED,
                           f"several links ask {who}: a chain asks in another order than its links "
                           "one by one, so what depends on the answers is not compared")  # fmt: skip
                self.differing.discard(found.dimension)
                self.notes[found.dimension] = f"depends on the order of answers ({who})"
                return
            example = counterexample_of(
                worlds, inputs, Failure(fill, _ALONE), found, recording, self.save_to
            )
            self.counterexample = example
            after = f" (after {len(example.before)} other packets)" if example.before else ""
            self._find(example.dimension, Outcome.NOT_EQUAL,
                       f"packet {example.packet} of {example.corpus}: {example.got}, the reference "
                       f"says {example.expected}{after}", place=example.first_difference)  # fmt: skip
            return

    def _order_matters(self, worlds: Worlds) -> bool:
        asking = sum(bool(answered_helpers(code)) for code in worlds.codes())
        return asking > 1 or not worlds.deterministic

    def _count(
        self, worlds: Worlds, inputs: Inputs, right: ComposedRuns, codes: Sequence[int],
        ended: Sequence[int],
    ) -> None:  # fmt: skip
        hook = self.links[0].intent.hook
        self.packets += len(inputs)
        for n in range(len(inputs)):
            if right.ended[n] == NO_MARKER:
                name = hook.name_of(right.codes[n])
                self.codes[name] += 1
                got = hook.name_of(codes[n]) if ended[n] == NO_MARKER else "fault"
                self.verdicts[name, got] += 1
            for index in range(right.reached[n]):
                self.reached[index] += 1
        if context_kind(hook) != "plain":
            self.protocols.update(map(protocol_of, inputs.packets))
        for position, (index, fault) in sorted(right.failed.items()):
            where = f"packet {inputs.origin[position]}: link {index}"
            if fault.modelled:
                self._find("fault", Outcome.INCONCLUSIVE, f"{where}: the original faults: {fault}")
            elif fault.what not in self.unmodelled:
                self.unmodelled[fault.what] = None
                self._find("unmodelled", Outcome.UNMODELLED, f"{where}: {fault}")
        self.notes |= worlds.notes

    def _find(self, rule: str, outcome: Outcome, message: str, **more: object) -> None:
        found = Finding(rule=rule, outcome=outcome, message=message, **more)  # type: ignore[arg-type]
        if found not in self.findings:
            self.findings.append(found)

    def _outcome(self) -> Outcome:
        return worst([Outcome.EQUAL, *(found.outcome for found in self.findings)])

    def result(self, name: str, engine: str, fills: bool, blind: Mapping[str, str]) -> ChainResult:
        """What was seen."""
        hook = self.links[0].intent.hook
        names = ["verdict", "packet", "context", "map", "events", "order"]
        dimensions = dict.fromkeys(names if self.packets else [], "equal")
        dimensions |= {key: why for key, why in blind.items() if self.packets}
        dimensions |= self.notes | dict.fromkeys(self.differing, "not equal")
        unseen = [code.name for code in hook.codes if code.name not in self.codes]
        dynamic = DynamicResult(
            outcome=self._outcome(),
            engines=(engine,),
            corpora=tuple(self.corpora),
            packets=self.packets,
            fills=self.fills if fills else (),
            findings=tuple(sorted(self.findings, key=lambda found: -found.outcome)),
            unmodelled=tuple(self.unmodelled),
            nondeterministic=self.answered,
            codes=dict(self.codes.most_common()),
            codes_unseen=tuple(unseen),
            counterexample=self.counterexample,
            dimensions=dimensions,
            protocols=dict(self.protocols.most_common()),
        )
        return ChainResult(
            name=name,
            dynamic=dynamic,
            verdicts=dict(self.verdicts),
            reached={link.intent.index: self.reached[link.intent.index] for link in self.links},
            tail_calls=self.tail_calls,
        )

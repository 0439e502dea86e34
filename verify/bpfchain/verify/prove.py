"""The proof of one link, composed: the static checker, then the runs beside the original.

``bpfchain-transform`` and ``build`` ask here before they write, ``bpfchain verify`` for its report.
The order is that of trust: what the static checker shows holds for every input; the runs speak of
the recordings, and catch what a reader of instructions could have misread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from bpfchain.transform.errors import InconclusiveError

from .result import CorpusUse, DynamicResult, Finding, LinkResult, Outcome, StaticResult, worst

if TYPE_CHECKING:
    from pathlib import Path

    from .recording import Recording
    from .static.intent import Intent

__all__ = ["Options", "Progress", "Subject", "intent_of", "merged", "prove_link", "prove_static"]

Progress = Callable[[int, int, str], None]
"""Called with what is done, of how much, and what it is: ``(17, 412, "packets")``."""


class Subject(NamedTuple):
    """One link to be proved: IN, OUT and their names. ``program`` where OUT holds several links."""

    original: bytes
    patched: bytes
    input_name: str
    output_name: str
    program: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to prove. ``fills``: what the stack holds before a run, at least two different bytes."""

    recordings: tuple[Recording, ...]
    engines: tuple[str, ...] = ("ubpf",)
    btf: bytes | None = None
    fills: tuple[int, ...] = (0x00, 0xA5)
    lief: bool = False
    allow_residue: bool = False
    seed: int = 0
    run_anyway: bool = False
    """Run also what the static checker has refuted already (``verify`` shows both)."""
    save_to: Path | None = None
    """Where a counterexample is written (pcapng, its scenario beside it)."""
    details: bool = False
    """Also what only reports show: source lines of the coverage, maps, helpers."""


def prove_static(subject: Subject, options: Options) -> tuple[Intent, StaticResult]:
    """The static half alone; needs neither the native engine nor a kernel.

    Raises RefusedError where OUT holds no link, or not that one.
    """
    from .static.check import check_link

    return check_link(subject.original, subject.patched, program=subject.program, lief=options.lief)


def intent_of(subject: Subject) -> Intent:
    """What OUT says that the link is: for links that ``prove_link`` has proved, or that are only
    run. Raises as ``prove_static``."""
    from .static.check import link_intent

    return link_intent(subject.original, subject.patched, program=subject.program)


def prove_link(subject: Subject, options: Options, progress: Progress | None = None) -> LinkResult:
    """Both halves of the proof of one link.

    A native engine that is not built is no failure of the link: the dynamic half is then
    UNMODELLED, with the reason. Raises RefusedError (files), UsageError (a recording that does not
    fit the hook), HostError (the kernel engine).
    """
    intent, static = prove_static(subject, options)
    if static.outcome is Outcome.NOT_EQUAL and not options.run_anyway:
        dynamic = DynamicResult(outcome=Outcome.NOT_RUN)
    else:
        dynamic = _run(subject, intent, static, options, progress)
    hook = intent.hook
    result = LinkResult(
        index=intent.index,
        program=intent.program,
        hook=hook.name,
        input_name=subject.input_name,
        output_name=subject.output_name,
        input_sha256=sha256(subject.original).hexdigest(),
        output_sha256=sha256(subject.patched).hexdigest(),
        success=intent.success.describe(hook.names),
        redirect=intent.redirect.describe(hook.names),
        strategy=intent.strategy,
        instructions=_instructions(static),
        static=static,
        dynamic=dynamic,
    )
    if result.static.findings or result.dynamic.findings or options.details:
        from .details import with_details, with_lines

        result = with_lines(result, subject.original, subject.patched)
        if options.details:
            result = with_details(result, subject.original)
    return result


def _instructions(static: StaticResult) -> tuple[int, int]:
    """Of the object, before and after; copies of a body, one a state, do not count."""
    before = static.counted.get("instructions", 0)
    return before, before + static.counted.get("instructions added", 0)


def _run(
    subject: Subject,
    intent: Intent,
    static: StaticResult,
    options: Options,
    progress: Progress | None,
) -> DynamicResult:
    from .dynamic import check_dynamic

    results = []
    for engine in options.engines:
        try:
            results.append(
                check_dynamic(
                    subject.original,
                    subject.patched,
                    intent,
                    options.recordings,
                    engine=engine,
                    fills=options.fills,
                    btf=options.btf,
                    residue=static.residue,
                    allow_residue=options.allow_residue,
                    seed=options.seed,
                    progress=progress,
                    save_to=options.save_to,
                )
            )
        except InconclusiveError as error:  # the engine is not there, or does not take the object
            results.append(
                DynamicResult(
                    outcome=Outcome.UNMODELLED,
                    engines=(engine,),
                    corpora=tuple(
                        CorpusUse(name=r.name, sha256=r.sha256, packets=0)
                        for r in options.recordings
                    ),
                    unmodelled=(error.message,),
                    findings=(
                        Finding(
                            rule="engine",
                            outcome=Outcome.UNMODELLED,
                            message=error.message,
                            hint=error.hint,
                        ),
                    ),
                )
            )
    return merged(results)


def merged(results: Sequence[DynamicResult]) -> DynamicResult:
    """Results of several engines on the same recordings, as one: the worst of each."""
    if not results:
        return DynamicResult(outcome=Outcome.NOT_RUN)
    first, *others = results
    for other in others:
        first = replace(
            first,
            outcome=worst([first.outcome, other.outcome]),
            engines=(*first.engines, *other.engines),
            packets=max(first.packets, other.packets),
            corpora=first.corpora if first.packets >= other.packets else other.corpora,
            findings=(*first.findings, *other.findings),
            unmodelled=tuple(dict.fromkeys((*first.unmodelled, *other.unmodelled))),
            nondeterministic=tuple(
                dict.fromkeys((*first.nondeterministic, *other.nondeterministic))
            ),
            codes=first.codes or other.codes,
            protocols=first.protocols or other.protocols,
            executed=first.executed or other.executed,
            coverage=first.coverage or other.coverage,
            counterexample=first.counterexample or other.counterexample,
            dimensions=_dimensions(first.dimensions, other.dimensions),
        )
    return first


def _dimensions(first: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    """A dimension is compared if one engine compared it, and differs if it differs in one."""
    found = dict(other)
    for name, what in first.items():
        known = found.get(name)
        if known is None or _weight(what) > _weight(known):
            found[name] = what
    return found


def _weight(what: str) -> int:
    return 2 if what.startswith("not equal") else what == "equal"

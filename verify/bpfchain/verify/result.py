"""What a proof found: plain frozen values that engines and checkers fill and reports draw.

``Outcome`` orders itself: the worst of several is their maximum. Only the static checker's "equal" is
a proof for all inputs; the dynamic one's speaks of the packets that were run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

__all__ = [
    "ChainResult",
    "CorpusUse",
    "Counterexample",
    "DynamicResult",
    "Finding",
    "LinkResult",
    "Outcome",
    "Place",
    "ProgramCoverage",
    "Report",
    "Residue",
    "StaticResult",
    "worst",
]  # fmt: skip


class Outcome(IntEnum):
    """How a check ended, the better first. ``UNMODELLED``: nothing differed, but something was met
    that this engine does not model (the static proof still speaks)."""

    NOT_RUN = 0
    EQUAL = 1
    UNMODELLED = 2
    INCONCLUSIVE = 3
    NOT_EQUAL = 4

    @property
    def word(self) -> str:
        """As reports and manifests write it."""
        return self.name.lower().replace("_", "-")


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """The worst of them; NOT_RUN where there are none."""
    return max(outcomes, default=Outcome.NOT_RUN)


@dataclass(frozen=True, slots=True)
class Place:
    """An instruction (index in the section, of ``file``: "in" or "out"), with its source line."""

    file: str
    section: str
    instruction: int
    function: str = ""
    source: str = ""
    """``fw.c:88`` where the object has line records."""

    def __str__(self) -> str:
        source = f" ({self.source})" if self.source else ""
        where = f"{self.section}+{self.instruction}"
        return f"instruction {where}{' of ' + self.function if self.function else ''}{source}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong or could not be decided. ``rule`` is a stable word (``exit-unpatched``,
    ``slot``, ``relocation``, ``context-slot``, ``residue``, ``verdict``, ``map`` …)."""

    rule: str
    outcome: Outcome
    message: str
    place: Place | None = None
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Residue:
    """Stack bytes that a body reads before it wrote them: it sees what ran before it left there."""

    place: Place
    offset: int
    """From r10, negative."""
    size: int
    how: str
    """``load``, or the helper that reads them (``bpf_map_lookup_elem``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticResult:
    """What the static checker showed for one link. ``readers``: the ELF readers that agreed;
    ``counted``: how much was accounted for (instructions, relocations, records, sections …)."""

    outcome: Outcome
    findings: tuple[Finding, ...] = ()
    readers: tuple[str, ...] = ()
    counted: Mapping[str, int] = field(default_factory=dict)
    residue: tuple[Residue, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusUse:
    """A recording and what was done with it. ``skipped`` are (reason, packets)."""

    name: str
    sha256: str
    packets: int
    skipped: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramCoverage:
    """What the runs covered of one program's own code, by instruction index of ``section`` of IN.

    ``edges`` are the ways out of conditional jumps: (instruction, taken) -> seen.
    """

    program: str
    section: str
    instructions: Mapping[tuple[str, int], bool]
    """(section, instruction index) -> executed; subprograms' sections too."""
    edges: Mapping[tuple[str, int, bool], bool]
    sources: Mapping[tuple[str, int], tuple[str, int]] = field(default_factory=dict)
    """(section, instruction index) -> (source file, line), by the line records."""
    functions: Mapping[tuple[str, int], str] = field(default_factory=dict)
    texts: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """(source file, line) -> the line's text, where the object keeps it."""
    listing: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """(section, instruction index) -> the instruction as text."""

    @property
    def edges_seen(self) -> int:
        """How many edges were taken."""
        return sum(self.edges.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterexample:
    """The smallest run found that shows a difference."""

    packet: int
    """Index in ``corpus``."""
    corpus: str
    data: bytes
    context: bytes
    before: tuple[bytes, ...] = ()
    """Packets that must run first (maps persist), minimised."""
    dimension: str
    """verdict, packet, metadata, context, map, events, order, fault."""
    expected: str
    got: str
    first_difference: Place | None = None
    saved_as: str | None = None
    """The file it was written to."""
    after: tuple[bytes, bytes] | None = None
    """The packet as the original and as the patched program left it."""
    maps: tuple[tuple[str, bytes, bytes], ...] = ()
    """(map, key, value) that the run needs to find in its maps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicResult:
    """What running the original and the patched program showed."""

    outcome: Outcome
    engines: tuple[str, ...] = ()
    corpora: tuple[CorpusUse, ...] = ()
    packets: int = 0
    """Runs compared, each packet once (not once a fill, state or engine)."""
    fills: tuple[int, ...] = ()
    findings: tuple[Finding, ...] = ()
    unmodelled: tuple[str, ...] = ()
    """Helpers, map kinds, context fields that were met and are not modelled."""
    nondeterministic: tuple[str, ...] = ()
    """Helpers whose answers came from the scenario or a seed (time, random, fib …)."""
    codes: Mapping[str, int] = field(default_factory=dict)
    """Codes that the original returned -> packets."""
    codes_unseen: tuple[str, ...] = ()
    coverage: ProgramCoverage | None = None
    counterexample: Counterexample | None = None
    dimensions: Mapping[str, str] = field(default_factory=dict)
    """Dimension -> ``equal``, ``not equal``, or why it was not compared (the kernel tells no redirect
    targets)."""
    protocols: Mapping[str, int] = field(default_factory=dict)
    """Protocol (``tcp``, ``arp`` …) -> packets that were run."""
    executed: tuple[int, int] | None = None
    """Instructions that the original and the patched program executed, over all packets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkResult:
    """Both halves of the proof of one link, and the numbers that a gate's report holds."""

    index: int
    program: str
    hook: str
    input_name: str
    output_name: str
    input_sha256: str
    output_sha256: str
    success: str
    redirect: str
    strategy: str
    instructions: tuple[int, int]
    """Before, after."""
    static: StaticResult
    dynamic: DynamicResult
    maps: tuple[str, ...] = ()
    helpers: tuple[str, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """The worse of both."""
        return max(self.static.outcome, self.dynamic.outcome)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainResult:
    """Whole chains run against the composed reference semantics."""

    name: str
    dynamic: DynamicResult
    verdicts: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(reference verdict, chain verdict) -> packets."""
    reached: Mapping[int, int] = field(default_factory=dict)
    """Link index -> packets that reached it; 0 for links never reached."""
    tail_calls: int = 0
    """The most that one run made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All of one ``bpfchain verify``."""

    subject: str
    """``link1.o`` or ``chain edge``."""
    links: tuple[LinkResult, ...]
    chain: ChainResult | None = None
    not_checked: tuple[str, ...] = ()
    """One line each: skipped packets, unmodelled helpers, dimensions an engine does not tell."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """bpfchain, ubpf, kernel, pyelftools, z3 … -> version."""
    seed: int = 0
    seconds: float = 0.0
    rerun: str = ""
    """The command line that shows the same again."""
    waivers: tuple[str, ...] = ()
    """What was let pass because somebody asked for it: ``stack-residue, link 1: …``."""

    @property
    def outcome(self) -> Outcome:
        """The worst of all."""
        parts = [link.outcome for link in self.links]
        return worst([*parts, self.chain.dynamic.outcome] if self.chain else parts)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings, the worst first."""
        found = [f for link in self.links for f in (*link.static.findings, *link.dynamic.findings)]
        if self.chain:
            found += self.chain.dynamic.findings
        return tuple(sorted(found, key=lambda f: -f.outcome))

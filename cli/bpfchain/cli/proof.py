"""The proof on the way to a file: what ``transform`` and ``build`` do between patching and writing.

Options, the run, and its result as a sentence, a manifest record, or the error that says why
nothing is written (DESIGN section 5).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from bpfchain.transform.errors import InconclusiveError, NotEqualError, UsageError
from bpfchain.transform.version import VERSION

from .command import option
from .files import read_input

if TYPE_CHECKING:
    from bpfchain.transform.manifest_proof import DynamicProof, StaticProof, Verified
    from bpfchain.verify.prove import Options, Subject
    from bpfchain.verify.recording import Recording
    from bpfchain.verify.result import Finding, LinkResult

__all__ = ["Proved", "Wanted", "finding_error", "proof_options", "prove", "read_corpora"]

F = TypeVar("F", bound=Callable[..., Any])
UNPROVED = "not verified"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """The proof's options of a command line."""

    no_verify: bool
    strict: bool
    corpora: tuple[str, ...]
    scenario: str | None
    btf: str | None

    @classmethod
    def take(cls, options: dict[str, Any]) -> Wanted:
        """Take them out of a command's options."""
        wanted = cls(**{name: options.pop(name) for name in cls.__slots__})
        if wanted.no_verify:
            for name, given in (
                ("--strict", wanted.strict), ("--corpus", wanted.corpora),
                ("--scenario", wanted.scenario), ("--btf", wanted.btf),
            ):  # fmt: skip
                if given:
                    raise UsageError(f"{name} asks for a proof, and --no-verify for none")
        return wanted

    def options(self, allow: frozenset[str]) -> Options:
        """With the files read. Raises UsageError, RefusedError, HostError."""
        from bpfchain.verify.prove import Options

        return Options(
            recordings=read_corpora(self.corpora, self.scenario),
            btf=None if self.btf is None else read_input(self.btf),
            allow_residue="stack-residue" in allow,
        )


@dataclass(frozen=True, slots=True)
class Proved:
    """A link that may be written. ``words`` end the success line."""

    words: str
    result: LinkResult | None
    warnings: tuple[str, ...] = ()

    @property
    def details(self) -> tuple[str, ...]:
        """What -v adds."""
        return () if self.result is None else _details(self.result)

    @property
    def verified(self) -> Verified | None:
        """The proof as a manifest holds it."""
        return None if self.result is None else _verified(self.result)


def proof_options(function: F) -> F:
    """The options of the proof, for commands that write."""
    for add in reversed((
        option("--no-verify", is_flag=True, group="The proof",
               help="Write without the proof; the manifest says so."),
        option("--strict", is_flag=True, group="The proof",
               help="Write nothing where the emulator met something that it does not model."),
        option("--corpus", "corpora", multiple=True, metavar="FILE", group="The proof",
               help="A capture to run on (pcap, pcapng); may be repeated.  [default: built in]"),
        option("--scenario", metavar="FILE", group="The proof",
               help="Map contents, helpers' answers and contexts of the runs (JSON)."),
        option("--btf", metavar="FILE", group="The proof",
               help="Resolve CO-RE against these types.  [default: the object's own]"),
    )):  # fmt: skip
        function = add(function)
    return function


def read_corpora(names: tuple[str, ...], scenario: str | None) -> tuple[Recording, ...]:
    """The recordings to run on; the built-in one where none is named."""
    from pathlib import Path

    from bpfchain.verify.recording import builtin_recording, read_recording

    for name in (*names, *([scenario] if scenario else [])):
        if not Path(name).exists():
            read_input(name)  # says so, with the nearest name
    beside = None if scenario is None else Path(scenario)
    if not names:
        return (builtin_recording(beside),) if beside else (builtin_recording(),)
    return tuple(read_recording(Path(name), beside) for name in names)


def prove(subject: Subject, options: Options, *, strict: bool) -> Proved:
    """Prove one link. Raises NotEqualError, or InconclusiveError where nothing may be written."""
    from bpfchain.verify.prove import prove_link
    from bpfchain.verify.result import Outcome

    result = prove_link(subject, options)
    if result.outcome in (Outcome.NOT_EQUAL, Outcome.INCONCLUSIVE):
        raise finding_error(subject.output_name, _worst(result))
    if strict and result.outcome is not Outcome.EQUAL:
        raise InconclusiveError(
            f"{subject.output_name}: {_unmodelled(result)}",
            "without --strict the static proof is enough",
        )
    return Proved(_words(result), result, _warnings(result))


def finding_error(name: str, finding: Finding) -> NotEqualError | InconclusiveError:
    """The finding as the command's error."""
    from bpfchain.verify.result import Outcome

    message = f"{name}: {finding.message}"
    if finding.place is not None and str(finding.place) not in message:
        message += f", at {finding.place}"
    if finding.outcome is Outcome.NOT_EQUAL:
        return NotEqualError(message, finding.hint)
    return InconclusiveError(message, finding.hint)


def _worst(result: LinkResult) -> Finding:
    """The first of the worst findings: the static checker's before the runs'."""
    return max((*result.static.findings, *result.dynamic.findings), key=lambda f: f.outcome)


def _words(result: LinkResult) -> str:
    """``equal on 412 packets, 31 of 32 edges``, or what stands instead."""
    from bpfchain.verify.result import Outcome

    dynamic = result.dynamic
    if dynamic.outcome is not Outcome.EQUAL:
        return f"proved; {_unmodelled(result)}"
    runs = "packet" if result.hook.startswith(_PACKETS) else "context"
    text = f"equal on {dynamic.packets} {runs}{'' if dynamic.packets == 1 else 's'}"
    if dynamic.coverage is not None and dynamic.coverage.edges:
        text += f", {dynamic.coverage.edges_seen} of {len(dynamic.coverage.edges)} edges"
    return text


_PACKETS = ("xdp", "tc", "cgroup_skb", "socket", "lwt", "sk_skb", "flow_dissector")


def _unmodelled(result: LinkResult) -> str:
    met = result.dynamic.unmodelled
    if not met:
        return "not run"
    named = ", ".join(met[:3]) + (f" and {len(met) - 3} more" if len(met) > 3 else "")
    return f"not run through: {named}"


def _details(result: LinkResult) -> tuple[str, ...]:
    from bpfchain.verify.reports.words import counted_text

    static, dynamic = result.static, result.dynamic
    lines = []
    if static.counted:
        lines.append(f"accounted for: {counted_text(static.counted)}")
    for corpus in dynamic.corpora:
        skipped = ", ".join(f"{count} {why}" for why, count in corpus.skipped)
        lines.append(
            f"corpus {corpus.name}: {corpus.packets} packets"
            + (f", not run: {skipped}" if skipped else "")
        )
    if dynamic.codes:
        lines.append("codes: " + ", ".join(f"{name} {n}" for name, n in dynamic.codes.items()))
    if dynamic.nondeterministic:
        lines.append(f"answers of the scenario: {', '.join(dynamic.nondeterministic)}")
    return tuple(lines)


def _warnings(result: LinkResult) -> tuple[str, ...]:
    """Stack bytes that are read and never written: harmless alone, not behind another link."""
    found = result.static.residue
    if not found:
        return ()
    first, more = found[0], len(found) - 1
    rest = f" and {more} more place{'' if more == 1 else 's'}" if more else ""
    return (
        f"{result.program} reads {first.size} bytes at r10{first.offset:+d} that it never wrote "
        f"({first.how}), at {first.place}{rest}: what lies there depends on the links before it",
    )


def _verified(result: LinkResult) -> Verified:
    from bpfchain.transform.manifest_proof import Tool, Verified

    return Verified(
        tool=Tool(name="bpfchain", version=VERSION),
        static=_static_record(result),
        dynamic=_dynamic_record(result),
    )


def _result_word(result: object) -> str:
    from bpfchain.verify.result import Outcome

    return {Outcome.EQUAL: "equal", Outcome.NOT_RUN: "not-run"}.get(result, "inconclusive")  # type: ignore[call-overload, no-any-return]


def _static_record(result: LinkResult) -> StaticProof:
    from bpfchain.transform.manifest_proof import StaticProof

    static = result.static
    return StaticProof(result=_result_word(static.outcome), readers=static.readers)


def _dynamic_record(result: LinkResult) -> DynamicProof:
    from bpfchain.transform.manifest_proof import Corpus, Coverage, DynamicProof

    dynamic = result.dynamic
    covered = dynamic.coverage
    more: dict[str, Any] = {"unmodelled": list(dynamic.unmodelled)} if dynamic.unmodelled else {}
    return DynamicProof(
        result=_result_word(dynamic.outcome),
        engines=dynamic.engines,
        corpora=tuple(Corpus(name=c.name, sha256=c.sha256) for c in dynamic.corpora),
        packets=dynamic.packets,
        coverage=None
        if covered is None
        else Coverage(edges=covered.edges_seen, of=len(covered.edges)),
        more=more,
    )

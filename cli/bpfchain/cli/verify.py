"""``bpfchain verify``: the proof of one link, or of every link of a manifest and the chain, as a gate."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from bpfchain.transform.errors import InconclusiveError, UsageError

from .command import Choice, Command, chatter, option, settings
from .files import STREAM, read_input
from .output import Voice, print_result
from .proof import finding_error, read_corpora
from .words import EXIT_CODES_HELP

if TYPE_CHECKING:
    from bpfchain.verify.prove import Options
    from bpfchain.verify.result import Report

__all__ = ["command"]

_HELP = "Prove that a link does what the original program does, or that a whole chain does."

_EPILOG = f"""\
Examples:
  bpfchain verify filter.o link0.o
  bpfchain verify chain/manifest.json --corpus yesterday.pcap --jobs 2
  bpfchain verify chain/manifest.json --report junit=verify.xml --report html=verify.html

What was intended (index, S, R, states) is read from OUT and compared with the instructions, and
with the manifest where there is one. The static checker accounts for every byte of OUT and proves
the added instructions for all codes; then both programs run on the recordings. Needs no root,
but for --engine kernel. A manifest's originals are where it says they were, or among --original.

{EXIT_CODES_HELP}
"""


@click.command("verify", cls=Command, help=_HELP, epilog=_EPILOG, context_settings=settings())
@click.argument("files", metavar="IN OUT | MANIFEST", nargs=-1, required=True)
@option("--program", metavar="NAME", group="The link",
        help="Which link of OUT.  [default: the only one]")  # fmt: skip
@option("--original", "originals", metavar="FILE", multiple=True, group="The link",
        help="An original of the manifest's links, found by its sha256; may be repeated.")  # fmt: skip
@option("--corpus", "corpora", multiple=True, metavar="FILE", group="The runs",
        help="A capture to run on (pcap, pcapng); may be repeated.  [default: built in]")  # fmt: skip
@option("--scenario", metavar="FILE", group="The runs",
        help="Map contents, helpers' answers and contexts of the runs (JSON).  "
        "[default: CAPTURE.scenario.json]")  # fmt: skip
@option("--btf", metavar="FILE", group="The runs",
        help="Resolve CO-RE against these types.  [default: the object's own]")  # fmt: skip
@option("--engine", "engines", type=Choice("ubpf", "ubpf-jit", "kernel"), multiple=True,
        metavar="WORD", group="The runs",
        help="ubpf, ubpf-jit or kernel (root); may be repeated.  [default: ubpf]")  # fmt: skip
@option("--jobs", type=click.IntRange(1, 1024), default=1, metavar="N", group="The runs",
        help="Processes, each with links of its own.  [default: 1]")  # fmt: skip
@option("--seed", type=click.IntRange(0, (1 << 64) - 1), default=0, metavar="N", group="The runs",
        help="Of random numbers that programs ask for.  [default: 0]")  # fmt: skip
@option("--allow", "allowed", type=Choice("stack-residue", "unmodelled"), multiple=True,
        metavar="WORD", group="The runs",
        help="stack-residue: a verdict may depend on what lay on the stack; unmodelled: the static "
        "proof is enough where the engine met something that it does not model.")  # fmt: skip
@option("--report", "reports", metavar="KIND=FILE", multiple=True, group="Output",
        help="Also write html, json, junit or lcov to FILE; may be repeated.")  # fmt: skip
@option("--save", metavar="FILE", default="counterexample.pcapng", group="Output",
        help="Where a counterexample is written, its scenario beside it; of a chain's link 1 with "
        "-link1 in the name.  [default: counterexample.pcapng]")  # fmt: skip
@option("--json", "as_json", is_flag=True, group="Output", help="Print the JSON report on stdout.")
@chatter
def command(
    files: tuple[str, ...],
    program: str | None,
    originals: tuple[str, ...],
    as_json: bool,
    reports: tuple[str, ...],
    jobs: int,
    quiet: bool,
    verbose: bool,
    **wanted: Any,
) -> None:
    """Read everything, prove, report, and end with the exit code of the worst."""
    from bpfchain.verify.reports.write import parse_report_option, write_reports

    from .report_view import show_report
    from .verify_run import verify_manifest, verify_pair

    voice = Voice(quiet, verbose)
    if len(files) > 2:
        raise UsageError(
            f"{len(files)} files are too many: give IN and OUT, or one manifest",
            "quote names with spaces",
        )
    wanted_reports = [parse_report_option(text) for text in reports]
    allowed = frozenset(wanted.pop("allowed"))
    options = _options(allowed, details=as_json or verbose or bool(wanted_reports), **wanted)
    rerun = _command_line()
    if len(files) == 1:
        _one_file(files[0], program)
        report = verify_manifest(files[0], originals, options, jobs, quiet)
    else:
        if originals:
            raise UsageError("--original belongs to a manifest; IN is the original here")
        report = verify_pair(files[0], files[1], program, options, jobs, quiet)
    report = replace(report, rerun=rerun)
    for note in write_reports(report, wanted_reports):
        voice.warn(note)
    if as_json:
        from bpfchain.verify.reports import json_report

        print_result(json_report.render(report).rstrip("\n"))
    else:
        show_report(report, voice)
    _end(report, allowed)


def _one_file(name: str, program: str | None) -> None:
    if program is not None:
        raise UsageError("--program chooses a link of OUT; a manifest names its links")
    if name == STREAM:
        raise UsageError("MANIFEST cannot be -: its objects are named relative to it")
    if os.path.isfile(name):
        with open(name, "rb") as file:
            if file.read(4) == b"\x7fELF":
                raise UsageError(
                    f"{name} is an object, not a manifest", f"bpfchain verify IN.o {name}"
                )


def _options(
    allowed: frozenset[str],
    *,
    corpora: tuple[str, ...],
    scenario: str | None,
    btf: str | None,
    engines: tuple[str, ...],
    seed: int,
    save: str,
    details: bool,
) -> Options:
    from pathlib import Path

    from bpfchain.verify.prove import Options

    if save and not Path(save).resolve().parent.is_dir():
        raise UsageError(f"--save {save}: there is no folder {Path(save).parent}")
    return Options(
        recordings=read_corpora(corpora, scenario),
        engines=tuple(dict.fromkeys(engines)) or ("ubpf",),
        btf=None if btf is None else read_input(btf),
        lief=True,
        allow_residue="stack-residue" in allowed,
        seed=seed,
        run_anyway=True,
        save_to=Path(save) if save else None,
        details=details,
    )


def _command_line() -> str:
    import shlex
    import sys

    return shlex.join(["bpfchain", *sys.argv[1:]])


def _end(report: Report, allowed: frozenset[str]) -> None:
    """The exit code: 1 not equal, 4 where it could not be decided."""
    from bpfchain.verify.result import Outcome

    outcome = report.outcome
    if outcome in (Outcome.NOT_EQUAL, Outcome.INCONCLUSIVE):
        raise finding_error(report.subject, report.findings[0])
    if outcome is Outcome.UNMODELLED and "unmodelled" not in allowed:
        met = [name for link in report.links for name in link.dynamic.unmodelled]
        if report.chain:
            met += report.chain.dynamic.unmodelled
        raise InconclusiveError(
            f"{report.subject}: not run through: {', '.join(dict.fromkeys(met)) or 'not run'}",
            "--engine kernel runs it as root; --allow unmodelled takes the static proof alone",
        )
    if outcome is Outcome.NOT_RUN:  # no link: nothing was shown
        raise InconclusiveError(f"{report.subject}: nothing was run")

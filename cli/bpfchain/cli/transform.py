"""``bpfchain-transform``: one object in, the same object with one program as a link of a chain out."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import click

from bpfchain.transform.errors import BpfchainError, UsageError
from bpfchain.transform.link import SLOTS_MAP
from bpfchain.transform.version import VERSION

from .command import Choice, Command, chatter, option, settings
from .files import STREAM, check_output, pending_output, read_input
from .output import Voice, print_result
from .proof import UNPROVED, Proved, Wanted, proof_options, prove
from .words import EXIT_CODES_HELP, entries_text, hooks_brief, hooks_table, summary

if TYPE_CHECKING:
    from bpfchain.transform.manifest_link import LinkRecord
    from bpfchain.transform.request import Need, Patched, Request

__all__ = ["command"]

_HELP = "Rewrite a compiled BPF object so that one of its programs becomes a link of a chain."

_EPILOG = f"""\
Examples:
  bpfchain-transform filter.o --index 0 -o link0.o
  bpfchain-transform metrics.o --index 1 --success PASS,TX --manifest chain.json -o link1.o
  bpfchain-transform log.o --index 2 --last -o link2.o

Lists of codes (S, R): names or numbers, PASS,TX or 0,2..5; also any, none, not:DROP,ABORTED.
IN and OUT may be - for stdin and stdout. An older OUT stays as it was where the command fails.

Hooks and their default S (--help-hooks tells their sections and codes):
{{hooks}}

{EXIT_CODES_HELP}
"""


class _Transform(Command):
    """The command whose last lines are made only when they are read."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write("\n" + _EPILOG.format(hooks=hooks_brief()))


def _show_hooks(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        print_result(hooks_table())
        ctx.exit()


@click.command("transform", cls=_Transform, help=_HELP, context_settings=settings())
@click.argument("source", metavar="IN")
@option("--index", type=int, required=True, metavar="I", group="The link",
        help="Its place in the chain, 0 to 32.")  # fmt: skip
@option("-o", "--output", "target", required=True, metavar="OUT", group="The link",
        help="The patched object, or -.")  # fmt: skip
@option("--program", metavar="NAME", group="The link",
        help="The program to patch.  [default: the only one]")  # fmt: skip
@option("--hook", metavar="H", group="The link",
        help="Where the chain is attached.  [default: as the section name says]")  # fmt: skip
@option("--last", is_flag=True, group="The link", help="No link follows: make no tail call.")
@option("--success", metavar="LIST", group="Codes",
        help="S: codes after which the next link runs.  [default: the hook's, see below]")  # fmt: skip
@option("--redirect", metavar="LIST", group="Codes",
        help="R: codes after which it runs too, and which the chain remembers.  [default: none]",
        )  # fmt: skip
@option("--saved", metavar="LIST", group="Codes",
        help="Codes that a link before this one may have saved.  [default: none]")  # fmt: skip
@option("--strategy", type=Choice("auto", "inline", "subprog"), default="auto", group="The patch",
        metavar="WORD", help="auto, inline or subprog.  [default: auto]")  # fmt: skip
@option("--saved-code", type=Choice("slots", "map"), default="slots", group="The patch",
        metavar="WORD", help="Remember in slots or in a per-CPU map.  [default: slots]")  # fmt: skip
@option("--slots-map", metavar="NAME", default=SLOTS_MAP, group="The patch",
        help=f"The chain's PROG_ARRAY.  [default: {SLOTS_MAP}]")  # fmt: skip
@option("--pin", is_flag=True, group="The patch",
        help="Pin it by name and fill the link's own slots on load: for experiments, one chain "
        "a host.")  # fmt: skip
@option("--kernel", metavar="V", group="The patch",
        help="Kernel that must load it, such as 6.1.  [default: any]")  # fmt: skip
@option("--arch", metavar="A", group="The patch",
        help="Architecture that must load it, such as arm64.  [default: any]")  # fmt: skip
@option("--allow", "allowed", type=Choice("nested-runs", "redirect-hazard", "stack-residue"), multiple=True,
        metavar="HAZARD", group="The patch",
        help="Take on nested-runs, redirect-hazard or stack-residue; may be repeated.")  # fmt: skip
@proof_options
@option("--manifest", metavar="FILE", group="The manifest",
        help="Record the link in FILE; several commands may do so at a time.")  # fmt: skip
@option("--chain", metavar="NAME", group="The manifest",
        help="The chain's name there.  [default: as FILE says, or FILE without its ending]")  # fmt: skip
@option(
    "--json", "as_json", is_flag=True, group="Output", help="Print the link's record on stdout."
)
@chatter
@option("--help-hooks", is_flag=True, is_eager=True, expose_value=False, callback=_show_hooks,
        group="Other", help="Show every hook with its sections and codes, and exit.")  # fmt: skip
@click.version_option(VERSION, "-V", "--version", message="%(prog)s %(version)s")
def command(
    source: str,
    target: str,
    allowed: tuple[str, ...],
    manifest: str | None,
    chain: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **wanted: Any,
) -> None:
    """Patch, prove, record, write: the order in which a failure leaves nothing behind."""
    from bpfchain.transform.request import Request

    voice = Voice(quiet, verbose)
    _check(target, manifest, chain, as_json)
    proof = Wanted.take(wanted)
    request = Request(allow=frozenset(allowed), **wanted)
    data = read_input(source)
    shown = "stdin" if source == STREAM else source
    patched = _transform(data, request, shown)
    proved = _prove(patched, data, source, target, proof, request)
    with pending_output(target, patched.data) as pending:
        if manifest is not None:
            displaced = _record(patched, proved, data, source, target, manifest, chain)
            if displaced is not None:
                voice.warn(displaced)
        pending.commit()
    if as_json:
        print_result(_json(patched, proved, data, source, target))
    for warning in (*patched.warnings, *proved.warnings):
        voice.warn(f"{shown}: {warning}")
    voice.say(f"{'stdout' if target == STREAM else target}: {summary(patched)}, {proved.words}")
    if verbose:
        for line in (*_explained(patched), *proved.details):
            voice.explain(line)


def _check(target: str, manifest: str | None, chain: str | None, as_json: bool) -> None:
    """Refuse options that contradict each other, before any work."""
    check_output(target)
    if as_json and target == STREAM:
        raise UsageError("--json and -o - both write to stdout", "name a file with -o")
    if manifest is not None and target == STREAM:
        raise UsageError("--manifest records a file: -o - has no name", "name a file with -o")
    if manifest == STREAM:
        raise UsageError("--manifest - is no file", "--json prints the record on stdout")
    if chain is not None and manifest is None:
        raise UsageError("--chain names the chain in a manifest, and there is no --manifest")
    if manifest is not None and os.path.realpath(manifest) == os.path.realpath(target):
        raise UsageError(f"--manifest and -o both name {target}")


def _transform(data: bytes, request: Request, shown: str) -> Patched:
    from bpfchain.transform.transform import transform_object

    try:
        return transform_object(data, request)
    except BpfchainError as error:
        raise error.within(shown) from None


def _prove(
    patched: Patched, data: bytes, source: str, target: str, proof: Wanted, request: Request
) -> Proved:
    """What may be written, with its proof. Raises NotEqualError, InconclusiveError."""
    if proof.no_verify:
        return Proved(UNPROVED, None)
    from bpfchain.verify.prove import Subject

    subject = Subject(
        original=data,
        patched=patched.data,
        input_name="stdin" if source == STREAM else source,
        output_name="stdout" if target == STREAM else target,
        program=patched.program,
    )
    return prove(subject, proof.options(request.allow), strict=proof.strict)


def _record_of(
    patched: Patched, proved: Proved, data: bytes, input_path: str | None, named: str
) -> LinkRecord:
    from hashlib import sha256

    from bpfchain.transform.manifest_link import record_of

    return record_of(
        patched,
        object_path=named,
        input_path=input_path,
        input_sha256=sha256(data).hexdigest(),
        output_sha256=sha256(patched.data).hexdigest(),
        verified=proved.verified,
    )


def _record(
    patched: Patched, proved: Proved, data: bytes, source: str, target: str, manifest: str,
    chain: str | None,
) -> str | None:  # fmt: skip
    """Put the link into the manifest; what to say where that put another one out of its place."""
    from pathlib import Path

    from bpfchain.transform.manifest_file import object_path, read_manifest, record_link

    path, index = Path(manifest), patched.link.index
    given = None if source == STREAM else object_path(path, Path(source))
    record = _record_of(patched, proved, data, given, object_path(path, Path(target)))
    before = None
    with contextlib.suppress(BpfchainError, OSError):  # record_link tells what is wrong with it
        before = read_manifest(path).record(index) if path.exists() else None
    record_link(path, chain, record)
    if before is None or (before.object, before.program) == (record.object, record.program):
        return None
    return (
        f"{manifest}: link {index} was {before.program} of {before.object}, "
        f"and is now {record.program} of {record.object}"
    )


def _json(patched: Patched, proved: Proved, data: bytes, source: str, target: str) -> str:
    import json

    given = None if source == STREAM else source
    record = _record_of(patched, proved, data, given, target).to_dict()
    return json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False)


def _explained(patched: Patched) -> list[str]:
    """What -v adds below the success line."""
    link = patched.link
    hook = link.hook
    before, after = patched.before, patched.after
    attach = f", {hook.attach_type}" if hook.attach_type else ""
    lines = [
        f"hook: {hook.name} ({hook.prog_type}{attach}), from section {patched.section}",
        f"strategy: {patched.strategy}: {patched.why}",
        f"instructions: {before.instructions} before, {after.instructions} after",
        f"stack: {_bytes(before.stack)} before, {_bytes(after.stack)} after",
    ]
    if patched.keep is not None:
        lines.append(f"context kept in: {patched.keep}")
    names = [entry.name for entry in patched.entries]
    lines += [f"entry {line}" for line in entries_text(link, names)]
    lines += [f"needs {_need(need)}" for need in patched.needs]
    if patched.debug == "dropped":
        lines.append("DWARF dropped: its line tables count instructions that moved")
    if patched.allowed:
        lines.append(f"allowed: {', '.join(patched.allowed)}")
    if hook.note:
        lines.append(f"note: {hook.note}")
    return lines


def _bytes(count: int | None) -> str:
    return "not bounded" if count is None else f"{count} bytes"


def _need(need: Need) -> str:
    first = ", ".join(f"{arch} {kernel}" for arch, kernel in need.kernels if kernel is not None)
    never = ", ".join(arch for arch, kernel in need.kernels if kernel is None)
    text = f"{need.what}: {need.why}"
    if first:
        text += f" (first kernels: {first})"
    return f"{text}; never on {never}" if never else text

"""``bpfchain replace``: one link of a running chain for another object, patched and proved first."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import click

from bpfchain.transform.errors import BpfchainError, RefusedError, UsageError

from .chains import chosen, describe, report, root_of, state_options, which_options
from .command import Choice, Command, chatter, option, settings
from .files import check_output, host_error, pending_output, read_input
from .output import Voice
from .proof import UNPROVED, Proved, Wanted, proof_options, prove
from .words import EXIT_CODES_HELP, summary

if TYPE_CHECKING:
    from pathlib import Path

    from bpfchain.transform.manifest_link import LinkRecord

__all__ = ["command"]

_HELP = "Replace one link of a running chain, by one slot update where that is enough."

_EPILOG = f"""\
Examples:
  bpfchain replace edge 1 metrics.o
  bpfchain replace edge 1 link1.o --manifest chain/manifest.json
  bpfchain replace edge 0 filter.o --program strict -o strict0.o

An object that is no link yet is patched as the running link was (same S, R, states, mode) and
proved. One that is patched already must be recorded in a manifest, its own folder's manifest.json
or --manifest, and must be patched alike. The link's maps of equal name and definition go on with
their content (.data and .bss with --keep-data). Where one slot is not enough (several states reach
the link) the chain is recreated, which is said.

{EXIT_CODES_HELP}
"""


@click.command("replace", cls=Command, help=_HELP, epilog=_EPILOG, context_settings=settings())
@click.argument("chain", metavar="CHAIN")
@click.argument("index", metavar="INDEX", type=int)
@click.argument("source", metavar="OBJECT")
@which_options
@option("--program", metavar="NAME", group="The link",
        help="The program to patch.  [default: the running link's name, or the only one]")  # fmt: skip
@option("--manifest", metavar="FILE", group="The link",
        help="Where a patched OBJECT is recorded.  [default: manifest.json beside it]")  # fmt: skip
@option("-o", "--output", "target", metavar="OUT", group="The link",
        help="Also write the patched object.  [default: it is kept with the chain's pins]")  # fmt: skip
@option("--allow", "allowed", type=Choice("nested-runs", "redirect-hazard", "stack-residue"), multiple=True,
        metavar="HAZARD", group="The link",
        help="Take on nested-runs, redirect-hazard or stack-residue; may be repeated.")  # fmt: skip
@option("--keep-data", is_flag=True, group="The link",
        help="Let .data and .bss go on with their content too.")  # fmt: skip
@proof_options
@state_options
@chatter
def command(
    chain: str,
    index: int,
    source: str,
    program: str | None,
    manifest: str | None,
    target: str | None,
    allowed: tuple[str, ...],
    keep_data: bool,
    bpffs: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    dev: str | None,
    direction: str | None,
    cgroup: str | None,
    socket_fd: int | None,
    **proof_wanted: Any,
) -> None:
    """Patch, prove, and only then touch the chain."""
    from pathlib import Path

    from bpfchain.loader.operations.replace import current_link, replace

    voice = Voice(quiet, verbose)
    proof = Wanted.take(proof_wanted)
    if target is not None:
        check_output(target)
    place = chosen(root_of(bpffs), chain, dev=dev, direction=direction, cgroup=cgroup)
    data = read_input(source)
    before = current_link(place, index)
    folder: Path | None
    record: LinkRecord
    if _patched(data, source):
        if target is not None or program is not None:
            raise UsageError(f"{source} is patched already: leave --program and -o out")
        record, folder, words = *_recorded(data, source, index, manifest), "patched before"
        warnings: tuple[str, ...] = ()
    else:
        if manifest is not None:
            raise UsageError(f"{source} is not patched: --manifest says nothing of it")
        record, data, proved, words = _patch(
            data, source, before, program, frozenset(allowed), proof, target
        )
        warnings = (*record.warnings, *proved.warnings)
        folder = Path(target).parent if target is not None else None
    with _written(target, data):
        done = replace(place, record, data, folder=folder, keep_data=keep_data, fd=socket_fd)
    for warning in warnings:
        voice.warn(f"{source}: {warning}")
    how = "one slot updated" if done.operation == "replace" else f"recreated: {done.why}"
    if index == 0 and done.operation == "replace":
        how = "the head swapped"
    report(
        done, voice, as_json,
        f"{describe(place)}: link {index} is {record.program} now, generation {done.generation} "
        f"({how}); {words}",
        also={"link": record.to_dict()},
    )  # fmt: skip


def _patched(data: bytes, source: str) -> bool:
    from bpfchain.transform.elf_read import read_object
    from bpfchain.transform.provenance import read_provenance

    try:
        return bool(read_provenance(read_object(data)))
    except BpfchainError as error:
        raise error.within(source) from None


def _recorded(
    data: bytes, source: str, index: int, manifest: str | None
) -> tuple[LinkRecord, Path]:
    """The record of a patched object, and the folder that it names files from."""
    from hashlib import sha256
    from pathlib import Path

    from bpfchain.transform.manifest_file import read_manifest

    path = Path(manifest) if manifest is not None else Path(source).parent / "manifest.json"
    if manifest is None and not path.exists():
        raise UsageError(
            f"{source} is patched already, and no manifest says how",
            "give the manifest that records it with --manifest, or the unpatched object",
        )
    record = read_manifest(path).record(index)
    digest = sha256(data).hexdigest()
    if record is None or record.output_sha256 != digest:
        raise RefusedError(
            f"{source} is not what {path} records as link {index}",
            "give the manifest that records it with --manifest, or the unpatched object",
        )
    return record, path.parent


def _patch(
    data: bytes, source: str, before: LinkRecord, program: str | None, allowed: frozenset[str],
    proof: Wanted, target: str | None,
) -> tuple[LinkRecord, bytes, Proved, str]:  # fmt: skip
    """Patch as the running link was, and prove it."""
    from hashlib import sha256

    from bpfchain.transform.manifest_link import record_of
    from bpfchain.transform.request import Request
    from bpfchain.transform.transform import transform_object

    link = before.link
    request = Request(
        index=link.index,
        program=program or _same_name(data, before.program),
        hook=link.hook.name,
        success=link.success.describe({}),
        redirect=link.redirect.describe({}) if link.redirect else None,
        saved=",".join(map(str, link.saved)) or None,
        saved_code=link.mode,
        last=link.last,
        slots_map=link.slots_map,
        allow=allowed | (frozenset(before.allowed) & {"nested-runs"}),
    )
    try:
        patched = transform_object(data, request)
    except BpfchainError as error:
        raise error.within(source) from None
    if proof.no_verify:
        proved = Proved(UNPROVED, None)
    else:
        from bpfchain.verify.prove import Subject

        subject = Subject(
            original=data, patched=patched.data, input_name=source,
            output_name=target or f"link {link.index}", program=patched.program,
        )  # fmt: skip
        proved = prove(subject, proof.options(request.allow), strict=proof.strict)
    digest = sha256(patched.data).hexdigest()
    name = os.path.basename(target) if target else f"pinned/link{link.index}-{digest[:12]}.o"
    record = record_of(
        patched,
        object_path=name,
        input_path=None,
        input_sha256=sha256(data).hexdigest(),
        output_sha256=digest,
        verified=proved.verified,
    )
    return record, patched.data, proved, f"{summary(patched)}, {proved.words}"


def _same_name(data: bytes, name: str) -> str | None:
    """The running link's program name, where the object has a program of that name."""
    from bpfchain.transform.elf_read import read_object
    from bpfchain.transform.program import programs_of

    return name if any(p.name == name for p in programs_of(read_object(data))) else None


@contextlib.contextmanager
def _written(target: str | None, data: bytes) -> Any:
    """The patched object complete beside OUT, in its place once the chain took it."""
    if target is None:
        yield
        return
    try:
        with pending_output(target, data) as pending:
            yield
            pending.commit()
    except OSError as error:
        raise host_error(target, error) from None

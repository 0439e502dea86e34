"""``bpfchain build``: every link of a chain file patched, the objects and their manifest in a folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from bpfchain.transform.errors import BpfchainError, UsageError

from .command import Choice, Command, chatter, option, settings
from .files import STREAM, host_error, read_input
from .output import Voice, print_result
from .proof import UNPROVED, Proved, Wanted, proof_options, prove
from .words import EXIT_CODES_HELP, link_codes, summary

if TYPE_CHECKING:
    from pathlib import Path

    from bpfchain.transform.chainfile import ChainFile
    from bpfchain.transform.manifest import Manifest
    from bpfchain.transform.policy import Hook
    from bpfchain.transform.request import Patched

__all__ = ["command"]

MANIFEST = "manifest.json"
P = ParamSpec("P")
T = TypeVar("T")

_HELP = "Patch all links of a chain file, and write the objects and their manifest into a folder."

_EPILOG = f"""\
Examples:
  bpfchain build chain.toml -o chain
  bpfchain build chain.toml -o chain --kernel 5.10 --arch arm64
  bpfchain build chain.toml -o chain --json

A chain file, its objects beside it:
  name = "edge"                  # the chain
  hook = "xdp"                   # optional: the sections tell it
  extensible = false             # true: more links may follow the last

  [[link]]                       # in the order they run: link 0, link 1 …
  object = "filter.o"
  program = "filter"             # optional where the object has only one
  success = "PASS"               # optional: S; also a list, ["PASS", "TX"]
  redirect = "REDIRECT"          # optional: R
  strategy = "auto"              # optional: auto, inline or subprog

DIR gets link0.o, link1.o … and {MANIFEST}. Which codes may be saved before a link, and which link
is the last, follow from the file. Where one link is refused, nothing is written.

{EXIT_CODES_HELP}
"""


@click.command("build", cls=Command, help=_HELP, epilog=_EPILOG, context_settings=settings())
@click.argument("chain_file", metavar="CHAIN.TOML")
@option("-o", "--output", "target", required=True, metavar="DIR", group="The chain",
        help="The folder; made where there is none.")  # fmt: skip
@option("--kernel", metavar="V", group="The chain",
        help="Kernel that must load it, such as 6.1.  [default: any]")  # fmt: skip
@option("--arch", metavar="A", group="The chain",
        help="Architecture that must load it, such as arm64.  [default: any]")  # fmt: skip
@option("--allow", "allowed", type=Choice("nested-runs", "redirect-hazard", "stack-residue"), multiple=True,
        metavar="HAZARD", group="The chain",
        help="Take on nested-runs, redirect-hazard or stack-residue; may be repeated.")  # fmt: skip
@proof_options
@option("--json", "as_json", is_flag=True, group="Output", help="Print the manifest on stdout.")
@chatter
def command(
    chain_file: str,
    target: str,
    kernel: str | None,
    arch: str | None,
    allowed: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **proof_wanted: Any,
) -> None:
    """Plan, patch all, prove each link, check the chain, and only then write."""
    from pathlib import Path

    from bpfchain.transform.chain_check import validate_complete
    from bpfchain.transform.chainfile import plan, read_chain
    from bpfchain.transform.manifest_file import dumps, object_path
    from bpfchain.transform.transform import transform_object

    voice = Voice(quiet, verbose)
    _check(chain_file, target)
    proof = Wanted.take(proof_wanted)
    path, folder = Path(chain_file), Path(target)
    chain = read_chain(path)
    names = [str(path.parent / link.object) for link in chain.links]
    inputs = [read_input(name) for name in names]
    hooks = [_within(names[i], _hook_of, chain, i, data) for i, data in enumerate(inputs)]
    try:
        requests = plan(chain, hooks, kernel=kernel, arch=arch, allow=frozenset(allowed))
    except BpfchainError as error:
        raise error.within(chain_file) from None
    links = [
        _within(name, transform_object, data, request)
        for name, data, request in zip(names, inputs, requests, strict=True)
    ]
    try:
        validate_complete(_manifest(chain, inputs, links, None, None))
    except BpfchainError as error:
        raise error.within(chain_file) from None
    proved = _prove_all(proof, frozenset(allowed), names, inputs, links)
    manifest = _manifest(
        chain, inputs, links, proved, [object_path(folder / MANIFEST, Path(n)) for n in names]
    )
    warnings = validate_complete(manifest)
    text = dumps(manifest)
    files = {f"link{i}.o": patched.data for i, patched in enumerate(links)}
    _write(folder, files | {MANIFEST: text.encode()})
    if as_json:
        print_result(text.rstrip("\n"))
    for name, patched, proof_of_link in zip(names, links, proved, strict=True):
        for warning in (*patched.warnings, *proof_of_link.warnings):
            voice.warn(f"{name}: {warning}")
    for warning in warnings:
        voice.warn(f"{chain_file}: {warning}")
    for stale in _stale(folder, files):
        voice.warn(f"{stale}: is of an older chain: {MANIFEST} does not name it")
    voice.say(f"{folder / MANIFEST}: {_chain_summary(manifest, links)}, {_proof_words(proved)}")
    for index, (patched, proof_of_link) in enumerate(zip(links, proved, strict=True)):
        voice.explain(f"link{index}.o: {summary(patched)}: {patched.why}; {proof_of_link.words}")


def _check(chain_file: str, target: str) -> None:
    if chain_file == STREAM:
        raise UsageError("CHAIN.TOML cannot be -: its objects are named relative to it")
    if target == STREAM or (os.path.lexists(target) and not os.path.isdir(target)):
        raise UsageError(
            f"-o {target} is no folder", "name a folder for the objects and the manifest"
        )
    above = os.path.dirname(os.path.abspath(target))
    if not os.path.isdir(above):
        raise UsageError(f"{target}: there is no folder {above}")
    if not os.path.exists(chain_file):
        read_input(chain_file)  # says so, with the nearest name


def _within(name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the function; its error names the file."""
    try:
        return function(*args, **kwargs)
    except BpfchainError as error:
        raise error.within(name) from None


def _hook_of(chain: ChainFile, index: int, data: bytes) -> Hook:
    """The hook of a link's program, before anything is patched."""
    from bpfchain.transform.elf_read import read_object
    from bpfchain.transform.policy import hook_of_section
    from bpfchain.transform.program import find_program

    entry = chain.links[index]
    try:
        program = find_program(read_object(data), entry.program, frozenset())
    except UsageError as error:  # it speaks of the option of another command
        message = error.message.replace("with --program", "with `program` in the chain file")
        raise UsageError(message, error.hint) from None
    return hook_of_section(program.section.name, entry.hook or chain.hook, what=program.what)


def _prove_all(
    proof: Wanted, allow: frozenset[str], names: list[str], inputs: list[bytes],
    links: list[Patched],
) -> list[Proved]:  # fmt: skip
    """The proof of every link. Raises NotEqualError, InconclusiveError."""
    if proof.no_verify:
        return [Proved(UNPROVED, None)] * len(links)
    from bpfchain.verify.prove import Subject

    options = proof.options(allow)
    return [
        prove(
            Subject(
                original=data, patched=patched.data, input_name=name,
                output_name=f"link{index}.o", program=patched.program,
            ),
            options,
            strict=proof.strict,
        )
        for index, (name, data, patched) in enumerate(zip(names, inputs, links, strict=True))
    ]  # fmt: skip


def _proof_words(proved: list[Proved]) -> str:
    """What is to be said of each link; once where it is the same of all."""
    words = {one.words for one in proved}
    if len(words) == 1:
        return words.pop()
    return "; ".join(f"link {i} {one.words}" for i, one in enumerate(proved))


def _manifest(
    chain: ChainFile, inputs: list[bytes], links: list[Patched], proved: list[Proved] | None,
    paths: list[str] | None,
) -> Manifest:  # fmt: skip
    from hashlib import sha256

    from bpfchain.transform.manifest import new_manifest
    from bpfchain.transform.manifest_link import record_of

    records = [
        record_of(
            patched,
            object_path=f"link{index}.o",
            input_path=paths[index] if paths else None,
            input_sha256=sha256(data).hexdigest(),
            output_sha256=sha256(patched.data).hexdigest(),
            verified=proved[index].verified if proved else None,
        )
        for index, (data, patched) in enumerate(zip(inputs, links, strict=True))
    ]
    return new_manifest(chain.name, *records, extensible=chain.extensible, share=chain.share)


def _write(folder: Path, files: dict[str, bytes]) -> None:
    """All files or none: complete beside the folder first, then moved into it, manifest last."""
    from shutil import rmtree

    target = folder.resolve()  # a link keeps pointing where it points
    beside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        try:
            beside.mkdir()
            for name, data in files.items():
                (beside / name).write_bytes(data)
            if not target.exists():
                beside.rename(target)
                return
            for name in files:
                (beside / name).replace(target / name)
        finally:
            rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise host_error(str(folder), error) from None


def _stale(folder: Path, files: dict[str, bytes]) -> list[str]:
    """Objects of an older, longer chain in the same folder."""
    found = [path for path in folder.glob("link*.o") if path.name not in files]
    return sorted(str(path) for path in found if path.name[4:-2].isdigit())


def _chain_summary(manifest: Manifest, links: list[Patched]) -> str:
    """``chain edge on xdp, 3 links: filter (inline, +7), metrics (inline, +7), log (unchanged)``."""
    told = []
    for patched in links:
        more = patched.after.instructions - patched.before.instructions
        cost = "unchanged" if patched.strategy == "none" else f"{patched.strategy}, {more:+d}"
        codes = "" if patched.link.last else f", {link_codes(patched.link)}"
        told.append(f"{patched.program} ({cost}{codes})")
    count = f"{len(links)} link{'' if len(links) == 1 else 's'}"
    return f"chain {manifest.chain} on {manifest.hook.name}, {count}: {', '.join(told)}"

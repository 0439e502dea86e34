"""``bpfchain recreate``: a running chain becomes the one of a manifest, in one swap."""

from __future__ import annotations

from typing import Any

import click

from bpfchain.transform.errors import RefusedError

from .chains import chosen, describe, read_chain, report, root_of, state_options, which_options
from .command import Command, chatter, option, settings
from .output import Voice
from .words import EXIT_CODES_HELP

__all__ = ["command"]

_HELP = "Exchange a running chain for the one of a manifest, in one swap of its head."

_EPILOG = f"""\
Examples:
  bpfchain recreate chain/manifest.json
  bpfchain recreate chain/manifest.json --dev eth1 --keep-data

The chain is the one of the manifest's name. Its links may be other ones, more or fewer. A link is
known again by its program's name: then its maps of equal name and definition go on with their
content (never constants and arrays of programs; .data and .bss with --keep-data). The generation
before stays for `bpfchain rollback` until the next recreate.

{EXIT_CODES_HELP}
"""


@click.command("recreate", cls=Command, help=_HELP, epilog=_EPILOG, context_settings=settings())
@click.argument("manifest", metavar="MANIFEST")
@which_options
@option("--keep-data", is_flag=True, group="The chain",
        help="Let .data and .bss go on with their content too.")  # fmt: skip
@state_options
@chatter
def command(
    manifest: str, keep_data: bool, bpffs: str, as_json: bool, quiet: bool, verbose: bool,
    **which: Any,
) -> None:  # fmt: skip
    """Build beside, swap, wait, free what is two generations old."""
    from bpfchain.loader.operations.recreate import recreate

    voice = Voice(quiet, verbose)
    source = read_chain(manifest)
    place = chosen(root_of(bpffs), source.manifest.chain, **which)
    try:
        done = recreate(source, place, keep_data=keep_data, fd=which["socket_fd"])
    except RefusedError as error:
        raise error.within(manifest) from None
    names = ", ".join(record.program for record in source.manifest.links)
    report(done, voice, as_json, f"{describe(place)}: generation {done.generation} runs ({names})")

"""``bpfchain rollback``: back to the generation before."""

from __future__ import annotations

from typing import Any

import click

from .chains import chosen, describe, report, root_of, state_options, which_options
from .command import Command, chatter, settings
from .output import Voice
from .words import EXIT_CODES_HELP

__all__ = ["command"]

_HELP = "Go back to the generation of a chain that ran before the last recreate."

_EPILOG = f"""\
Examples:
  bpfchain rollback edge
  bpfchain rollback edge --dev eth1 --json

One swap of the head; the generation that is left is freed. Maps that both generations have go on
as they are: contents are not rolled back.

{EXIT_CODES_HELP}
"""


@click.command("rollback", cls=Command, help=_HELP, epilog=_EPILOG, context_settings=settings())
@click.argument("chain", metavar="CHAIN")
@which_options
@state_options
@chatter
def command(
    chain: str, bpffs: str, as_json: bool, quiet: bool, verbose: bool, **which: Any
) -> None:
    """Swap back, wait, free."""
    from bpfchain.loader.operations.rollback import rollback

    voice = Voice(quiet, verbose)
    place = chosen(root_of(bpffs), chain, **which)
    done = rollback(place, fd=which["socket_fd"])
    report(done, voice, as_json, f"{describe(place)}: back to generation {done.generation}")

"""``bpfchain unload``: detach a chain, and free everything of it."""

from __future__ import annotations

from typing import Any

import click

from .chains import chosen, describe, report, root_of, state_options, which_options
from .command import Command, chatter, option, settings
from .output import Voice
from .words import EXIT_CODES_HELP

__all__ = ["command"]

_HELP = "Detach a chain, and free its programs, maps and pins."

_EPILOG = f"""\
Examples:
  bpfchain unload edge
  bpfchain unload edge --dev eth1

Nothing is released before the last packet has left the chain.

{EXIT_CODES_HELP}
"""


@click.command("unload", cls=Command, help=_HELP, epilog=_EPILOG, context_settings=settings())
@click.argument("chain", metavar="CHAIN")
@which_options
@option("--force", is_flag=True, group="The chain",
        help="Free a chain whose socket cannot be handed over, because it is closed.")  # fmt: skip
@state_options
@chatter
def command(
    chain: str, force: bool, bpffs: str, as_json: bool, quiet: bool, verbose: bool, **which: Any
) -> None:
    """Detach, wait, free."""
    from bpfchain.loader.operations.unload import unload

    voice = Voice(quiet, verbose)
    place = chosen(root_of(bpffs), chain, **which)
    done = unload(place, fd=which["socket_fd"], force=force)
    was = f"generation {done.before} unloaded" if done.before else "what was left of it is freed"
    report(done, voice, as_json, f"{describe(place)}: {was}")

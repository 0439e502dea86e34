"""``bpfchain bypass``: skip one link of a running chain."""

from __future__ import annotations

from typing import Any

import click

from .chains import chosen, describe, report, root_of, state_options, which_options
from .command import Command, chatter, settings
from .output import Voice
from .words import EXIT_CODES_HELP

__all__ = ["command"]

_HELP = "Skip one link of a running chain: a pass-through program takes its place."

_EPILOG = f"""\
Examples:
  bpfchain bypass edge 1
  bpfchain replace edge 1 metrics.o      # the link is back

One slot update, where one state reaches the link; else the chain is recreated, which is said. The
last link cannot be bypassed: recreate the chain without it.

{EXIT_CODES_HELP}
"""


@click.command("bypass", cls=Command, help=_HELP, epilog=_EPILOG, context_settings=settings())
@click.argument("chain", metavar="CHAIN")
@click.argument("index", metavar="INDEX", type=int)
@which_options
@state_options
@chatter
def command(
    chain: str, index: int, bpffs: str, as_json: bool, quiet: bool, verbose: bool, **which: Any
) -> None:
    """One slot update, or a recreate."""
    from bpfchain.loader.operations.bypass import bypass

    voice = Voice(quiet, verbose)
    place = chosen(root_of(bpffs), chain, **which)
    done = bypass(place, index, fd=which["socket_fd"])
    how = "one slot updated" if index else "the head swapped"
    how = how if done.why is None else f"recreated: {done.why}"
    report(
        done, voice, as_json,
        f"{describe(place)}: link {index} is bypassed, generation {done.generation} ({how})",
    )  # fmt: skip

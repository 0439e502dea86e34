"""``bpfchain plan``: the bpftool commands that make a manifest's chain by hand."""

from __future__ import annotations

import json
from typing import Any

import click

from .chains import read_chain, target_of, target_options
from .command import Command, chatter, option, settings
from .output import Voice, print_result
from .words import EXIT_CODES_HELP

__all__ = ["command"]

_HELP = "Print the bpftool commands that make the chain of a manifest by hand."

_EPILOG = f"""\
Examples:
  bpfchain plan chain/manifest.json --dev eth0
  bpfchain plan chain/manifest.json --dev eth0 --direction ingress | sh -e

The same chain as `bpfchain load` makes, without its records: `bpfchain status` does not know it,
and nothing can be replaced in it but by hand. --undo prints how to take it down.

{EXIT_CODES_HELP}
"""


@click.command("plan", cls=Command, help=_HELP, epilog=_EPILOG, context_settings=settings())
@click.argument("manifest", metavar="MANIFEST")
@target_options
@option("--pins", metavar="DIR", group="How",
        help="Where the pins go.  [default: /sys/fs/bpf/ and the chain's name]")  # fmt: skip
@option("--undo", is_flag=True, group="How", help="Print how to take the chain down.")
@option("--json", "as_json", is_flag=True, group="Output", help="Print the commands as JSON.")
@chatter
def command(
    manifest: str, pins: str | None, undo: bool, as_json: bool, quiet: bool, verbose: bool,
    **where: Any,
) -> None:  # fmt: skip
    """Read, check, print."""
    from pathlib import Path

    from bpfchain.loader import plan
    from bpfchain.loader.places import BPFFS, escape
    from bpfchain.transform.chain_check import validate_complete

    voice = Voice(quiet, verbose)
    source = read_chain(manifest)
    for warning in validate_complete(source.manifest):
        voice.warn(f"{manifest}: {warning}")
    target = target_of(source.manifest, **where)
    folder = Path(pins) if pins is not None else BPFFS / escape(source.manifest.chain)
    lines = list(plan.commands(source.manifest, Path(manifest).parent, target, folder))
    if undo:
        head = folder / "link0" / source.manifest.links[0].program
        lines = list(plan.undo(target, folder, head))
    if as_json:
        print_result(
            json.dumps({"commands": [x for x in lines if not x.startswith("#")]}, indent=2)
        )
        return
    for line in lines:
        print_result(line)

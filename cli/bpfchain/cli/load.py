"""``bpfchain load``: the chain of a manifest, attached to a hook."""

from __future__ import annotations

from typing import Any

import click

from bpfchain.transform.errors import RefusedError

from .chains import (
    code_of,
    describe,
    read_chain,
    report,
    root_of,
    state_options,
    target_of,
    target_options,
)
from .command import Command, chatter, option, settings
from .output import Voice
from .words import EXIT_CODES_HELP

__all__ = ["command"]

_HELP = "Load the chain of a manifest, and attach it."

_EPILOG = f"""\
Examples:
  bpfchain load chain/manifest.json --dev eth0
  bpfchain load chain/manifest.json --dev eth0 --mode generic --dry-run
  bpfchain load chain/manifest.json --dev eth0 --direction egress --json

Every object's sha256 is compared with the manifest's first. Nothing is attached before all links
are loaded and their slots filled. What runs is kept by pins below /sys/fs/bpf/bpfchain, until
`bpfchain unload` or a reboot.

{EXIT_CODES_HELP}
"""


@click.command("load", cls=Command, help=_HELP, epilog=_EPILOG, context_settings=settings())
@click.argument("manifest", metavar="MANIFEST")
@target_options
@option("--entry", metavar="CODE", group="How",
        help="Put a permanent first program in front, which returns CODE if the chain is missing: "
        "for hooks that cannot exchange their program.")  # fmt: skip
@option("--force", is_flag=True, group="How", help="Displace what is in the way on the hook.")
@option("--dry-run", is_flag=True, group="How",
        help="Let the kernel verify everything, and attach nothing.")  # fmt: skip
@state_options
@chatter
def command(
    manifest: str,
    entry: str | None,
    force: bool,
    dry_run: bool,
    bpffs: str,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **where: Any,
) -> None:
    """Read, check, load, attach."""
    from bpfchain.loader.operations.load import load, rehearse
    from bpfchain.loader.places import place_of

    voice = Voice(quiet, verbose)
    source = read_chain(manifest)
    chain = source.manifest
    target = target_of(chain, **where)
    place = place_of(target, chain.chain, root_of(bpffs))
    code = code_of(chain.hook, entry)
    try:
        done = (rehearse if dry_run else load)(source, place, target, entry=code, force=force)
    except RefusedError as error:
        raise error.within(manifest) from None
    names = ", ".join(record.program for record in chain.links)
    count = f"{len(chain.links)} link{'' if len(chain.links) == 1 else 's'}"
    if dry_run:
        said = f"{describe(place)}: {count} would load ({names}); nothing was attached"
    else:
        first = f", entry program returns {chain.hook.name_of(code)}" if code is not None else ""
        said = f"{describe(place)}: {count} running ({names}), generation 1{first}"
    report(done, voice, as_json, said)

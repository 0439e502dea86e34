"""Entry point of ``bpfchain``: the group of subcommands, each imported when it runs."""

from __future__ import annotations

import click

from bpfchain.transform.version import VERSION

from .command import Group, settings
from .words import EXIT_CODES_HELP

__all__ = ["command", "main"]

_HELP = "Make compiled BPF programs the links of one ordered chain, without their source."

_EPILOG = f"""\
Examples:
  bpfchain transform filter.o --index 0 -o link0.o
  bpfchain build chain.toml -o chain
  bpfchain inspect link0.o
  bpfchain verify chain/manifest.json
  bpfchain load chain/manifest.json --dev eth0

{EXIT_CODES_HELP}
"""

command = Group(
    "bpfchain",
    help=_HELP,
    epilog=_EPILOG,
    context_settings=settings(),
    lazy={
        "transform": (
            "bpfchain.cli.transform:command",
            "Patch one object into a link (also: bpfchain-transform).",
        ),
        "build": (
            "bpfchain.cli.build:command",
            "Patch all links of a chain file, and write the manifest.",
        ),
        "inspect": (
            "bpfchain.cli.inspect:command",
            "Show what a patched object is, and what was added to it.",
        ),
        "verify": (
            "bpfchain.cli.verify:command",
            "Prove that a link, or a whole chain, does what the originals do.",
        ),
        "fuzz": (
            "bpfchain.cli.fuzz:command",
            "Look for inputs on which a link differs from its original.",
        ),
        "load": (
            "bpfchain.cli.load:command",
            "Load the chain of a manifest, and attach it.",
        ),
        "status": (
            "bpfchain.cli.status:command",
            "Show the running chains, and what is wrong with them.",
        ),
        "replace": (
            "bpfchain.cli.replace:command",
            "Replace one link of a running chain.",
        ),
        "bypass": (
            "bpfchain.cli.bypass:command",
            "Skip one link of a running chain.",
        ),
        "recreate": (
            "bpfchain.cli.recreate:command",
            "Exchange a running chain in one swap.",
        ),
        "rollback": (
            "bpfchain.cli.rollback:command",
            "Go back to the chain before the last recreate.",
        ),
        "unload": (
            "bpfchain.cli.unload:command",
            "Detach a chain, and free everything of it.",
        ),
        "plan": (
            "bpfchain.cli.plan:command",
            "Print the bpftool commands that make the chain by hand.",
        ),
    },
)
click.version_option(VERSION, "-V", "--version", message="%(prog)s %(version)s")(command)


def main() -> None:
    """Run ``bpfchain`` with the process's arguments."""
    command.main(prog_name="bpfchain")

"""``bpfchain status``: what runs on this host's hooks, in what order, and whether it is healthy."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from bpfchain.transform.errors import BpfchainError

from .chains import chosen, describe, found_places, root_of, state_options, which_options
from .command import Command, chatter, settings
from .output import Voice, plain, print_result
from .words import EXIT_CODES_HELP, link_codes

if TYPE_CHECKING:
    from pathlib import Path

    from bpfchain.loader.places import ChainPlace
    from bpfchain.loader.status import ChainStatus, Entry, LinkStatus

__all__ = ["command"]

_HELP = "Show the running chains: links in order, generation, runs, and what is wrong."

_EPILOG = f"""\
Examples:
  bpfchain status
  bpfchain status edge --dev eth0 -v
  bpfchain status --json

The kernel counts runs of a chain's first program only, and only while asked to (sysctl
kernel.bpf_stats_enabled=1): the time is the whole chain's. -v adds the pins. What this user may
not know (names of other programs need CAP_SYS_ADMIN) is called unknown. Changes nothing.

{EXIT_CODES_HELP}
"""


@click.command("status", cls=Command, help=_HELP, epilog=_EPILOG, context_settings=settings())
@click.argument("chain", metavar="[CHAIN]", required=False)
@which_options
@state_options
@chatter
def command(
    chain: str | None, bpffs: str, as_json: bool, quiet: bool, verbose: bool, **which: Any
) -> None:
    """Look, print."""
    from bpfchain.loader.status import chain_status

    voice = Voice(quiet, verbose)
    root = root_of(bpffs)
    places = _places(root, chain, which)
    found: list[ChainStatus] = []
    for place in places:
        try:
            found.append(chain_status(place, fd=which["socket_fd"]))
        except BpfchainError as error:
            raise error.within(describe(place)) from None
        except OSError as error:
            from bpfchain.loader.lock import host_error

            raise host_error(error, describe(place)) from None
    elsewhere = _elsewhere(root) if chain is None else 0
    if as_json:
        document = {"chains": [one.to_dict() for one in found], "in_other_namespaces": elsewhere}
        print_result(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False))
        return
    for number, one in enumerate(found):
        if number:
            print_result("")
        for line in page(one, verbose=verbose):
            print_result(plain(line))
    if not found:
        voice.say("no chain is loaded here")
    if elsewhere:
        voice.say(
            f"{elsewhere} chain{'s are' if elsewhere > 1 else ' is'} in other network namespaces"
        )


def _places(root: Path, chain: str | None, which: dict[str, Any]) -> list[ChainPlace]:
    if chain is not None:
        return [chosen(root, chain, **which)]
    import os

    cgroup = which["cgroup"]
    return [
        place for place in found_places(root)
        if (which["dev"] is None or place.at(which["dev"]))
        and (which["direction"] is None or place.hook.endswith(which["direction"]))
        and (cgroup is None or place.at(os.path.realpath(cgroup)))
    ]  # fmt: skip


def _elsewhere(root: Path) -> int:
    from bpfchain.loader.places import all_places

    return len(list(all_places(root))) - len(found_places(root))


def page(one: ChainStatus, *, verbose: bool = False) -> list[str]:
    """The lines about one chain."""
    lines = [f"{_where(one)}  chain {one.place.chain}, {_state(one)}"]
    if one.entry_id is not None:
        record = one.generation
        code = record.entry if record else None
        returns = "?" if record is None or code is None else record.manifest.hook.name_of(code)
        lines.append(
            f"  entry program id {one.entry_id}, returns {returns} if the chain is missing"
        )
    lines += _links(one.links, verbose)
    lines += [f"  wrong: {problem}" for problem in one.problems]
    for left in () if one.working else one.unfinished:
        lines.append(f"  unfinished: {left.what}; the next command will {left.will}")
    if one.working:
        lines.append(f"  being changed by {one.working}")
    lines.append(f"  {_slots(one)}also on this hook: {_foreign(one)}")
    if one.previous is not None:
        lines.append(f"  generation {one.previous} is kept for `bpfchain rollback`")
    if verbose:
        lines.append(f"  pins: {one.place.folder}")
    return lines


def _where(one: ChainStatus) -> str:
    target = one.target
    name = target.interface if target else None
    renamed = f" (now {name})" if name is not None and name != one.place.target else ""
    return one.place.where + renamed + (f" ({one.mode})" if one.mode else "")


def _state(one: ChainStatus) -> str:
    from datetime import datetime

    record = one.generation
    if record is None:
        return f"not attached{f': {one.gone}' if one.gone else ''}"
    since = datetime.fromtimestamp(record.created_ns / 1e9).strftime("%Y-%m-%d %H:%M")
    return f"generation {record.number}, since {since}, {_runs(one)}"


def _runs(one: ChainStatus) -> str:
    if one.runs is None:
        if one.counting is None:
            return "runs unknown"
        return "runs not counted (sysctl kernel.bpf_stats_enabled=1)"
    each = f", {one.run_ns // one.runs} ns each" if one.runs else ""
    stopped = "" if one.counting else ", counting is off now"
    return f"{one.runs:,}".replace(",", " ") + f" run{'' if one.runs == 1 else 's'}{each}{stopped}"


def _links(links: tuple[LinkStatus, ...], verbose: bool) -> list[str]:
    rows: list[tuple[str, ...]] = []
    after: list[list[str]] = []
    for link in links:
        record = link.record
        for entry in link.entries:
            first = entry.state is None
            how = "unchanged" if record.strategy == "none" else record.strategy
            how = "bypassed" if link.bypassed else how
            rows.append((
                str(record.index) if first else "", _name(link, entry), f"id {entry.id}",
                f"tag {entry.tag}", how if first else "",
                link_codes(record.link).replace(", ", " ") if first else _saved(link, entry),
            ))  # fmt: skip
            after.append([f"       {entry.pin}"] if verbose else [])
        if verbose and after:
            after[-1] += [f"       map {name}: {path}" for name, path in link.maps.items()]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(6)]
    lines = []
    for row, more in zip(rows, after, strict=True):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append(f"  {'  '.join(cells)}".rstrip())
        lines += more
    return lines


def _name(link: LinkStatus, entry: Entry) -> str:
    """The program's whole name: the kernel cuts it to 15 characters."""
    names = {known.state: known.name for known in link.record.entries}
    return names.get(entry.state, entry.name)


def _saved(link: LinkStatus, entry: Entry) -> str:
    assert entry.state is not None, "the other entries have a saved code"
    return f"when {link.record.link.hook.name_of(entry.state)} is saved"


def _slots(one: ChainStatus) -> str:
    if one.generation is None:
        return ""
    return "" if one.problems else "slots as the manifest says; "


def _foreign(one: ChainStatus) -> str:
    if one.foreign is None:
        return f"unknown ({one.foreign_why})"
    return "; ".join(found.what for found in one.foreign) or "nothing"

"""``bpfchain fuzz``: look for an input on which a link does something else than its original."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bpfchain.transform.errors import InconclusiveError, UsageError

from .command import Choice, Command, chatter, option, settings
from .files import read_input
from .output import Voice, print_result
from .proof import finding_error, read_corpora
from .words import EXIT_CODES_HELP

if TYPE_CHECKING:
    from bpfchain.verify.fuzz import Campaign
    from bpfchain.verify.prove import Subject

__all__ = ["command"]

_HELP = "Mutate packets and map contents, guided by coverage, and compare every run."

_EPILOG = f"""\
Examples:
  bpfchain fuzz chain/manifest.json --time 60s
  bpfchain fuzz filter.o link0.o --time 10m --save filter.pcapng
  bpfchain verify filter.o link0.o --corpus filter.pcapng

Begins with the recordings; a packet that takes a new edge of a body joins them. What a program
compares with is written into packets, map contents are mutated too. Ctrl-C ends it early.
The same --seed and --packets give the same runs.

{EXIT_CODES_HELP}
"""

_UNITS = {"s": 1, "m": 60, "h": 3600}


@click.command("fuzz", cls=Command, help=_HELP, epilog=_EPILOG, context_settings=settings())
@click.argument("files", metavar="IN OUT | MANIFEST", nargs=-1, required=True)
@option("--time", "duration", metavar="T", default="60s", group="The runs",
        help="How long: 90, 60s, 10m, 1h.  [default: 60s]")  # fmt: skip
@option("--packets", type=click.IntRange(1), metavar="N", group="The runs",
        help="End after N packets for each link.  [default: no end but --time]")  # fmt: skip
@option("--seed", type=click.IntRange(0, (1 << 64) - 1), default=0, metavar="N", group="The runs",
        help="Of the mutations.  [default: 0]")  # fmt: skip
@option("--program", metavar="NAME", group="The runs",
        help="Which link of OUT.  [default: the only one]")  # fmt: skip
@option("--original", "originals", metavar="FILE", multiple=True, group="The runs",
        help="An original of the manifest's links, found by its sha256; may be repeated.")  # fmt: skip
@option("--corpus", "corpora", multiple=True, metavar="FILE", group="The runs",
        help="Packets to begin with (pcap, pcapng); may be repeated.  [default: built in]")  # fmt: skip
@option("--scenario", metavar="FILE", group="The runs",
        help="Map contents, helpers' answers and contexts to begin with (JSON).")  # fmt: skip
@option("--btf", metavar="FILE", group="The runs",
        help="Resolve CO-RE against these types.  [default: the object's own]")  # fmt: skip
@option("--engine", type=Choice("ubpf", "kernel"), default="ubpf", metavar="WORD",
        group="The runs", help="ubpf, or kernel (root; without coverage).  [default: ubpf]")  # fmt: skip
@option("--allow-residue", is_flag=True, group="The runs",
        help="A verdict may depend on what lay on the stack.")  # fmt: skip
@option("--counterexample", metavar="FILE", default="counterexample.pcapng", group="Output",
        help="Where an input that shows a difference is written, its scenario beside it.  "
        "[default: counterexample.pcapng]")  # fmt: skip
@option("--save", metavar="FILE", group="Output",
        help="Write the packets that took new edges to FILE (pcapng).")  # fmt: skip
@option("--json", "as_json", is_flag=True, group="Output", help="Print the result on stdout.")
@chatter
def command(
    files: tuple[str, ...],
    duration: str,
    packets: int | None,
    save: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **wanted: Any,
) -> None:
    """Campaigns take turns until the time is over; the first difference ends all."""
    voice = Voice(quiet, verbose)
    seconds = _seconds(duration)
    if save is not None and not Path(save).resolve().parent.is_dir():
        raise UsageError(f"--save {save}: there is no folder {Path(save).parent}")
    campaigns, name = _campaigns(files, **wanted)
    begun = time.monotonic()
    interrupted = _run(campaigns, begun + seconds, packets, quiet)
    saved = _save(campaigns, save) if save is not None else 0
    if as_json:
        print_result(_json(name, campaigns, wanted["seed"]))
    for campaign in campaigns:
        voice.say(_line(campaign))
    if saved:
        voice.say(f"{save}: {saved} packets that took new edges")
    if interrupted:
        voice.say(f"interrupted after {time.monotonic() - begun:.0f} s")
    _end(name, campaigns)


def _seconds(text: str) -> float:
    number, unit = (text[:-1], text[-1]) if text and text[-1] in _UNITS else (text, "s")
    try:
        seconds = float(number) * _UNITS[unit]
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= 30 * 24 * 3600:
        raise UsageError(f"--time: {text!r} is no duration", "such as 60s, 10m or 1h")
    return seconds


def _campaigns(
    files: tuple[str, ...],
    *,
    program: str | None,
    originals: tuple[str, ...],
    corpora: tuple[str, ...],
    scenario: str | None,
    btf: str | None,
    engine: str,
    seed: int,
    counterexample: str,
    allow_residue: bool,
) -> tuple[list[Campaign], str]:
    from bpfchain.verify.fuzz import campaign_of
    from bpfchain.verify.prove import Options, intent_of

    subjects = _subjects(files, program, originals)
    options = Options(
        recordings=read_corpora(corpora, scenario),
        engines=(engine,),
        btf=None if btf is None else read_input(btf),
        allow_residue=allow_residue,
        seed=seed,
        save_to=Path(counterexample) if counterexample else None,
    )
    campaigns = []
    for subject in subjects:
        intent = intent_of(subject)
        campaigns.append(campaign_of(subject, intent, options))
    return campaigns, files[-1]


def _subjects(
    files: tuple[str, ...], program: str | None, originals: tuple[str, ...]
) -> tuple[Subject, ...]:
    from bpfchain.transform.manifest_file import read_manifest
    from bpfchain.verify.prove import Subject

    from .verify_run import matched_subjects

    if len(files) > 2:
        raise UsageError(f"{len(files)} files are too many: give IN and OUT, or one manifest")
    if len(files) == 2:
        source, target = files
        return (
            Subject(
                original=read_input(source), patched=read_input(target),
                input_name=source, output_name=target, program=program,
            ),
        )  # fmt: skip
    if not Path(files[0]).exists():
        read_input(files[0])  # says so, with the nearest name
    path = Path(files[0])
    return matched_subjects(path, read_manifest(path), originals)


def _run(campaigns: list[Campaign], until: float, packets: int | None, quiet: bool) -> bool:
    """Rounds in turn until the time or the packets are used up; whether Ctrl-C ended it."""
    from bpfchain.verify.fuzz import BATCH

    from .progress import progress_bar

    if any(campaign.result is not None for campaign in campaigns):
        return False  # the recordings alone show it
    left = {id(campaign): packets for campaign in campaigns}
    going, shared = list(campaigns), dict[int, int]()
    begun = time.monotonic()
    try:
        with progress_bar(quiet=quiet) as bar:
            while going:
                for campaign in tuple(going):
                    size = left[id(campaign)]
                    if time.monotonic() >= until or size == 0:
                        going.remove(campaign)
                        continue
                    batch = BATCH if size is None else min(size, BATCH)
                    extra = _of_others(campaigns, campaign, shared)[:batch]
                    if not campaign.round(extra, batch):
                        return False
                    if size is not None:
                        left[id(campaign)] = size - batch
                    bar(round(time.monotonic() - begun), round(until - begun), _seen(campaigns))
    except KeyboardInterrupt:
        return True
    return False


def _seen(campaigns: list[Campaign]) -> str:
    edges, of = sum(len(c.known) for c in campaigns), sum(c.of for c in campaigns)
    return f"seconds, {edges} of {of} edges"


def _of_others(campaigns: list[Campaign], mine: Campaign, shared: dict[int, int]) -> list[bytes]:
    """Packets that the other links' campaigns found since this one last looked."""
    key = id(mine)
    packets = [
        found.packet for other in campaigns if other is not mine and not other.plain
        for found in other.found
    ]  # fmt: skip
    fresh = packets[shared.get(key, 0) :]
    shared[key] = len(packets)
    return [] if mine.plain else fresh


def _save(campaigns: list[Campaign], save: str) -> int:
    from bpfchain.verify.captures import ETHERNET, to_pcapng

    from .files import pending_output

    packets = list(dict.fromkeys(f.packet for c in campaigns if not c.plain for f in c.found))
    if packets:
        times = [1_000_000 * n for n in range(len(packets))]
        data = to_pcapng(packets, times, ETHERNET, comment="found by bpfchain fuzz")
        with pending_output(save, data) as pending:
            pending.commit()
    return len(packets)


def _line(campaign: Campaign) -> str:
    name, known = campaign.subject.output_name, len(campaign.known)
    what = "contexts" if campaign.plain else "packets"
    more = known - campaign.began_with
    text = f"{name}: {campaign.packets} {what}, {known} of {campaign.of} edges ({more:+d})"
    if campaign.unmodelled:
        text += f", not modelled: {', '.join(campaign.unmodelled[:3])}"
    return text


def _json(name: str, campaigns: list[Campaign], seed: int) -> str:
    import json

    return json.dumps(
        {
            "version": 1,
            "subject": name,
            "seed": seed,
            "links": [
                {
                    "index": c.intent.index,
                    "object": c.subject.output_name,
                    "outcome": c.outcome.word,
                    "packets": c.packets,
                    "edges": {"seen": len(c.known), "of": c.of, "new": len(c.known) - c.began_with},
                    "found": len(c.found),
                    "unmodelled": list(c.unmodelled),
                }
                for c in campaigns
            ],
        },
        indent=2,
        sort_keys=True,
    )


def _end(name: str, campaigns: list[Campaign]) -> None:
    for campaign in campaigns:
        if campaign.result is not None:
            worst = max(campaign.result.findings, key=lambda f: f.outcome)
            raise finding_error(campaign.subject.output_name, worst)
    met = [what for campaign in campaigns for what in campaign.unmodelled]
    if met and not any(campaign.packets for campaign in campaigns):
        raise InconclusiveError(f"{name}: not run: {met[0]}")

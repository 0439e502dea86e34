"""What runs, in what order, and whether it is healthy: ``bpfchain status`` as values.

Everything is asked from the kernel, but for what only the generation's record knows. What this
process may not know is None, which means unknown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpfchain.loader.hooks import driver
from bpfchain.loader.hooks.protocol import Foreign, Target
from bpfchain.loader.lock import holder
from bpfchain.loader.netlink import xdp_programs
from bpfchain.loader.operations.repair import Unfinished, slot_updated, unfinished
from bpfchain.loader.places import ChainPlace, siblings, unescape
from bpfchain.loader.programs import Program, ProgramInfo
from bpfchain.loader.situation import ENOENT, Situation
from bpfchain.loader.store import NEW, Generation, Record, target_dict
from bpfchain.loader.syscall import BpfError
from bpfchain.transform.errors import BpfchainError
from bpfchain.transform.manifest_codes import code_json, codes_json
from bpfchain.transform.manifest_link import LinkRecord

_LOOKS = 20
STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry program of a link."""

    state: int | None
    slot: int
    name: str
    """As the kernel has it: at most 15 characters."""
    id: int
    tag: str
    pin: Path
    in_slot: int | None
    """Id of the program that the slot holds; for the head: that the hook runs."""

    @property
    def right(self) -> bool:
        """Whether the program is where the record says."""
        return self.in_slot == self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkStatus:
    """One link of the running generation."""

    record: LinkRecord
    entries: tuple[Entry, ...]
    bypassed: bool
    maps: dict[str, Path]
    """Pins of its maps, by their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainStatus:
    """One chain at one target."""

    place: ChainPlace
    target: Target | None
    generation: Record | None
    """The running generation; None: nothing of the chain is attached."""
    mode: str | None
    """XDP: native, generic or offloaded, as the kernel says; None: no XDP, or unknown."""
    previous: int | None
    """The generation that ``rollback`` goes to."""
    gone: str | None
    """Why the target cannot be looked at: its interface is gone, it is in another namespace."""
    runs: int | None
    """How often the kernel counted the chain's first program; None: it does not count."""
    run_ns: int
    """Time of these runs, all links together."""
    counting: bool | None
    """Whether the kernel counts runs now; None: unknown."""
    entry_id: int | None
    links: tuple[LinkStatus, ...]
    problems: tuple[str, ...]
    """What is wrong with it now: a slot that does not hold what it should."""
    unfinished: tuple[Unfinished, ...]
    working: str | None
    """The process that holds the target's lock."""
    foreign: tuple[Foreign, ...] | None
    """What else is on the hook; None: unknown."""
    foreign_why: str | None = None
    """Why that is unknown."""

    @property
    def healthy(self) -> bool:
        """Whether the chain runs as its manifest says, and nothing was left unfinished."""
        return self.generation is not None and not self.problems and not self.unfinished

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``: null is unknown or none."""
        record = self.generation
        return {
            "chain": self.place.chain,
            "namespace": self.place.namespace,
            "target": target_dict(self.target) if self.target else None,
            "where": self.place.target,
            "kind": self.place.hook,
            "mode": self.mode,
            "pins": str(self.place.folder),
            "generation": record.number if record else None,
            "previous": self.previous,
            "since_ns": record.created_ns if record else None,
            "operation": record.operation if record else None,
            "entry": None
            if self.entry_id is None
            else {
                "id": self.entry_id,
                "code": code_json(record.entry, record.manifest.hook)
                if record and record.entry is not None
                else None,
            },
            "runs": self.runs,
            "run_ns": self.run_ns if self.runs is not None else None,
            "counting": self.counting,
            "links": [_link_dict(link) for link in self.links],
            "healthy": self.healthy,
            "problems": list(self.problems),
            "unfinished": [{"what": one.what, "next": one.will} for one in self.unfinished],
            "working": self.working,
            "gone": self.gone,
            "foreign": None
            if self.foreign is None
            else [
                {
                    "kind": one.kind, "id": one.program_id, "name": one.name, "what": one.what,
                    "exclusive": one.exclusive,
                }
                for one in self.foreign
            ],
        }  # fmt: skip


def _link_dict(link: LinkStatus) -> dict[str, Any]:
    record, hook = link.record, link.record.link.hook
    return {
        "index": record.index,
        "program": record.program,
        "strategy": record.strategy,
        "success": codes_json(record.link.success, hook),
        "redirect": codes_json(record.link.redirect, hook),
        "last": record.link.last,
        "bypassed": link.bypassed,
        "sha256": record.output_sha256,
        "entries": [
            {
                "state": None if entry.state is None else code_json(entry.state, hook),
                "slot": entry.slot,
                "name": entry.name,
                "id": entry.id,
                "tag": entry.tag,
                "pin": str(entry.pin),
                "in_slot": entry.in_slot,
            }
            for entry in link.entries
        ],
        "maps": {name: str(path) for name, path in link.maps.items()},
    }


def chain_status(place: ChainPlace, *, fd: int | None = None) -> ChainStatus:
    """Look at one chain. Takes no lock and changes nothing. HostError where it may not look.

    A look that a writer gets in the way of (a pin is renamed, a folder goes, the head is one that
    came after the folders were listed) is begun anew.
    """
    for _ in range(_LOOKS - 1):
        try:
            found = _look(place, fd)
        except OSError as error:
            if error.errno != ENOENT or holder(place.target_folder) is None:
                raise
        else:
            if found.working is None or (found.generation is not None and not found.problems):
                return found
    return _look(place, fd)


def _look(place: ChainPlace, fd: int | None) -> ChainStatus:
    with Situation(place, fd=fd) as situation:
        current = situation.current
        problems: list[str] = []
        links: tuple[LinkStatus, ...] = ()
        if situation.strange:
            problems.append(f"the hook runs program {situation.running}, which is of no generation")
        if current is not None:
            links = tuple(_links(current, situation, problems))
        foreign, why = _foreign(situation)
        runs, spent = _runs(situation)
        previous = situation.previous
        return ChainStatus(
            mode=_mode(situation), place=place, target=situation.target,
            generation=current.record if current else None,
            previous=previous.number if previous else None, gone=situation.gone,
            runs=runs, run_ns=spent, counting=_counting(), entry_id=situation.entry_id,
            links=links, problems=tuple(problems), unfinished=tuple(unfinished(situation)),
            working=holder(place.target_folder), foreign=foreign, foreign_why=why,
        )  # fmt: skip


def _links(current: Generation, situation: Situation, problems: list[str]) -> Iterator[LinkStatus]:
    record = current.whole
    running = situation.running
    pending = current.new_record
    if pending is not None and slot_updated(current, pending, situation):
        record = pending  # cut short behind its one edit: this is what runs
    with current.slots() as slots:
        for link in record.manifest.links:
            entries = []
            for entry in link.entries:
                pin = _pin(current, f"p{entry.slot}", record is pending)
                found = slots.slot(entry.slot) if entry.slot else running
                info = _info(pin)
                if info is None:
                    problems.append(f"link {link.index}: {pin} is gone")
                    continue
                one = Entry(
                    state=entry.state, slot=entry.slot, name=info.name, id=info.id, tag=info.tag,
                    pin=pin, in_slot=found,
                )  # fmt: skip
                entries.append(one)
                problems += _wrong(one, link, record)
            first = min(r.index for r in record.manifest.links if r.object == link.object)
            yield LinkStatus(
                record=link, entries=tuple(entries), bypassed=link.index in record.bypassed,
                maps=_maps(current, record, first),
            )  # fmt: skip


def _wrong(entry: Entry, link: LinkRecord, record: Record) -> Iterator[str]:
    where = f"link {link.index}: slot {entry.slot}"
    expected = record.pins.get(f"p{entry.slot}")
    if entry.in_slot is None and entry.slot:
        yield f"{where} is empty: the chain ends there"
    elif entry.in_slot is not None and entry.in_slot != expected:
        yield f"{where} holds program {entry.in_slot}, not {expected}"
    if entry.id != expected:
        yield f"link {link.index}: {entry.pin} is program {entry.id}, not {expected}"


def _pin(current: Generation, name: str, pending: bool) -> Path:
    new = current.folder / (NEW + name)
    return new if pending and new.exists() else current.folder / name


def _maps(current: Generation, record: Record, index: int) -> dict[str, Path]:
    found = {}
    for name in record.pins:
        for prefix in (f"m{index}_", f"o{index}_"):
            if name.startswith(prefix):
                found[unescape(name.removeprefix(prefix))] = current.folder / name
    return found


def _info(pin: Path) -> ProgramInfo | None:
    try:
        with Program.get_pinned(pin) as program:
            return program.info()
    except BpfError as error:
        if error.errno == ENOENT:
            return None
        raise


def _foreign(situation: Situation) -> tuple[tuple[Foreign, ...] | None, str | None]:
    target = situation.target
    if target is None or situation.gone is not None:
        return None, situation.gone or "no generation says where the chain is attached"
    if target.kind == "socket" and target.fd is None:
        return None, "only the owner of the socket can tell"
    own = set(situation.own_ids) | ({situation.running} if situation.running else set())
    try:
        found = driver(target).foreign(target, own)
    except (BpfchainError, BpfError, AssertionError) as error:
        return None, error.message if isinstance(error, BpfchainError) else str(error)
    return tuple(_ours(situation.place, one) for one in found), None


def _ours(place: ChainPlace, one: Foreign) -> Foreign:
    """What is of another chain at the same target is called so."""
    for other in siblings(place):
        if other.folder == place.folder or one.program_id is None:
            continue
        with Situation(other) as situation:
            if one.program_id in situation.own_ids:
                return Foreign(
                    "chain", one.program_id, other.chain,
                    f"chain {other.chain} of bpfchain: {one.what}", one.exclusive,
                )  # fmt: skip
    return one


def _mode(situation: Situation) -> str | None:
    target, attachment = situation.target, situation.attachment
    if target is None or target.kind != "xdp" or attachment is None or not target.ifindex:
        return None
    found = xdp_programs(target.ifindex)
    modes = {found.native: "native", found.generic: "generic", found.offloaded: "offloaded"}
    number = attachment.program_id
    return modes.get(number) if number else None


def _runs(situation: Situation) -> tuple[int | None, int]:
    """Runs and their time, as counted for the program that the hook calls."""
    if situation.current is None:
        return None, 0
    pin = situation.place.entry if situation.entry_id else situation.current.folder / "p0"
    info = _info(pin)
    if info is None or (info.run_count == 0 and not _counting()):
        return None, 0
    return info.run_count, info.run_time_ns


def _counting() -> bool | None:
    try:
        return STATISTICS.read_text().strip() != "0"
    except OSError:
        return None

"""A recording: a capture's packets and its scenario, and the inputs of runs that they make.

The built-in recording is ``data/builtin.pcap``, which corpus/packets/generate.py writes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, TypeVar

from bpfchain.transform.errors import RefusedError, UsageError
from bpfchain.transform.policy import Hook
from bpfchain.verify.captures import (
    ETHERNET,
    link_type_name,
    looks_like_capture,
    read_capture,
    to_pcapng,
)
from bpfchain.verify.contexts import SkbContext, XdpContext, kind_of, plain_contexts
from bpfchain.verify.link_types import check_link_type, frame
from bpfchain.verify.packet_rules import admissible
from bpfchain.verify.scenario import EMPTY, Scenario, scenario_beside

__all__ = ["BUILTIN", "Recording", "RunInputs", "builtin_recording", "read_recording"]

BUILTIN = "builtin"
"""The built-in recording's name in reports."""
_BUILTIN_FILE = Path(__file__).parent / "data" / "builtin.pcap"
_TIME_MAX = (1 << 63) - 1
_C = TypeVar("_C", XdpContext, SkbContext)
_NO_HEADER = "link-layer header cut, or of no protocol"


class RunInputs(NamedTuple):
    """What a batch runs on: one frame, context and time (ns since boot) a run; at plain hooks the
    frames are empty. ``origin``: the packet's (plain: the context's) number in the recording."""

    packets: tuple[bytes, ...]
    contexts: tuple[bytes, ...]
    times: tuple[int, ...]
    origin: tuple[int, ...]
    skipped: tuple[tuple[str, int], ...] = ()
    """Reasons why packets are not run -> how many; the most frequent first."""


@dataclass(frozen=True, slots=True)
class Recording:
    """Packets as they were captured, and what else a run depends on."""

    name: str
    """The capture's path as it was given."""
    sha256: str
    """Of the capture file; where a scenario was read, of both files' bytes, the capture first."""
    packets: tuple[bytes, ...]
    times: tuple[int, ...]
    """Nanoseconds since 1970."""
    link_type: int = ETHERNET
    scenario: Scenario = EMPTY
    scenario_name: str = ""
    """Path of the scenario file, "" where there is none."""
    notes: tuple[str, ...] = ()
    """What a reader of a report should know of the capture: cut packets, unknown blocks."""

    def inputs(self, hook: Hook, context_size: int = 0) -> RunInputs:
        """What a program of ``hook`` is run on.

        ``context_size`` (plain hooks): the end of the last context field that it reads. Raises
        UsageError for a link type that does not fit, or contexts of a scenario that are too short.
        """
        if kind_of(hook) == "plain":
            return self._plain(hook, context_size)
        check_link_type(self.link_type, hook, self.name)
        contexts = self._packed(hook)
        base = self._times()
        kept: list[int] = []
        frames: list[bytes] = []
        skipped: Counter[str] = Counter()
        for index, packet in enumerate(self.packets):
            framed = frame(packet, self.link_type)
            reason = _NO_HEADER if framed is None else admissible(framed, hook)
            if framed is None or reason is not None:
                skipped[str(reason)] += 1
                continue
            kept.append(index)
            frames.append(framed)
        return RunInputs(
            packets=tuple(frames),
            contexts=tuple(contexts[index % len(contexts)] for index in kept)
            if len(contexts) > 1
            else contexts * len(kept),
            times=tuple(base[index] for index in kept),
            origin=tuple(kept),
            skipped=tuple(skipped.most_common()),
        )

    def select(self, indexes: Iterable[int], hook: Hook, context_size: int = 0) -> Recording:
        """Some of the runs of ``inputs`` (by ``origin``), in this order, each with the context and
        time that it had. For counterexamples.

        At plain hooks the packets stay, and the chosen contexts stand in the scenario. The sha256 is
        that of ``capture_bytes`` and the scenario, as reading them again gives it.
        """
        chosen = list(indexes)
        if kind_of(hook) == "plain":
            runs = self._plain(hook, context_size)
            raw = tuple(runs.contexts[index] for index in chosen)
            times = tuple(runs.times[index] for index in chosen)
            return self._with(replace(self.scenario, raw=raw, times=times))
        base = self._times()
        new = replace(
            self.scenario,
            xdp=_in_turn(self.scenario.xdp, chosen),
            skb=_in_turn(self.scenario.skb, chosen),
            times=tuple(base[index] for index in chosen),
        )
        part = replace(
            self,
            packets=tuple(self.packets[index] for index in chosen),
            times=tuple(self.times[index] for index in chosen),
        )
        return part._with(new)

    def capture_bytes(self, comment: str = "") -> bytes:
        """The packets as a pcapng file; the scenario is ``scenario.to_json()``."""
        return to_pcapng(self.packets, self.times, self.link_type, comment=comment)

    def _with(self, scenario: Scenario) -> Recording:
        digest = hashlib.sha256(self.capture_bytes() + scenario.to_json()).hexdigest()
        return replace(self, scenario=scenario, sha256=digest)

    def _plain(self, hook: Hook, size: int) -> RunInputs:
        contexts = self.scenario.raw or plain_contexts(hook, size)
        if len(contexts[0]) < size:
            raise UsageError(
                f"{self.scenario_name or self.name}: raw contexts have {len(contexts[0])} bytes,"
                f" the program reads up to byte {size}",
                "record longer ones in contexts.raw",
            )
        count = len(contexts)
        step, base = 1_000_000, self.scenario.answers.time_base
        times = self.scenario.times or tuple(base + step * n for n in range(count))
        if len(times) != count:
            raise UsageError(
                f"{self.scenario_name or self.name}: {len(times)} times for {count} raw contexts"
            )
        return RunInputs(
            packets=(b"",) * count, contexts=contexts, times=times, origin=tuple(range(count))
        )

    def _packed(self, hook: Hook) -> tuple[bytes, ...]:
        if kind_of(hook) == "xdp":
            return tuple(c.pack() for c in self.scenario.xdp or (XdpContext(),))
        return tuple(c.pack() for c in self.scenario.skb or (SkbContext(),))

    def _times(self) -> tuple[int, ...]:
        """The virtual clock at each packet: it begins at ``time_base`` and, as the kernel's, never
        goes back, whatever the capture's does."""
        if self.scenario.times:
            if len(self.scenario.times) != len(self.packets):
                raise UsageError(
                    f"{self.scenario_name or self.name}: {len(self.scenario.times)} times for"
                    f" {len(self.packets)} packets"
                )
            return self.scenario.times
        first, base = self.times[0], self.scenario.answers.time_base
        return tuple(min(base + time - first, _TIME_MAX) for time in accumulate(self.times, max))


def _in_turn(contexts: tuple[_C, ...], chosen: list[int]) -> tuple[_C, ...]:
    """Each chosen packet's own context; one that holds for all stays one."""
    if len(contexts) < 2:
        return contexts
    return tuple(contexts[index % len(contexts)] for index in chosen)


def read_recording(path: str | Path, scenario: str | Path | None = None) -> Recording:
    """The capture at ``path`` with the scenario file given, or else with the one beside it, if any.

    Raises UsageError (a file that cannot be read), RefusedError (broken, no packets).
    """
    data = _read(Path(path), looks_like_capture)
    capture = read_capture(data, str(path))
    beside = scenario_beside(Path(path))
    chosen = Path(scenario) if scenario is not None else beside if beside.exists() else None
    digest = hashlib.sha256(data)
    settings = EMPTY
    if chosen is not None:
        text = _read(chosen, lambda _: False)
        if len(text) == _FIRST:
            raise RefusedError(f"{chosen}: more than {_FIRST >> 20} MB: not a scenario")
        digest.update(text)
        settings = Scenario.from_json(text, str(chosen))
    notes = list(capture.notes)
    if capture.snapped:
        many = capture.snapped > 1
        notes.append(
            f"{capture.snapped} packets are cut: recorded shorter than they were"
            if many
            else "1 packet is cut: recorded shorter than it was"
        )
    if capture.link_type != ETHERNET:
        notes.append(f"recorded as {link_type_name(capture.link_type)}")
    return Recording(
        str(path), digest.hexdigest(), capture.packets, capture.times, capture.link_type, settings,
        str(chosen) if chosen is not None else "", tuple(notes),
    )  # fmt: skip


def builtin_recording(scenario: str | Path | None = None) -> Recording:
    """The recording that is part of the package, with a scenario file if one is given."""
    try:
        return replace(read_recording(_BUILTIN_FILE, scenario), name=BUILTIN)
    except RefusedError as error:
        if scenario is not None:
            raise
        raise RefusedError(f"this installation is damaged: {error.message}") from None


_FIRST = 64 << 20
"""Bytes that are read of a file which may be anything, /dev/zero too; no scenario is longer."""


def _read(path: Path, whole: Callable[[bytes], bool]) -> bytes:
    """The file; what ``whole`` does not take is refused by its beginning."""
    try:
        with path.open("rb") as file:
            data = file.read(_FIRST)
            return data + file.read() if whole(data[:4]) else data
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UsageError(f"{path}: cannot be read: {reason}") from None
    except ValueError:  # a NUL in the name
        raise UsageError("a file name holds a NUL byte") from None

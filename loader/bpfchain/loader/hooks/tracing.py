"""Tracing hooks: tracepoints, kprobes, uprobes and perf events by perf_event_open, raw tracepoints.

None of them exchanges its program: a chain on them needs an entry program.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path

from bpfchain.loader import perf, query
from bpfchain.loader.hooks.explain import attach_error
from bpfchain.loader.hooks.linked import LinkAttachment, pinned_link
from bpfchain.loader.hooks.protocol import Attachment, Foreign, SwapNotPossibleError, Target
from bpfchain.loader.links import link_create_perf, raw_tracepoint_open
from bpfchain.loader.perf import PerfEvent
from bpfchain.loader.programs import Program
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import AttachType, LinkType
from bpfchain.transform.errors import HostError


class ManyLinks:
    """One program by several links: a perf event on each CPU."""

    pinnable = True
    lasts = True

    def __init__(self, links: list[LinkAttachment], target: Target) -> None:
        self.links = links
        self.target = target

    @property
    def program_id(self) -> int:
        """Of the first link; they all have one program."""
        return self.links[0].program_id

    def swap(self, new: Program, old: Program) -> None:
        """SwapNotPossibleError."""
        self.links[0].swap(new, old)

    def detach(self) -> None:
        """End all of them."""
        for one in self.links:
            one.detach()

    def pin(self, path: str | os.PathLike[str]) -> None:
        """At ``path``, ``path``_1, ``path``_2 …"""
        for number, one in enumerate(self.links):
            one.pin(numbered(Path(path), number))

    def unpin(self, path: str | os.PathLike[str]) -> None:
        """All of the pins."""
        number = 0
        while (pin := numbered(Path(path), number)).exists():
            pin.unlink()
            number += 1

    def close(self) -> None:
        """All of the descriptors."""
        for one in self.links:
            one.close()


def numbered(path: Path, number: int) -> Path:
    """The pin of the link with that number."""
    return path.with_name(f"{path.name}_{number}") if number else path


class EventAttachment:
    """A program on a perf event without a link (before 5.15): it ends with this process."""

    pinnable = False
    lasts = False

    def __init__(self, events: list[PerfEvent], target: Target, program: int) -> None:
        self.target = target
        self._events = events
        self._program = program

    @property
    def program_id(self) -> int:
        """The one that was attached; 0 once detached."""
        return 0 if self._events[0].closed else self._program

    def swap(self, new: Program, old: Program) -> None:
        """SwapNotPossibleError."""
        raise SwapNotPossibleError(
            f"{self.target} cannot exchange its program", "load the chain with --entry"
        )

    def detach(self) -> None:
        """Close the events."""
        self.close()

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Nothing: perf events cannot be pinned."""

    def unpin(self, path: str | os.PathLike[str]) -> None:
        """Nothing: there is no pin."""

    def close(self) -> None:
        """The attachment ends."""
        for one in self._events:
            one.close()


class PerfDriver:
    """Attaches to tracepoints, kprobes, uprobes and perf events, beside programs of others."""

    swaps = False
    holds_array = True
    shared = True

    def attach(self, program: Program, target: Target, *, force: bool = False) -> Attachment:
        """By links; before 5.15, which has none for perf events, by ioctl."""
        with ExitStack() as on_error:
            events = [on_error.enter_context(one) for one in _open(target)]
            links: list[LinkAttachment] = []
            try:
                for event in events:
                    link = link_create_perf(program, event.fileno(), AttachType.PERF_EVENT)
                    links.append(LinkAttachment(on_error.enter_context(link), target, swaps=False))
                    event.enable()
            except BpfError as error:
                if error.errno == errno.EINVAL and not links:
                    found = self._by_ioctl(program, target, events)
                    if found is not None:
                        on_error.pop_all()
                        return found
                if error.errno == errno.EEXIST:
                    raise HostError(
                        f"cannot attach to {target}: this very program is there already"
                    ) from error
                raise attach_error(error, target) from error
            on_error.pop_all()
        for event in events:
            event.close()  # the links keep them
        return links[0] if len(links) == 1 else ManyLinks(links, target)

    def _by_ioctl(
        self, program: Program, target: Target, events: list[PerfEvent]
    ) -> EventAttachment | None:
        try:
            for event in events:
                event.set_program(program)
                event.enable()
        except OSError:
            return None  # what the link said is the better reason
        return EventAttachment(events, target, program.info().id)

    def find(
        self, target: Target, *, pin: Path | None = None, own: Collection[int] = ()
    ) -> Attachment | None:
        """From the pins only: the kernel does not tell where a perf link is."""
        links: list[LinkAttachment] = []
        while pin is not None:
            path = numbered(pin, len(links))
            link = pinned_link(path, LinkType.PERF_EVENT, None)
            if link is None:
                break
            links.append(LinkAttachment(link, target, swaps=False, pin=path))
        if len(links) > 1:
            return ManyLinks(links, target)
        return links[0] if links else None

    def foreign(self, target: Target, own: Collection[int]) -> tuple[Foreign, ...]:
        """Other programs on a tracepoint; for the other kinds the kernel does not tell."""
        if target.kind != "tracepoint":
            return ()
        with perf.tracepoint(target.name) as event:
            try:
                there = event.programs()
            except OSError as error:
                raise attach_error(error, target) from error
        return tuple(
            Foreign(
                "tracepoint program", one, query.program_name(one),
                f"{query.called(one)} on the same tracepoint, which runs them all",
            )
            for one in there
            if one not in own
        )  # fmt: skip


def _open(target: Target) -> list[PerfEvent]:
    if target.kind == "tracepoint":
        return [perf.tracepoint(target.name)]
    if target.kind == "perf_event":
        opened: list[PerfEvent] = []
        try:
            for cpu in perf.online_cpus():
                opened.append(perf.counter(target.name, cpu=cpu))
        except BaseException:
            for one in opened:
                one.close()
            raise
        return opened
    return [perf.probe(target.kind, target.name, at_return=target.at_return)]


class RawTracepointDriver:
    """Attaches to raw tracepoints, beside programs of others."""

    swaps = False
    holds_array = True
    shared = True

    def attach(self, program: Program, target: Target, *, force: bool = False) -> Attachment:
        """By BPF_RAW_TRACEPOINT_OPEN, which makes a link since 5.7."""
        try:
            link = raw_tracepoint_open(program, target.name)
        except BpfError as error:
            if error.errno == errno.ENOENT:
                raise HostError(
                    f"no raw tracepoint {target.name}",
                    "their names are those of tracepoints, without the group",
                ) from error
            raise attach_error(error, target) from error
        return LinkAttachment(link, target, swaps=False)

    def find(
        self, target: Target, *, pin: Path | None = None, own: Collection[int] = ()
    ) -> Attachment | None:
        """From the pin only."""
        link = pinned_link(pin, LinkType.RAW_TRACEPOINT, None)
        return LinkAttachment(link, target, swaps=False, pin=pin) if link else None

    def foreign(self, target: Target, own: Collection[int]) -> tuple[Foreign, ...]:
        """Nothing: a raw tracepoint runs every program, none is in another's way."""
        return ()

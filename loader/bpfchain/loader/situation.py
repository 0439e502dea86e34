"""What is there of one chain: its generations, what the hook runs, and what was left unfinished.

Which generation is the current one is asked from the kernel: it is the one whose head the hook
runs. Names in the bpffs alone never tell.
"""

from __future__ import annotations

import dataclasses
import socket
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from bpfchain.loader import netns
from bpfchain.loader.hooks import driver
from bpfchain.loader.hooks.linked import LinkAttachment, is_defunct
from bpfchain.loader.hooks.protocol import Attachment, HookDriver, Target
from bpfchain.loader.links import Link
from bpfchain.loader.maps import Map
from bpfchain.loader.places import HOST, ChainPlace
from bpfchain.loader.programs import Program
from bpfchain.loader.store import Generation, generations
from bpfchain.loader.syscall import BpfError
from bpfchain.transform.errors import HostError

ENOENT = 2


class Situation:
    """One look at a chain. Use with, or close: it holds the attachment's descriptors.

    ``fd`` is the socket of a chain on a socket, which only its owner can hand over.
    """

    def __init__(self, place: ChainPlace, *, fd: int | None = None) -> None:
        self.place = place
        self._stack = ExitStack()
        found = generations(place)
        self.complete = [one for one in found if one.record is not None]
        self.partial = [one.folder for one in found if one.record is None]
        self.entry_id: int | None = None
        self.attachment: Attachment | None = None
        self.running: int | None = 0
        """Id of the head that the hook runs; 0: none; None: the hook does not tell (sockets)."""
        self.gone: str | None = None
        """Why the hook itself is no more there: ``interface eth0 is gone``."""
        try:
            self._find(fd)
        except BaseException:
            self.close()
            raise

    @property
    def target(self) -> Target | None:
        """Where the chain is attached, as its newest generation says; None where there is none."""
        return self._target

    @property
    def hook_driver(self) -> HookDriver:
        """The driver of the chain's target."""
        assert self._target is not None, "the chain has a generation"
        return driver(self._target)

    @property
    def current(self) -> Generation | None:
        """The generation that runs."""
        if self.running is None:
            return self.complete[-1] if self.complete else None
        for one in self.complete:
            if self.running and self.running in self._heads[one.number]:
                return one
        return None

    @property
    def previous(self) -> Generation | None:
        """What a rollback goes to: the newest generation before the current one."""
        current = self.current
        older = [one for one in self.complete if current and one.number < current.number]
        return older[-1] if older else None

    @property
    def superfluous(self) -> list[Generation]:
        """Complete generations that are neither the current one nor the one before."""
        keep = (self.current, self.previous)
        return [one for one in self.complete if one not in keep]

    @property
    def unseen(self) -> bool:
        """Whether the hook cannot be looked at: a socket that nobody handed over."""
        target = self._target
        return target is not None and target.kind == "socket" and target.fd is None

    @property
    def strange(self) -> bool:
        """Whether the chain's own attachment runs a program of no generation."""
        return bool(self.running) and self.current is None

    @property
    def empty(self) -> bool:
        """Whether nothing of the chain is there at all."""
        return not (self.complete or self.partial or self.place.folder.exists())

    @property
    def own_ids(self) -> frozenset[int]:
        """Ids of the programs of this chain that may be found on its hook."""
        heads = frozenset().union(*self._heads.values()) if self._heads else frozenset[int]()
        return heads | ({self.entry_id} if self.entry_id else set())

    def head(self) -> Program:
        """The head that the hook runs; the caller closes it."""
        current = self.current
        assert current is not None, "the chain runs"
        name = "p0" if self.running in (None, current.program_id("p0")) else "new_p0"
        return current.program(name)

    def entry_array(self) -> Map | None:
        """The entry program's PROG_ARRAY; the caller closes it. None: no entry program."""
        try:
            return Map.get_pinned(self.place.entry_slots)
        except BpfError as error:
            if error.errno == ENOENT:
                return None
            raise

    def close(self) -> None:
        """Give descriptors back."""
        if self.attachment is not None:
            self.attachment.close()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def _find(self, fd: int | None) -> None:
        self._target: Target | None = None
        self._heads: dict[int, frozenset[int]] = {one.number: one.heads() for one in self.complete}
        self.entry_id = _pinned_program(self.place.entry)
        if not self.complete:
            # A generation that never got its record, or lost it, is attached nowhere.
            return
        target = self.complete[-1].whole.target
        self._target, self.gone = present(target, self.place)
        if fd is not None:
            self._target = dataclasses.replace(self._target, fd=fd)
        at_hook: int | None = None
        if self.gone is not None:
            # An interface that moved to another namespace took its programs along.
            self.attachment = _linked(self._target, self.place)
            at_hook = self.attachment.program_id if self.attachment else 0
        elif not self.unseen:
            self.attachment = driver(self._target).find(
                self._target, pin=self.place.link, own=self.own_ids
            )
            if self.attachment is None:
                self.running = 0
                return
            at_hook = self.attachment.program_id
        self.running = at_hook
        if self.entry_id and at_hook in (self.entry_id, None):
            array = self.entry_array()
            if array is not None:
                with array:
                    self.running = array.slot(0) or 0


def present(target: Target, place: ChainPlace) -> tuple[Target, str | None]:
    """The target as it is called now, and why it is no more there, if so.

    An interface is the one of its index, which keeps it when it is renamed.
    """
    if target.in_netns and place.namespace not in (HOST, netns.key()):
        return target, "it is in another network namespace"
    if target.ifindex is not None:
        try:
            name = socket.if_indextoname(target.ifindex)
        except OSError:
            return target, f"interface {target.interface} is gone"
        if name != target.interface:
            return dataclasses.replace(target, interface=name), None
    if target.cgroup is not None and not Path(target.cgroup).is_dir():
        return target, f"cgroup {target.cgroup} is gone"
    return target, None


def _linked(target: Target, place: ChainPlace) -> Attachment | None:
    """The chain's link, if it is still attached, wherever that is."""
    try:
        link = Link.get_pinned(place.link)
    except BpfError as error:
        if error.errno == ENOENT:
            return None
        raise
    if not is_defunct(link.info()):
        return LinkAttachment(link, target, pin=place.link)
    link.close()
    return None


def _pinned_program(path: Path) -> int | None:
    try:
        with Program.get_pinned(path) as program:
            return program.info().id
    except BpfError as error:
        if error.errno == ENOENT:
            return None
        raise HostError(f"{path}: cannot be opened: {error.strerror}") from None

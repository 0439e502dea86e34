"""Hooks of a whole network namespace: socket lookup and netfilter, by bpf_link."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection
from pathlib import Path

from bpfchain.loader import query
from bpfchain.loader.hooks.explain import attach_error
from bpfchain.loader.hooks.linked import LinkAttachment, pinned_link
from bpfchain.loader.hooks.protocol import Attachment, Foreign, Target
from bpfchain.loader.links import link_create, link_create_netfilter
from bpfchain.loader.programs import Program
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import AttachType, LinkType
from bpfchain.transform.errors import UsageError

_NETNS = "/proc/thread-self/ns/net"
_FAMILIES = {"ip": 2, "ip6": 10}
_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}


class SkLookupDriver:
    """Attaches to the socket lookup of the calling thread's network namespace."""

    swaps = True
    holds_array = True
    shared = True

    def attach(self, program: Program, target: Target, *, force: bool = False) -> Attachment:
        """Attach by link, behind what is there."""
        fd = os.open(_NETNS, os.O_RDONLY)
        try:
            return LinkAttachment(link_create(program, fd, AttachType.SK_LOOKUP), target)
        except BpfError as error:
            raise attach_error(error, target) from error
        finally:
            os.close(fd)

    def find(
        self, target: Target, *, pin: Path | None = None, own: Collection[int] = ()
    ) -> Attachment | None:
        """From the pin only."""
        link = pinned_link(pin, LinkType.NETNS, os.stat(_NETNS).st_ino)
        return LinkAttachment(link, target, pin=pin) if link else None

    def foreign(self, target: Target, own: Collection[int]) -> tuple[Foreign, ...]:
        """Other programs, which run too: one that selects a socket or drops decides."""
        fd = os.open(_NETNS, os.O_RDONLY)
        try:
            there = query.prog_query(fd, AttachType.SK_LOOKUP).programs
        except BpfError as error:
            raise attach_error(error, target) from error
        finally:
            os.close(fd)
        return tuple(
            Foreign(
                "sk_lookup program", one.program_id, query.program_name(one.program_id),
                f"{query.called(one.program_id)} on the same lookups",
            )
            for one in there
            if one.program_id not in own
        )  # fmt: skip


class NetfilterDriver:
    """Attaches to netfilter (6.4): ``ip/input`` …, at the target's priority. Cannot exchange."""

    swaps = False
    holds_array = True
    shared = True

    def attach(self, program: Program, target: Target, *, force: bool = False) -> Attachment:
        """Attach by link. A priority holds one BPF program of a hook (EBUSY)."""
        family, _, hook = target.name.partition("/")
        if family not in _FAMILIES or hook not in _HOOKS:
            raise UsageError(
                f"{target.name or 'nothing'} is no netfilter hook",
                f"ip or ip6, a slash, and one of {', '.join(_HOOKS)}",
            )
        try:
            link = link_create_netfilter(
                program, AttachType.NETFILTER, _FAMILIES[family], _HOOKS[hook], target.priority
            )
        except BpfError as error:
            holders: tuple[Foreign, ...] = ()
            if error.errno == errno.EBUSY:
                what = f"another BPF program has priority {target.priority}"
                holders = (Foreign("netfilter program", None, None, what, exclusive=True),)
            raise attach_error(error, target, holders) from error
        return LinkAttachment(link, target, swaps=False)

    def find(
        self, target: Target, *, pin: Path | None = None, own: Collection[int] = ()
    ) -> Attachment | None:
        """From the pin only."""
        link = pinned_link(pin, LinkType.NETFILTER, None)
        return LinkAttachment(link, target, swaps=False, pin=pin) if link else None

    def foreign(self, target: Target, own: Collection[int]) -> tuple[Foreign, ...]:
        """Nothing: netfilter runs its hooks by priority, `nft list hooks` shows them."""
        return ()

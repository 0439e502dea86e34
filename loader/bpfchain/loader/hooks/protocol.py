"""What a hook driver offers: targets, attachments, and what else sits on a hook."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from bpfchain.loader.programs import Program
from bpfchain.transform.errors import HostError
from bpfchain.transform.policy import Hook

Kind = Literal[
    "xdp", "tcx", "clsact", "cgroup", "socket", "sk_lookup", "netfilter",
    "tracepoint", "raw_tp", "kprobe", "uprobe", "perf_event",
]  # fmt: skip
Direction = Literal["ingress", "egress"]
Mode = Literal["native", "generic"]


class SwapNotPossibleError(HostError):
    """The hook cannot exchange its program (netfilter, raw_tp, perf events): entry program."""


class NoSuchHookError(HostError):
    """The running kernel does not have this kind of hook (tcx before 6.6)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A place where one program can be attached; see :mod:`bpfchain.loader.hooks.targets`."""

    hook: Hook
    kind: Kind
    interface: str | None = None
    ifindex: int | None = None
    direction: Direction | None = None
    mode: Mode | None = None
    """XDP only; None: native where the driver has it, else generic (the kernel's own choice)."""
    cgroup: str | None = None
    """Absolute path of the cgroup's folder (cgroup version 2)."""
    fd: int | None = None
    """The socket; the caller keeps it open."""
    name: str = ""
    """Tracepoint (``sched/sched_switch``), raw tracepoint, function (``do_exit+4``), ``path:offset``
    of a uprobe, or ``software:0:1000000`` (type, config, period) of a perf event."""
    at_return: bool = False
    """kretprobe, uretprobe."""
    priority: int = 0
    """clsact: the filter's preference (0: the driver's own); netfilter: the hook's priority."""

    @property
    def in_netns(self) -> bool:
        """Whether the target belongs to a network namespace (else to the host)."""
        return self.kind in ("xdp", "tcx", "clsact", "socket", "sk_lookup", "netfilter")

    @property
    def place(self) -> str:
        """Kind of hook as part of a path: ``tcx_ingress``, ``cgroup/connect4`` …, unescaped."""
        if self.kind == "cgroup":
            return self.hook.name
        if self.at_return:
            return f"{self.kind[0]}ret{self.kind[1:]}"
        return f"{self.kind}_{self.direction}" if self.direction else self.kind

    @property
    def key(self) -> str:
        """What names the target among those of its ``place``: interface, cgroup path …, unescaped."""
        if self.kind == "socket":
            return self.name
        return self.interface or self.cgroup or self.name or "all"

    def __str__(self) -> str:
        where = self.key
        if self.kind == "socket":
            return f"socket {where}"
        return f"{where} {self.place.replace('_', ' ') if self.direction else self.place}"


@dataclass(frozen=True, slots=True)
class Foreign:
    """Something on a hook that is not of this chain."""

    kind: str
    """``xdp program``, ``xdp link``, ``libxdp dispatcher``, ``clsact filter``, ``tcx program`` …"""
    program_id: int | None
    name: str | None
    """None: unknown, the kernel tells names by id only with CAP_SYS_ADMIN."""
    what: str
    """One line for a person: what it is and how it stands to the chain (before, behind, instead)."""
    exclusive: bool = False
    """It is in the way: a chain cannot be attached beside it."""


class Attachment(Protocol):
    """One program at one target. Closing it leaves a pinned or unpinnable attachment in place."""

    target: Target
    pinnable: bool
    """Whether :meth:`pin` makes it stay. If not, it stays by itself, or it does not (``lasts``)."""
    lasts: bool
    """Whether it can outlive this process (False: a perf event before 5.15)."""

    @property
    def program_id(self) -> int | None:
        """Id of the program that the hook runs now, asked from the kernel; None: it does not tell
        (sockets after a restart). 0: nothing any more."""

    def swap(self, new: Program, old: Program) -> None:
        """Exchange ``old`` for ``new`` in one step. HostError if another program is there,
        SwapNotPossibleError where the hook cannot."""

    def detach(self) -> None:
        """End the attachment now, pinned or not, and close it. Where only the pin's removal ends
        it (tracing kinds) the pin that is known from :meth:`pin` or ``find`` goes; elsewhere the
        pin stays, of a link that does nothing any more: see :meth:`unpin`."""

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Let the attachment outlive the process; does nothing where ``pinnable`` is False."""

    def unpin(self, path: str | os.PathLike[str]) -> None:
        """Remove what :meth:`pin` made at ``path`` (several pins for a perf event on all CPUs);
        nothing happens where there is none."""

    def close(self) -> None:
        """Give the descriptors back: an attachment that is neither pinned nor of the kind that
        outlives them ends."""


class HookDriver(Protocol):
    """Everything that is special about one kind of hook."""

    swaps: bool
    """Whether attachments can exchange their program; if not, a chain needs an entry program."""
    holds_array: bool
    """Whether the attachment goes with its pins. False (clsact, socket): it stays when they go,
    with an emptied PROG_ARRAY, so pins must be kept as long as the head is attached."""
    shared: bool
    """Whether programs of others can be attached beside the chain's."""

    def attach(self, program: Program, target: Target, *, force: bool = False) -> Attachment:
        """Attach. ``force`` displaces what is in the way. HostError, or NoSuchHookError."""

    def find(
        self, target: Target, *, pin: Path | None = None, own: Collection[int] = ()
    ) -> Attachment | None:
        """The chain's attachment, from its ``pin``, or by looking on the hook for one of the
        program ids ``own`` where nothing can be pinned. None: not attached (any more)."""

    def foreign(self, target: Target, own: Collection[int]) -> tuple[Foreign, ...]:
        """What else is on the hook, ``own`` being the program ids of the chain."""

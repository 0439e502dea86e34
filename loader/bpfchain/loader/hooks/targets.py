"""Targets out of what a person names: interface, direction, cgroup, tracepoint, function."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import get_args

from bpfchain.loader.hooks.protocol import Direction, Kind, Mode, Target
from bpfchain.loader.uapi import SO_COOKIE
from bpfchain.transform.errors import HostError, UsageError, nearest
from bpfchain.transform.policy import Hook

_INTERFACE_KINDS = ("xdp", "tcx", "clsact")
_TRACING: dict[str, Kind] = {
    "tracepoint": "tracepoint", "raw_tp": "raw_tp", "raw_tp.w": "raw_tp", "kprobe": "kprobe",
    "perf_event": "perf_event",
}  # fmt: skip


def kinds_of(hook: Hook) -> tuple[Kind, ...]:
    """The kinds of attachment for chains of ``hook``, the one to try first in front.

    Empty: no driver is there for it. tcx and clsact act on other codes: STOLEN (4) and TRAP (8)
    end a packet's way in clsact, in tcx they are NEXT. So a chain of hook ``tc`` goes to clsact,
    where its programs do what they did alone, and to tcx only on request; a chain of hook
    ``tcx/…`` goes to clsact where the kernel has no tcx.
    """
    if hook.name == "xdp":
        return ("xdp",)
    if hook.name in ("tcx/ingress", "tcx/egress"):
        return ("tcx", "clsact")
    if hook.name == "tc":
        return ("clsact", "tcx")
    if hook.name.startswith(("cgroup/", "cgroup_skb/")):
        return ("cgroup",)
    if hook.name in ("socket", "sk_lookup", "netfilter"):
        return (hook.name,)  # type: ignore[return-value]
    kind = _TRACING.get(hook.name)
    if kind == "kprobe":
        return ("kprobe", "uprobe")
    return (kind,) if kind else ()


def _chosen(hook: Hook, kind: Kind | None) -> Kind:
    kinds = kinds_of(hook)
    if not kinds:
        raise UsageError(
            f"chains of hook {hook.name} cannot be attached by bpfchain",
            "`bpfchain plan` prints the bpftool commands that fill the slots",
        )
    if kind is None:
        return kinds[0]
    if kind not in kinds:
        raise UsageError(f"a chain of hook {hook.name} goes to {' or '.join(kinds)}, not to {kind}")
    return kind


def interface_target(
    hook: Hook, interface: str, *, direction: Direction | None = None, mode: Mode | None = None,
    kind: Kind | None = None, priority: int = 0,
) -> Target:  # fmt: skip
    """An interface of the calling thread's network namespace.

    UsageError for a combination that makes no sense, HostError for an interface that is not there.
    """
    kind = _chosen(hook, kind)
    if kind not in _INTERFACE_KINDS:
        raise UsageError(f"a chain of hook {hook.name} is not attached to an interface")
    if kind == "xdp":
        if direction not in (None, "ingress"):
            raise UsageError("XDP has no egress: leave --direction out")
        direction = None
    else:
        if mode is not None:
            raise UsageError(f"--mode {mode} is for XDP, not for hook {hook.name}")
        own = hook.name.partition("/")[2]
        if direction is not None and own and direction != own:
            raise UsageError(f"--direction {direction} contradicts the chain's hook {hook.name}")
        direction = direction or (own if own in get_args(Direction) else None)  # type: ignore[assignment]
        if direction is None:
            raise UsageError(
                f"a chain of hook {hook.name} needs --direction", "--direction ingress or egress"
            )
    return Target(
        hook=hook, kind=kind, interface=interface, ifindex=_index(interface),
        direction=direction, mode=mode, priority=priority,
    )  # fmt: skip


def _index(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        names = [name for _, name in socket.if_nameindex()]
        close = nearest(interface, names)
        hint = f"did you mean {close}?" if close else f"there are {', '.join(names)}"
        raise HostError(f"no interface {interface} in this network namespace", hint) from error


def interface_index(target: Target) -> int:
    """The target's interface index. HostError if the interface is gone or has another index now."""
    assert target.interface, "the target is an interface"
    now = _index(target.interface)
    if target.ifindex is not None and now != target.ifindex:
        raise HostError(
            f"interface {target.interface} is another one now (index {now}, was {target.ifindex})"
        )
    return now


def cgroup_target(hook: Hook, path: str | os.PathLike[str]) -> Target:
    """A cgroup (version 2) by the path of its folder. UsageError, HostError."""
    if _chosen(hook, None) != "cgroup":
        raise UsageError(f"a chain of hook {hook.name} is not attached to a cgroup")
    folder = Path(os.path.realpath(path))
    if not folder.is_dir():
        siblings = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        close = nearest(folder.name, siblings)
        raise HostError(
            f"no cgroup {path}", f"did you mean {folder.parent / close}?" if close else None
        )
    if not (folder / "cgroup.controllers").exists():
        raise HostError(
            f"{path} is not a cgroup of version 2",
            "they are under /sys/fs/cgroup or /sys/fs/cgroup/unified",
        )
    return Target(hook=hook, kind="cgroup", cgroup=str(folder))


def socket_target(hook: Hook, fd: int) -> Target:
    """An open socket of this process, which keeps it open. UsageError if ``fd`` is none."""
    if _chosen(hook, None) != "socket":
        raise UsageError(f"a chain of hook {hook.name} is not attached to a socket")
    try:
        with socket.socket(fileno=os.dup(fd)) as one:
            cookie = int.from_bytes(one.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")
    except OSError as error:
        raise UsageError(f"descriptor {fd} is not a socket: {error.strerror}") from error
    return Target(hook=hook, kind="socket", fd=fd, name=str(cookie))


def named_target(
    hook: Hook, name: str, *, kind: Kind | None = None, at_return: bool = False, priority: int = 0
) -> Target:
    """Something with a name (see :attr:`Target.name`), or with none (sk_lookup, netfilter)."""
    kind = _chosen(hook, kind)
    if kind in (*_INTERFACE_KINDS, "cgroup", "socket"):
        raise UsageError(f"a chain of hook {hook.name} is attached to a {kind} hook, not by a name")
    if at_return and kind not in ("kprobe", "uprobe"):
        raise UsageError(f"{kind} has no return")
    return Target(hook=hook, kind=kind, name=name, at_return=at_return, priority=priority)

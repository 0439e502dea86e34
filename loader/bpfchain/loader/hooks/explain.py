"""What the kernel's refusals at a hook mean: one line, and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from bpfchain.loader.caps import permission_hint
from bpfchain.loader.hooks.protocol import Foreign, Target
from bpfchain.transform.errors import BpfchainError, HostError, RefusedError

NEEDS = {
    "xdp": ("CAP_BPF", "CAP_NET_ADMIN"),
    "tcx": ("CAP_BPF", "CAP_NET_ADMIN"),
    "clsact": ("CAP_BPF", "CAP_NET_ADMIN"),
    "cgroup": ("CAP_BPF", "CAP_NET_ADMIN"),
    "socket": ("CAP_BPF",),
    "sk_lookup": ("CAP_BPF", "CAP_NET_ADMIN"),
    "netfilter": ("CAP_BPF", "CAP_NET_ADMIN"),
    "tracepoint": ("CAP_BPF", "CAP_PERFMON"),
    "raw_tp": ("CAP_BPF", "CAP_PERFMON"),
    "kprobe": ("CAP_BPF", "CAP_PERFMON"),
    "uprobe": ("CAP_BPF", "CAP_PERFMON"),
    "perf_event": ("CAP_BPF", "CAP_PERFMON"),
}
"""Capabilities to load programs for a kind of hook and to attach them (5.8 and newer)."""


def attach_error(
    error: OSError, target: Target, holders: Iterable[Foreign] = (), *, force: bool = False
) -> BpfchainError:
    """``error`` from attaching at ``target``, in words; ``holders``: what sits there."""
    number = error.errno
    said = f"cannot attach to {target}"
    if number in (errno.EPERM, errno.EACCES):
        return HostError(f"{said}: not permitted", permission_hint(NEEDS[target.kind]))
    if number == errno.EEXIST and target.kind == "tcx":
        return HostError(f"{said}: this very program is there already")
    if number in (errno.EBUSY, errno.EEXIST):
        who = "; ".join(one.what for one in holders) or "another program"
        hint = "detach it first" + ("" if force else ", or displace it with --force")
        return HostError(f"{said}: it is taken: {who}", hint)
    if number in (errno.ENODEV, errno.ENOENT, errno.ENXIO) and target.interface:
        return HostError(f"{said}: interface {target.interface} is gone")
    if number in (errno.EOPNOTSUPP, 524):
        return HostError(f"{said}: the kernel does not support it there ({error})")
    if number == errno.EINVAL:
        return RefusedError(
            f"{said}: the kernel takes no such program there (EINVAL)",
            "its type, attach type or frags setting is of another hook",
        )
    return HostError(f"{said}: {error}")


def swap_error(error: OSError, target: Target, found: int | None, old: int) -> HostError:
    """``error`` from exchanging program ``old`` at ``target``, where now ``found`` is attached."""
    said = f"cannot exchange the program at {target}"
    if error.errno in (errno.ENOLINK, errno.ENOENT, errno.ENODEV) or found == 0:
        return HostError(f"{said}: it is not attached any more", "see `bpfchain status`")
    if error.errno == errno.EPERM and found != old:
        return changed_error(target, found, old)
    if error.errno == errno.EPERM:
        return HostError(f"{said}: not permitted", permission_hint(NEEDS[target.kind]))
    if error.errno == errno.EINVAL:
        return HostError(
            f"{said}: the kernel takes no such program there (EINVAL)",
            "the new program's type or attach type differs from the attached one's",
        )
    return HostError(f"{said}: {error}")


def detach_error(error: OSError, target: Target) -> HostError:
    """``error`` from taking the chain's program away from ``target``."""
    said = f"cannot detach from {target}"
    if error.errno == errno.EPERM:
        return HostError(f"{said}: not permitted", permission_hint(NEEDS[target.kind]))
    return HostError(f"{said}: {error}")


def changed_error(target: Target, found: int | None, expected: int) -> HostError:
    """Another program than the chain's is at ``target``."""
    there = f"program {found} is there" if found else "no program is there"
    return HostError(
        f"{target} was changed by someone: {there}, the chain's is {expected}",
        "see `bpfchain status`",
    )

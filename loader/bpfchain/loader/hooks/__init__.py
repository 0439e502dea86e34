"""Hooks that chains are attached to: one driver for each kind, all with the same protocol.

``driver(target)`` gives the driver; targets come from :mod:`.targets`.
"""

from __future__ import annotations

import importlib

from bpfchain.loader.hooks.protocol import (
    Attachment,
    Direction,
    Foreign,
    HookDriver,
    Kind,
    Mode,
    NoSuchHookError,
    SwapNotPossibleError,
    Target,
)
from bpfchain.loader.hooks.targets import (
    cgroup_target,
    interface_target,
    kinds_of,
    named_target,
    socket_target,
)

__all__ = [
    "Attachment",
    "Direction",
    "Foreign",
    "HookDriver",
    "Kind",
    "Mode",
    "NoSuchHookError",
    "SwapNotPossibleError",
    "Target",
    "cgroup_target",
    "driver",
    "interface_target",
    "kinds_of",
    "named_target",
    "socket_target",
]

_DRIVERS: dict[Kind, tuple[str, str]] = {
    "xdp": ("xdp", "XdpDriver"),
    "tcx": ("tcx", "TcxDriver"),
    "clsact": ("clsact", "ClsactDriver"),
    "cgroup": ("cgroup", "CgroupDriver"),
    "socket": ("socket", "SocketDriver"),
    "tracepoint": ("tracing", "PerfDriver"),
    "kprobe": ("tracing", "PerfDriver"),
    "uprobe": ("tracing", "PerfDriver"),
    "perf_event": ("tracing", "PerfDriver"),
    "raw_tp": ("tracing", "RawTracepointDriver"),
    "sk_lookup": ("network", "SkLookupDriver"),
    "netfilter": ("network", "NetfilterDriver"),
}


def driver(target: Target) -> HookDriver:
    """The driver for the target's kind; only that kind's module is imported."""
    module, name = _DRIVERS[target.kind]
    found: HookDriver = getattr(importlib.import_module(f"{__name__}.{module}"), name)()
    return found

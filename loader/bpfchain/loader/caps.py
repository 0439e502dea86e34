"""Capabilities of this process, by name, and which of them an operation lacks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

NUMBERS = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
"""``<linux/capability.h>``."""

_COVERED = ("CAP_BPF", "CAP_PERFMON")
"""What CAP_SYS_ADMIN includes: ``bpf_capable`` and ``perfmon_capable`` (<linux/capability.h>)."""

WHOLE_NAMESPACE = "0 0 4294967295"


def _status() -> dict[str, str]:
    text = Path("/proc/thread-self/status").read_text()
    return {
        key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())
    }


def effective() -> frozenset[str]:
    """The names in ``NUMBERS`` of the capabilities that the calling thread has in effect.

    CAP_SYS_ADMIN counts for CAP_BPF and CAP_PERFMON, as in the kernel; kernels before 5.8, which
    know neither, ask for CAP_SYS_ADMIN itself.
    """
    bits = int(_status()["CapEff"], 16)
    held = {name for name, number in NUMBERS.items() if bits >> number & 1}
    if "CAP_SYS_ADMIN" in held:
        held.update(_COVERED)
    elif _last() < NUMBERS["CAP_BPF"]:
        held.difference_update(_COVERED)
    return frozenset(held)


def _last() -> int:
    """The highest capability that the kernel knows; 40 where /proc does not tell."""
    try:
        return int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    except OSError:
        return 40


def missing(needed: Iterable[str]) -> tuple[str, ...]:
    """Those of ``needed`` that the calling thread lacks, in order.

    Before 5.8 what lacks is CAP_SYS_ADMIN in place of CAP_BPF and CAP_PERFMON.
    """
    held = effective()
    lacking = [name for name in needed if name not in held]
    if _last() < NUMBERS["CAP_BPF"]:
        lacking = ["CAP_SYS_ADMIN" if name in _COVERED else name for name in lacking]
    return tuple(dict.fromkeys(lacking))


def in_user_namespace() -> bool:
    """Whether capabilities count only inside a user namespace: bpf(2) asks the host's own."""
    try:
        mapping = Path("/proc/self/uid_map").read_text().split()
    except OSError:
        return False
    return " ".join(mapping) != WHOLE_NAMESPACE


def permission_hint(needed: Iterable[str]) -> str:
    """What to do about EPERM from an operation that needs these capabilities.

    Names the ones that are missing; if none is, what else makes the kernel say no.
    """
    lacking = missing(needed)
    if lacking:
        return f"this process lacks {' and '.join(lacking)}: run it as root or grant that"
    if in_user_namespace():
        return "this is a user namespace: the kernel asks for capabilities of the host itself"
    return (
        "all capabilities are there: a security module, a container's seccomp filter or kernel "
        "lockdown forbids it"
    )

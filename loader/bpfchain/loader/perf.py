"""perf_event_open(2): events of tracepoints, kprobes, uprobes and counters that programs run on."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import re
from pathlib import Path
from typing import Final

from bpfchain.loader import caps
from bpfchain.loader.programs import Program
from bpfchain.loader.syscall import Fd, copy_in
from bpfchain.loader.uapi import (
    PERF_ATTR_FREQ,
    PERF_EVENT_ATTR,
    PERF_EVENT_IOC_ENABLE,
    PERF_EVENT_IOC_QUERY_BPF,
    PERF_EVENT_IOC_SET_BPF,
    PERF_FLAG_FD_CLOEXEC,
    PERF_TYPE_HARDWARE,
    PERF_TYPE_SOFTWARE,
    PERF_TYPE_TRACEPOINT,
)
from bpfchain.transform.errors import HostError, UsageError, nearest

_NUMBERS: Final = {
    "x86_64": 298, "aarch64": 241, "riscv64": 241, "loongarch64": 241, "s390x": 331,
    "ppc64le": 319, "ppc64": 319, "armv7l": 364, "i686": 336,
}  # fmt: skip
_TRACEFS: Final = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
_SOURCES: Final = Path("/sys/bus/event_source/devices")
_TYPES: Final = {"hardware": PERF_TYPE_HARDWARE, "software": PERF_TYPE_SOFTWARE}
_EVERYTHING, _NO_GROUP = -1, -1
_QUERY_IDS = 64

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class PerfEvent(Fd):
    """An open perf event. What is attached by ioctl ends with it; a link keeps it open."""

    kind = "[perf-event]"

    def enable(self) -> None:
        """Let it happen (PERF_EVENT_IOC_ENABLE)."""
        fcntl.ioctl(self.fileno(), PERF_EVENT_IOC_ENABLE, 0)

    def set_program(self, program: Program) -> None:
        """Attach without a link (PERF_EVENT_IOC_SET_BPF): before 5.15. OSError."""
        fcntl.ioctl(self.fileno(), PERF_EVENT_IOC_SET_BPF, program.fileno())

    def programs(self) -> tuple[int, ...]:
        """Ids of all programs on this event's tracepoint, whoever attached them."""
        data = bytearray(8 + 4 * _QUERY_IDS)
        data[:4] = _QUERY_IDS.to_bytes(4, "little")
        view = memoryview(data).cast("I")
        view[0], view[1] = _QUERY_IDS, 0
        fcntl.ioctl(self.fileno(), PERF_EVENT_IOC_QUERY_BPF, data)
        return tuple(view[2 : 2 + view[1]])


def perf_event_open(attr: bytearray, what: str, *, cpu: int) -> PerfEvent:
    """Open an event of all processes on ``cpu``. HostError, naming ``what`` and why."""
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise HostError(f"{what}: perf_event_open is not known on {platform.machine()}")
    buffer = (ctypes.c_char * len(attr)).from_buffer(attr)
    fd = _libc.syscall(
        number, buffer, _EVERYTHING, cpu, _NO_GROUP, ctypes.c_ulong(PERF_FLAG_FD_CLOEXEC)
    )
    if fd < 0:
        error = ctypes.get_errno()
        if error in (errno.EPERM, errno.EACCES):
            raise HostError(
                f"cannot open {what}: not permitted", caps.permission_hint(("CAP_PERFMON",))
            )
        raise OSError(error, f"cannot open {what}: {os.strerror(error)}")
    return PerfEvent(fd)


def tracepoint(name: str) -> PerfEvent:
    """The tracepoint ``group/name``. HostError: there is none, or tracefs cannot be read."""
    group, slash, event = name.partition("/")
    if not slash:
        raise UsageError(f"a tracepoint is named group/name, not {name}", "sched/sched_switch")
    number = _tracepoint_id(group, event)
    attr = PERF_EVENT_ATTR.pack(
        type=PERF_TYPE_TRACEPOINT, size=PERF_EVENT_ATTR.size, config=number, sample_period=1
    )
    try:
        return perf_event_open(attr, f"tracepoint {name}", cpu=0)
    except OSError as error:
        raise HostError(str(error.strerror)) from error


def _tracepoint_id(group: str, event: str) -> int:
    events = next((root / "events" for root in _TRACEFS if (root / "events").is_dir()), None)
    if events is None:
        raise HostError(
            "tracefs is not mounted, or this user may not look into it",
            "mount -t tracefs tracefs /sys/kernel/tracing, with gid= for a user that is not root",
        )
    try:
        return int((events / group / event / "id").read_text())
    except PermissionError as error:
        raise HostError(
            f"may not read {error.filename}", "remount tracefs with gid= of this user's group"
        ) from error
    except OSError as error:
        folder, name = (events / group, event) if (events / group).is_dir() else (events, group)
        close = nearest(name, [one.name for one in folder.iterdir()])
        raise HostError(
            f"no tracepoint {group}/{event}", f"did you mean {close}?" if close else None
        ) from error


def probe(source: str, name: str, *, at_return: bool = False) -> PerfEvent:
    """A ``kprobe`` (``function`` or ``function+offset``) or ``uprobe`` (``path:offset``).

    HostError: the kernel has no such probes (before 4.17 none that perf_event_open makes), or
    cannot put one there.
    """
    what = f"{source} {name}"
    text, offset = _probe_place(source, name)
    try:
        kind = int((_SOURCES / source / "type").read_text())
    except OSError as error:
        raise HostError(
            f"cannot open {what}: this kernel has no {source}s that perf_event_open makes "
            f"(no {_SOURCES / source})"
        ) from error
    address, keep = copy_in(os.fsencode(text) + b"\0")
    attr = PERF_EVENT_ATTR.pack(
        type=kind, size=PERF_EVENT_ATTR.size, config=_return_bit(source) if at_return else 0,
        config1=address, config2=offset,
    )  # fmt: skip
    try:
        return perf_event_open(attr, what, cpu=0)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EINVAL, errno.EILSEQ, errno.EADDRNOTAVAIL):
            raise HostError(
                f"cannot open {what}: no probe can be put there ({error.strerror})"
            ) from error
        raise HostError(str(error.strerror)) from error
    finally:
        del keep


def _probe_place(source: str, name: str) -> tuple[str, int]:
    text, separator, offset = name.rpartition("+" if source == "kprobe" else ":")
    if source == "kprobe" and not separator:
        return name, 0
    try:
        return text, int(offset, 0)
    except ValueError:
        example = "do_exit+4" if source == "kprobe" else "/usr/bin/thing:0x1234"
        raise UsageError(f"{name} is no place for a {source}", f"for example {example}") from None


def _return_bit(source: str) -> int:
    try:
        said = (_SOURCES / source / "format" / "retprobe").read_text()
    except OSError:
        return 1
    found = re.match(r"config:(\d+)", said)
    return 1 << int(found[1]) if found else 1


def counter(name: str, *, cpu: int) -> PerfEvent:
    """A counting event ``type:config:period`` on one CPU.

    ``type``: ``hardware``, ``software`` or a number; ``config`` a number; ``period`` counts, or
    ``f`` and times a second. ``software:0:1000000`` is each millisecond of CPU time.
    """
    parts = name.split(":")
    try:
        kind, config, period = parts
        number = _TYPES[kind] if kind in _TYPES else int(kind, 0)
        frequency = period.startswith("f")
        attr = PERF_EVENT_ATTR.pack(
            type=number, size=PERF_EVENT_ATTR.size, config=int(config, 0),
            sample_period=int(period.removeprefix("f"), 0),
            _flags=PERF_ATTR_FREQ if frequency else 0,
        )  # fmt: skip
    except (ValueError, KeyError):
        raise UsageError(
            f"{name} is no perf event: type:config:period", "for example software:0:1000000"
        ) from None
    try:
        return perf_event_open(attr, f"perf event {name} on CPU {cpu}", cpu=cpu)
    except OSError as error:
        raise HostError(
            f"{error.strerror}", "a virtual machine often has software events only"
        ) from error


def online_cpus() -> tuple[int, ...]:
    """Numbers of the CPUs that are online."""
    found: list[int] = []
    for part in Path("/sys/devices/system/cpu/online").read_text().strip().split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)

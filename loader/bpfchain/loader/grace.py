"""Waiting until no BPF program that ran before can still be running (an RCU grace period)."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import sys
from typing import Final

from bpfchain.loader.caps import permission_hint
from bpfchain.loader.maps import Map
from bpfchain.loader.syscall import BpfError, bpf
from bpfchain.loader.uapi import MAP_CREATE, Cmd, MapType
from bpfchain.transform.errors import HostError

_MEMBARRIER: Final = {
    "x86_64": 324, "aarch64": 283, "riscv64": 283, "loongarch64": 283, "s390x": 356,
    "ppc64le": 365, "ppc64": 365, "armv7l": 389, "i686": 375,
}  # fmt: skip
_MEMBARRIER_CMD_GLOBAL: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)


def wait() -> None:
    """Return when every run of a program that began before the call has ended.

    Runs of sleepable programs are not waited for; no link of a chain is one. Two ways, in order:

    - An update of a map of maps: the kernel then waits "for any running BPF programs to complete"
      (``maybe_wait_bpf_programs``, kernel/bpf/syscall.c, 4.20), whatever CPUs there are.
    - ``membarrier(MEMBARRIER_CMD_GLOBAL)``, which is a ``synchronize_rcu`` too, but does nothing
      with one CPU online and is refused on hosts with nohz_full CPUs (kernel/sched/membarrier.c).

    Takes milliseconds to tens of them. Raises HostError if neither can be had: then nothing of the
    old generation may be released.
    """
    try:
        _by_map()
    except BpfError as error:
        if membarrier():
            return
        hint = "membarrier(2) fails too: one CPU online, nohz_full CPUs, or a seccomp filter"
        if error.errno == errno.EPERM:
            hint = permission_hint(("CAP_BPF",))
        raise HostError(f"cannot wait for the end of running programs: {error}", hint) from error


def _by_map() -> None:
    """One update of an array of maps."""
    with Map.create(MapType.ARRAY, 4, 4, 1) as inner:
        attr = MAP_CREATE.pack(
            map_type=MapType.ARRAY_OF_MAPS, key_size=4, value_size=4, max_entries=1,
            inner_map_fd=inner.fileno(),
        )  # fmt: skip
        with Map(bpf(Cmd.MAP_CREATE, attr, "to wait with")) as outer:
            outer.update(bytes(4), inner.fileno().to_bytes(4, sys.byteorder))


def membarrier() -> bool:
    """Wait by the system call of this name; False if that waits for nothing on this host."""
    number = _MEMBARRIER.get(platform.machine())
    if number is None or os.sysconf("SC_NPROCESSORS_ONLN") == 1:
        return False
    return bool(_libc.syscall(number, _MEMBARRIER_CMD_GLOBAL, 0, 0) == 0)

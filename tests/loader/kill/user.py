"""A command as a user who is not root, with a few capabilities and nothing else."""

from __future__ import annotations

import ctypes
import importlib
import os
import struct
import sys
from collections.abc import Callable, Iterable

from loader.kill.tracer import trace

USER = 54321
"""A user id that owns nothing on any machine."""

CAPABILITIES = {
    "CAP_DAC_OVERRIDE": 1, "CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39,
}  # fmt: skip
ENOUGH = ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON")

_MARK = "----modules----"
_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
_PR_SET_DUMPABLE, _PR_SET_KEEPCAPS = 4, 8
_libc = ctypes.CDLL(None, use_errno=True)


def become(names: Iterable[str]) -> None:
    """Be that user from now on, with these capabilities permitted and in effect."""
    os.setgroups([])
    _checked(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "keep capabilities")
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    bits = sum(1 << CAPABILITIES[name] for name in names)
    low, high = bits & 0xFFFF_FFFF, bits >> 32
    header = struct.pack("=Ii", _VERSION, 0)
    sets = struct.pack("=6I", low, low, 0, high, high, 0)
    _checked(_libc.capset(ctypes.c_char_p(header), ctypes.c_char_p(sets)), "capset")
    # as after an exec: /proc/self belongs to the user
    _checked(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "dumpable")


def _checked(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), what)


def as_user(work: Callable[[], object], names: Iterable[str]) -> Callable[[], None]:
    """``work``, to be done in a child, by that user."""

    def run() -> None:
        become(names)
        work()

    return run


def preload(work: Callable[[], object]) -> None:
    """Import here whatever ``work`` imports in a child: the user may not read where Python is."""

    def run() -> None:
        try:
            work()
        finally:
            print(_MARK, *sys.modules, sep="\n")

    names = trace(run).out.partition(_MARK)[2].split()
    assert names, "the child told no modules"
    for name in names:
        if name not in sys.modules and not name.startswith("__"):
            importlib.import_module(name)

"""Which system calls change something, and what they are called in a list of points.

Numbers: ``<asm/unistd.h>`` of x86-64, and the generic table that newer architectures share.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_X86_64: Final = {
    "bpf": 321, "sendto": 44, "sendmsg": 46, "sendmmsg": 307, "setsockopt": 54, "mkdir": 83,
    "mkdirat": 258, "rmdir": 84, "rename": 82, "renameat": 264, "renameat2": 316, "unlink": 87,
    "unlinkat": 263, "link": 86, "linkat": 265, "symlink": 88, "symlinkat": 266, "mount": 165,
    "execve": 59, "clone": 56, "fork": 57, "vfork": 58, "clone3": 435, "perf_event_open": 298,
}  # fmt: skip
_GENERIC: Final = {
    "bpf": 280, "sendto": 206, "sendmsg": 211, "sendmmsg": 269, "setsockopt": 208, "mkdirat": 34,
    "renameat": 38, "renameat2": 276, "unlinkat": 35, "linkat": 37, "symlinkat": 36, "mount": 40,
    "execve": 221, "clone": 220, "clone3": 435, "perf_event_open": 241,
}  # fmt: skip

NUMBERS: Final = _X86_64 if platform.machine() == "x86_64" else _GENERIC
NAMES: Final = {number: name for name, number in NUMBERS.items()}

PROCESSES: Final = ("execve", "clone", "fork", "vfork", "clone3")
"""A command that starts another process or thread would escape the tracer: none does."""

BPF: Final = (
    "MAP_CREATE", "MAP_LOOKUP_ELEM", "MAP_UPDATE_ELEM", "MAP_DELETE_ELEM", "MAP_GET_NEXT_KEY",
    "PROG_LOAD", "OBJ_PIN", "OBJ_GET", "PROG_ATTACH", "PROG_DETACH", "PROG_TEST_RUN",
    "PROG_GET_NEXT_ID", "MAP_GET_NEXT_ID", "PROG_GET_FD_BY_ID", "MAP_GET_FD_BY_ID",
    "OBJ_GET_INFO_BY_FD", "PROG_QUERY", "RAW_TRACEPOINT_OPEN", "BTF_LOAD", "BTF_GET_FD_BY_ID",
    "TASK_FD_QUERY", "MAP_LOOKUP_AND_DELETE_ELEM", "MAP_FREEZE", "BTF_GET_NEXT_ID",
    "MAP_LOOKUP_BATCH", "MAP_LOOKUP_AND_DELETE_BATCH", "MAP_UPDATE_BATCH", "MAP_DELETE_BATCH",
    "LINK_CREATE", "LINK_UPDATE", "LINK_GET_FD_BY_ID", "LINK_GET_NEXT_ID", "ENABLE_STATS",
    "ITER_CREATE", "LINK_DETACH", "PROG_BIND_MAP",
)  # fmt: skip
"""``enum bpf_cmd`` (<linux/bpf.h>), by number."""

READS: Final = frozenset(
    name for name in BPF
    if any(word in name for word in ("_LOOKUP_ELEM", "LOOKUP_BATCH", "GET", "QUERY", "TEST_RUN"))
)  # fmt: skip
"""Commands of bpf(2) that change nothing."""

PRIVATE: Final = frozenset({"MAP_CREATE", "PROG_LOAD", "BTF_LOAD", "PROG_BIND_MAP"})
"""What they make is behind a descriptor of the process only, and goes with it."""

MAKES: Final = PRIVATE | {"LINK_CREATE", "RAW_TRACEPOINT_OPEN"}
"""Commands whose answer is a descriptor of something new."""

CONTENT: Final = ("MAP_UPDATE_ELEM", "MAP_DELETE_ELEM", "MAP_FREEZE")
"""Commands that change a map, which may be one of the process's own that nobody else has yet."""

_SOL_SOCKET, _SO_ATTACH_BPF, _SO_DETACH = 1, 50, 27
_ROUTE = {
    16: "RTM_NEWLINK", 17: "RTM_DELLINK", 19: "RTM_SETLINK", 36: "RTM_NEWQDISC",
    37: "RTM_DELQDISC", 44: "RTM_NEWTFILTER", 45: "RTM_DELTFILTER",
}  # fmt: skip
Memory = Callable[[int, int], bytes]
"""(address, size) -> what the traced process has there, or what of it could be read."""


@dataclass(frozen=True, slots=True)
class Call:
    """One system call: what it is, and whether anybody but its process could tell that it was."""

    text: str
    private: bool = False
    reads: bool = False
    """It changes nothing at all."""
    fd: int | None = None
    """The descriptor that a command of bpf(2) pins, or changes the content of."""


def describe(name: str, args: tuple[int, ...], memory: Memory) -> Call:
    """What a call is, from its number's name and its arguments at the entry."""
    if name == "bpf":
        return _bpf(args, memory)
    if name == "sendto":
        return _netlink(memory(args[1], min(args[2], 16)))
    if name == "setsockopt":
        public = args[1] == _SOL_SOCKET and args[2] in (_SO_ATTACH_BPF, _SO_DETACH)
        return Call(f"setsockopt {args[1]} {args[2]}", private=not public)
    at = [i for i in _PATHS.get(name, ()) if i < len(args)]
    return Call(" ".join([name, *(_path(memory, args[i]) for i in at)]))


_PATHS = {
    "mkdir": (0,), "rmdir": (0,), "unlink": (0,), "rename": (0, 1), "link": (0, 1),
    "symlink": (0, 1), "mkdirat": (1,), "unlinkat": (1,), "renameat": (1, 3), "renameat2": (1, 3),
    "linkat": (1, 3), "symlinkat": (0, 2),
}  # fmt: skip


def _path(memory: Memory, address: int) -> str:
    return memory(address, 512).split(b"\0", 1)[0].decode("utf-8", "replace")


def command_of(number: int) -> str:
    """The name of a command of bpf(2)."""
    return BPF[number] if number < len(BPF) else f"command {number}"


def _bpf(args: tuple[int, ...], memory: Memory) -> Call:
    command = command_of(args[0])
    text, fd = f"bpf {command}", None
    if command == "OBJ_PIN":
        address, fd = struct.unpack("=QI", memory(args[1], 12))
        text += f" {_path(memory, address)}"
    elif command in CONTENT:
        (fd,) = struct.unpack("=I", memory(args[1], 4))
    return Call(text, private=command in PRIVATE, reads=command in READS, fd=fd)


def _netlink(header: bytes) -> Call:
    if len(header) < 16:
        return Call("sendto")
    kind = struct.unpack_from("=IH", header)[1]
    # rtnetlink numbers come in fours: NEW, DEL, GET, SET
    return Call(f"sendto {_ROUTE.get(kind, f'netlink {kind}')}", reads=kind % 4 == 2)

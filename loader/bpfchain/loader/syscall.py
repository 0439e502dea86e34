"""The system call bpf(2) through ctypes, and the file descriptors that it hands out."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import resource
import warnings
from types import TracebackType
from typing import Final, Self

from bpfchain.loader.uapi import GET_ID, INFO, OBJ, OBJ_NAME_LEN, Cmd

# <asm/unistd.h> of each architecture that a kernel of the matrix may run on.
_NUMBERS: Final = {
    "x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "s390x": 351,
    "ppc64le": 361, "ppc64": 361, "armv7l": 386, "i686": 357,
}  # fmt: skip

_NUMBER: Final = _NUMBERS.get(platform.machine(), 0)

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_ulong)
_syscall.restype = ctypes.c_long


class BpfError(OSError):
    """bpf(2) said no. ``errno`` as in :class:`OSError`, ``command`` the kernel's name of it."""

    def __init__(self, number: int, command: str, what: str = "") -> None:
        super().__init__(number, os.strerror(number))
        self.command = command
        self.what = what

    def __str__(self) -> str:
        name = errno.errorcode.get(self.errno or 0, str(self.errno))
        subject = f" {self.what}" if self.what else ""
        # 524 is the kernel's own ENOTSUPP, which no libc has a text for.
        text = "not supported by the kernel" if self.errno == 524 else self.strerror
        return f"{self.command}{subject}: {text} ({'ENOTSUPP' if self.errno == 524 else name})"


def bpf(cmd: Cmd, attr: bytearray, what: str = "") -> int:
    """Make the system call bpf with ``attr``, which it may change.

    ``attr`` is laid out as :class:`bpfchain.loader.uapi.Layout` says.
    ``what`` names the object for the message. Returns the kernel's answer (a file descriptor for
    the commands that make one). Raises :class:`BpfError`. Before 5.11 maps and programs count as
    locked memory and too little of it is EPERM: then the limit is lifted and the call repeated.
    """
    answer, number = _call(cmd, attr)
    if number == errno.EPERM and cmd in (Cmd.MAP_CREATE, Cmd.PROG_LOAD) and lift_memlock():
        answer, number = _call(cmd, attr)
    if number:
        raise BpfError(number, f"BPF_{cmd.name}", what)
    return answer


def _call(cmd: Cmd, attr: bytearray) -> tuple[int, int]:
    if not _NUMBER:
        raise BpfError(errno.ENOSYS, f"BPF_{cmd.name}", f"on {platform.machine()}")
    buffer = ctypes.c_char.from_buffer(attr)
    answer: int = _syscall(_NUMBER, cmd, ctypes.addressof(buffer), len(attr))
    return answer, ctypes.get_errno() if answer < 0 else 0


def lift_memlock() -> bool:
    """Raise RLIMIT_MEMLOCK, to infinity or at least as far as allowed without CAP_SYS_RESOURCE.

    False if that changes nothing.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    for limit in (resource.RLIM_INFINITY, hard):
        if soft == limit:
            return False
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
            return True
        except (OSError, ValueError):
            continue
    return False


def copy_in(data: bytes) -> tuple[int, object]:
    """Address of a copy of ``data`` (0 for none), and what must be kept alive meanwhile."""
    if not data:
        return 0, None
    buffer = ctypes.create_string_buffer(data, len(data))
    return ctypes.addressof(buffer), buffer


def object_name(name: str) -> bytes:
    """``name`` as the kernel takes it: ValueError if too long or with other characters."""
    raw = name.encode()
    if len(raw) >= OBJ_NAME_LEN or any(not (c.isalnum() or c in "_.") for c in name):
        raise ValueError(
            f"{name!r} is no name for a BPF object: at most {OBJ_NAME_LEN - 1} of [A-Za-z0-9_.]"
        )
    return raw


class Fd:
    """Owner of one file descriptor of a BPF object: closes it once, also as a context manager."""

    kind: str = ""
    """What /proc/self/fd calls such a descriptor (``bpf-map``, ``bpf-prog``); empty: anything."""

    def __init__(self, fd: int) -> None:
        """Takes ``fd`` over; it is closed also when this raises TypeError (another kind)."""
        self._fd = -1  # until it is known to be a descriptor at all
        found = descriptor_kind(fd)
        self._fd = fd
        if self.kind and found and found.replace("_", "-") != self.kind:
            self.close()
            raise TypeError(f"file descriptor {fd} is a {found}, not a {self.kind}")

    def fileno(self) -> int:
        """The descriptor, still owned by this object. ValueError once closed."""
        if self._fd < 0:
            raise ValueError(f"this {self.kind or 'descriptor'} is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        """True once :meth:`close` was called."""
        return self._fd < 0

    def close(self) -> None:
        """Close the descriptor; further calls do nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def __del__(self) -> None:
        # A forgotten descriptor keeps a program or a map in the kernel.
        if getattr(self, "_fd", -1) >= 0:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} fd={'closed' if self._fd < 0 else self._fd}>"

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Give the object a name in a bpffs (BPF_OBJ_PIN). EEXIST if the path is taken."""
        address, keep = copy_in(os.fsencode(path) + b"\0")
        attr = OBJ.pack(pathname=address, bpf_fd=self.fileno())
        bpf(Cmd.OBJ_PIN, attr, os.fspath(path))
        del keep

    @classmethod
    def get_pinned(cls, path: str | os.PathLike[str]) -> Self:
        """Open what is pinned at ``path`` (BPF_OBJ_GET). TypeError if it is of another kind."""
        address, keep = copy_in(os.fsencode(path) + b"\0")
        fd = bpf(Cmd.OBJ_GET, OBJ.pack(pathname=address), os.fspath(path))
        del keep
        return cls(fd)


def duplicate(fd: int) -> int:
    """A second descriptor for the same object, closed on exec."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def descriptor_kind(fd: int) -> str:
    """``bpf-map``, ``bpf-prog``, ``bpf_link`` …; empty where /proc is not mounted."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}").removeprefix("anon_inode:")
    except FileNotFoundError:
        os.fstat(fd)  # a closed descriptor is an error, a missing /proc is not
        return ""


def object_info(fd: int, info: bytearray, what: str) -> None:
    """Fill ``info`` in place by BPF_OBJ_GET_INFO_BY_FD; an older kernel leaves its end zero."""
    buffer = (ctypes.c_char * len(info)).from_buffer(info)
    attr = INFO.pack(bpf_fd=fd, info_len=len(info), info=ctypes.addressof(buffer))
    bpf(Cmd.OBJ_GET_INFO_BY_FD, attr, what)


def fd_by_id(cmd: Cmd, number: int) -> int:
    """A descriptor for an object's id (the ``*_GET_FD_BY_ID`` commands; needs CAP_SYS_ADMIN)."""
    return bpf(cmd, GET_ID.pack(start_id=number), f"id {number}")

"""Socket filters: a program on one open socket (SO_ATTACH_BPF).

The kernel tells of such a filter only that there is one, not which.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from bpfchain.loader.hooks.explain import attach_error
from bpfchain.loader.hooks.protocol import Attachment, Foreign, Target
from bpfchain.loader.programs import Program
from bpfchain.loader.uapi import SO_ATTACH_BPF, SO_ATTACH_FILTER, SO_DETACH_FILTER, SO_LOCK_FILTER
from bpfchain.transform.errors import HostError, UsageError

_libc = ctypes.CDLL(None, use_errno=True)


def filter_kind(fd: int) -> str | None:
    """``bpf``, ``classic`` or None: what kind of filter a socket has. UsageError: no socket."""
    # With no room the kernel answers with the number of classic instructions, and refuses for BPF.
    # (Python's own getsockopt gives a length in bytes, where the kernel counts instructions.)
    size = ctypes.c_uint32(0)
    if _libc.getsockopt(fd, socket.SOL_SOCKET, SO_ATTACH_FILTER, None, ctypes.byref(size)) == 0:
        return "classic" if size.value else None
    number = ctypes.get_errno()
    if number == errno.EACCES:
        return "bpf"
    raise UsageError(f"descriptor {fd} is not a socket: {os.strerror(number)}")


class SocketAttachment:
    """A filter on a socket; it ends with the socket."""

    pinnable = False
    lasts = True

    def __init__(self, target: Target, program: int | None) -> None:
        self.target = target
        self._program = program

    @property
    def program_id(self) -> int | None:
        """The id that was attached here, if a filter is still there; None: found, so unknown."""
        return self._program if filter_kind(_fd(self.target)) == "bpf" else 0

    def swap(self, new: Program, old: Program) -> None:
        """Exchange the filter in one step. Whether ``old`` is there can be told only as far as
        this process attached it."""
        found, expected = self.program_id, old.info().id
        if found not in (None, expected):
            raise HostError(f"{self.target} has no filter any more" if not found else
                            f"{self.target} has program {found}, not {expected}")  # fmt: skip
        _attach(new, self.target)
        self._program = new.info().id

    def detach(self) -> None:
        """Take the filter away (SO_DETACH_FILTER)."""
        with _socket(self.target) as one:
            try:
                one.setsockopt(socket.SOL_SOCKET, SO_DETACH_FILTER, 0)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise attach_error(error, self.target) from error

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Nothing: the filter belongs to the socket."""

    def unpin(self, path: str | os.PathLike[str]) -> None:
        """Nothing: there is no pin."""

    def close(self) -> None:
        """Nothing: the socket is the caller's."""


class SocketDriver:
    """Attaches to a socket that the caller holds. One filter a socket."""

    swaps = True
    holds_array = False
    shared = False

    def attach(self, program: Program, target: Target, *, force: bool = False) -> Attachment:
        """Attach; a filter that is there is replaced only with ``force``."""
        there = self.foreign(target, ())
        if there and not force:
            raise attach_error(OSError(errno.EBUSY, ""), target, there)
        _attach(program, target)
        return SocketAttachment(target, program.info().id)

    def find(
        self, target: Target, *, pin: Path | None = None, own: Collection[int] = ()
    ) -> Attachment | None:
        """Whatever BPF filter the socket has: the kernel does not tell whose."""
        return SocketAttachment(target, None) if filter_kind(_fd(target)) == "bpf" else None

    def foreign(self, target: Target, own: Collection[int]) -> tuple[Foreign, ...]:
        """A filter, unless the chain has programs (``own``): then a BPF filter is taken for it."""
        kind = filter_kind(_fd(target))
        if kind is None or (kind == "bpf" and own):
            return ()
        what = (
            "a BPF filter, the kernel does not tell which" if kind == "bpf" else "a classic filter"
        )
        return (Foreign("socket filter", None, None, what, exclusive=True),)


def _fd(target: Target) -> int:
    assert target.fd is not None, "the target is a socket"
    return target.fd


@contextmanager
def _socket(target: Target) -> Iterator[socket.socket]:
    with socket.socket(fileno=os.dup(_fd(target))) as one:
        yield one


def _attach(program: Program, target: Target) -> None:
    with _socket(target) as one:
        try:
            one.setsockopt(socket.SOL_SOCKET, SO_ATTACH_BPF, program.fileno())
        except OSError as error:
            if error.errno == errno.EPERM and one.getsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER):
                raise HostError(
                    f"cannot attach to {target}: its filter is locked (SO_LOCK_FILTER)"
                ) from error
            raise attach_error(error, target) from error

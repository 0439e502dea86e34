"""Files of the command line: reading IN, writing OUT whole or not at all, ``-`` for the streams."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bpfchain.transform.errors import BpfchainError, HostError, UsageError, nearest

__all__ = ["STREAM", "Pending", "host_error", "pending_output", "read_input"]

STREAM = "-"
"""The name that stands for stdin or stdout."""
INPUT_MAX = 256 << 20
"""Bytes; more is no object that a kernel takes."""


def read_input(name: str) -> bytes:
    """The bytes of IN. Raises UsageError for a file that is not there, HostError otherwise."""
    if name == STREAM:
        if sys.stdin.isatty():
            raise UsageError("IN is - and stdin is a terminal", "give a file, or pipe an object in")
        return _bounded(sys.stdin.buffer.read(INPUT_MAX + 1), "stdin")
    try:
        with open(name, "rb") as file:
            return _bounded(file.read(INPUT_MAX + 1), name)
    except FileNotFoundError:
        raise UsageError(f"{name}: no such file", _nearest_file(name)) from None
    except OSError as error:
        raise host_error(name, error) from None


def _bounded(data: bytes, name: str) -> bytes:
    if len(data) > INPUT_MAX:
        raise UsageError(f"{name}: larger than {INPUT_MAX >> 20} MB: not a BPF object")
    return data


def _nearest_file(name: str) -> str | None:
    path = Path(name)
    try:
        names = [entry.name for entry in os.scandir(path.parent)]
    except OSError:
        return f"there is no folder {path.parent}"
    close = nearest(path.name, names)
    return f"did you mean {path.with_name(close)}?" if close else None


def host_error(name: str, error: OSError) -> BpfchainError:
    """What the file system said, as an error of exit code 5."""
    return HostError(f"{name}: {(error.strerror or str(error)).lower()}")


class Pending:
    """An output that is complete but not yet in place; ``commit`` puts it there at once."""

    def __init__(self, name: str, temporary: Path | None, data: bytes) -> None:
        self._name, self._temporary, self._data = name, temporary, data

    def commit(self) -> None:
        """Make the output visible. Raises HostError."""
        try:
            if self._temporary is None:
                sys.stdout.buffer.write(self._data)
                sys.stdout.buffer.flush()
            else:
                os.replace(self._temporary, self._name)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise host_error(self._name, error) from None


def check_output(name: str) -> None:
    """Refuse an OUT that cannot be written, before any work. Raises UsageError."""
    if name == STREAM:
        if sys.stdout.isatty():
            raise UsageError(
                "-o - would write an object to the terminal", "pipe it, or name a file"
            )
        return
    if os.path.isdir(name):
        raise UsageError(
            f"{name} is a folder", f"name a file in it: -o {os.path.join(name, 'link.o')}"
        )
    folder = os.path.dirname(name) or "."
    if not os.path.isdir(folder):
        raise UsageError(f"{name}: there is no folder {folder}")


@contextmanager
def pending_output(name: str, data: bytes) -> Iterator[Pending]:
    """Write ``data`` beside ``name`` under a temporary name; on leaving without ``commit`` nothing
    of it stays, and an older file of that name stays as it was. Raises HostError."""
    if name == STREAM:
        yield Pending(name, None, data)
        return
    special = os.path.exists(name) and not os.path.isfile(name)
    if special:  # /dev/null, a pipe: there is nothing to replace
        try:
            with open(name, "wb") as file:
                file.write(data)
        except OSError as error:
            raise host_error(name, error) from None
        yield _Written()
        return
    target = os.path.realpath(name)  # a link keeps pointing where it points
    temporary = Path(f"{os.path.dirname(target)}/.{os.path.basename(target)}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:  # mode: a new file's, by the umask
                file.write(data)
        except OSError as error:
            raise host_error(name, error) from None
        yield Pending(target, temporary, data)
    finally:
        temporary.unlink(missing_ok=True)


class _Written(Pending):
    def __init__(self) -> None:
        super().__init__("", None, b"")

    def commit(self) -> None:
        """Nothing is left to do."""

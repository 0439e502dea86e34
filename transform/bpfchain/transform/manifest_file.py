"""Manifest files: canonical text, atomic writing, and one record at a time under a lock.

A link's record never depends on what the file said before, so ``make -j`` may build the links of a
chain in any order and gets the same bytes. Nothing here reads a clock to write it down.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from .document import parse_json
from .errors import HostError
from .manifest import Manifest, new_manifest
from .manifest_link import LinkRecord, ManifestError

__all__ = [
    "dumps",
    "loads",
    "lock_path",
    "locked",
    "object_path",
    "read_manifest",
    "record_link",
    "write_manifest",
]

SIZE_MAX = 16 << 20
"""Bytes of a manifest that are read; 33 links take less than 1 MB."""
LOCK_SECONDS = 60.0
"""How long to wait for other writers: each holds the lock for milliseconds."""


def dumps(manifest: Manifest) -> str:
    """The canonical text: keys sorted, two spaces, one newline at the end. Raises ManifestError
    for a manifest that is not valid."""
    manifest.validate()
    return (
        json.dumps(
            manifest.to_dict(), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False
        )
        + "\n"
    )


def loads(data: bytes) -> Manifest:
    """Read a manifest's text. Raises ManifestError."""
    return Manifest.from_dict(parse_json(data, ManifestError))


def read_manifest(path: Path) -> Manifest:
    """Read a manifest file. Raises ManifestError with the file's name, HostError."""
    try:
        with path.open("rb") as stream:
            data = stream.read(SIZE_MAX + 1)
    except OSError as error:
        raise HostError(f"{path}: cannot read the manifest: {error.strerror}") from None
    if len(data) > SIZE_MAX:
        raise ManifestError(f"{path}: is larger than {SIZE_MAX >> 20} MiB: not a manifest")
    try:
        return loads(data)
    except ManifestError as error:
        raise error.within(str(path)) from None


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Put the manifest there, in one step: readers see the old file or the new one.

    For a whole chain; ``record_link`` is for one link. Raises ManifestError, HostError.
    """
    text = dumps(manifest)
    with locked(path):
        _replace(path, text)


def record_link(
    path: Path, chain_name: str | None, record: LinkRecord, *, seconds: float = LOCK_SECONDS
) -> Manifest:
    """Put one link's record into the manifest file, making the file where there is none.

    Other links' records stay as they are; one of the same index is replaced. ``chain_name`` None
    keeps the name that is there, or takes the file's name without its suffix. Raises ManifestError
    where the record is not valid, where the file is no manifest, or where it is one of another
    chain, hook, mode or slots map; HostError where the file system or another writer is in the way.
    Then nothing was written.
    """
    fresh = new_manifest(chain_name or path.stem, record)
    fresh.validate()  # before the lock: others need not wait for it
    with locked(path, seconds=seconds):
        merged = fresh
        if os.path.lexists(path):
            known = read_manifest(path)
            if chain_name not in (None, known.chain):
                raise ManifestError(
                    f"{path}: is the manifest of chain {known.chain}, not of {chain_name}",
                    "name another manifest file, or remove this one",
                )
            try:
                merged = known.with_record(record)
            except ManifestError as error:
                raise error.within(str(path)) from None
        _replace(path, dumps(merged))
    return merged


def object_path(manifest: Path, object_file: Path) -> str:
    """How the manifest file names an object file: relative to its own folder, with ``/``."""
    return Path(os.path.relpath(object_file, manifest.parent)).as_posix()


def lock_path(path: Path) -> Path:
    """The lock of a manifest file: ``.NAME.lock`` beside it."""
    return path.with_name(f".{path.name}.lock")


@contextlib.contextmanager
def locked(path: Path, *, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Be the only writer of that manifest file. Raises HostError after waiting ``seconds``.

    The lock is on an open file: a killed process lets go of it, and what it leaves (an empty
    ``.NAME.lock``) is in nobody's way.
    """
    lock = lock_path(path)
    until = time.monotonic() + seconds
    handle = _acquire(lock, until)
    try:
        yield
    finally:
        # while held: whoever waits for this very file sees that it is gone, and begins again
        with contextlib.suppress(OSError):
            lock.unlink()
        os.close(handle)


def _acquire(lock: Path, until: float) -> int:
    while True:
        try:
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise HostError(f"{lock}: cannot make the lock: {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, lock):
                return handle
        except BlockingIOError:
            if time.monotonic() > until:
                os.close(handle)
                raise HostError(
                    f"{lock}: another process holds the lock",
                    "wait for it to end; a file that no process holds open locks nothing",
                ) from None
            time.sleep(0.005)
        except OSError as error:
            os.close(handle)
            raise HostError(f"{lock}: cannot lock: {error.strerror}") from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_at(handle: int, lock: Path) -> bool:
    """Whether the locked file is still the one of that name: its holder before us removed it."""
    try:
        return os.path.samestat(os.fstat(handle), lock.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        try:
            # O_EXCL: not through a link that someone put there; the umask decides the mode
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with os.fdopen(os.open(temporary, flags, 0o666), "wb") as stream:
                stream.write(text.encode())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise HostError(f"{path}: cannot write the manifest: {error.strerror}") from None

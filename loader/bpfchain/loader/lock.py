"""One writer at a time for each target: a lock on a folder of the bpffs, and who holds it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bpfchain.loader.caps import permission_hint
from bpfchain.transform.errors import BpfchainError, HostError

BPF_FS_MAGIC: Final = 0xCAFE4A11

_libc = ctypes.CDLL(None, use_errno=True)


def host_error(error: OSError, what: str) -> BpfchainError:
    """What the file system or the kernel said about ``what``."""
    hint = None
    if error.errno in (errno.EPERM, errno.EACCES):
        hint = permission_hint(("CAP_BPF", "CAP_NET_ADMIN"))
        if isinstance(error, PermissionError) or error.errno == errno.EACCES:
            hint = "run it as the user whom the bpffs belongs to, or as root"
    return HostError(f"{what}: {(os.strerror(error.errno or 0)).lower()}", hint)


def is_bpffs(path: Path) -> bool:
    """Whether ``path`` lies on a bpffs (statfs(2)). Raises OSError."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statfs(os.fsencode(path), buffer):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    # f_type is the first member: a long, or an int on s390x.
    return int.from_bytes(buffer.raw[:4], "little" if _little() else "big") == BPF_FS_MAGIC


def _little() -> bool:
    return bool(memoryview(b"\1\0").cast("H")[0] == 1)


def check_bpffs(bpffs: Path) -> None:
    """Raises HostError unless ``bpffs`` is the mount point of, or a folder in, a bpffs."""
    try:
        found = is_bpffs(bpffs)
    except OSError as error:
        raise HostError(
            f"{bpffs}: {(error.strerror or '').lower()}", f"mount -t bpf bpf {bpffs}"
        ) from None
    if not found:
        raise HostError(f"{bpffs} is not a bpffs", f"mount -t bpf bpf {bpffs}")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only writer in ``folder``, which is made where it is not there.

    On leaving, the folder and empty ones above it up to the mount point's own are removed if
    nothing is in them. Raises HostError at once if another process holds the lock, naming it.
    The lock goes with the process, however it ends.
    """
    handle = _acquire(folder)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # not empty, or not ours
            folder.rmdir()  # while held: see _acquire
            for above in list(folder.parents)[:3]:
                above.rmdir()
        os.close(handle)


def sweep(root: Path) -> None:
    """Remove folders in which nothing is: one that was killed while it made them left them.

    Those that somebody holds stay; one that is about to make a folder in them begins again.
    """
    for folder in list(root.glob("*/*/*")):
        with contextlib.suppress(HostError, OSError):
            if not os.listdir(folder):
                with locked(folder):
                    pass
    for folder in (*root.glob("*/*"), *root.glob("*"), root):
        with contextlib.suppress(OSError):  # not empty, or not ours
            folder.rmdir()


def _acquire(folder: Path) -> int:
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # another one cleaned up between the two calls
        except OSError as error:
            for above in list(folder.parents)[:3]:  # what was made of it before it failed
                with contextlib.suppress(OSError):
                    above.rmdir()
            raise host_error(error, str(folder)) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(handle, folder):
                return handle
        except BlockingIOError:
            who = holder(folder)
            os.close(handle)
            raise HostError(
                f"{who or 'another process'} is changing chains here ({folder})",
                "wait for it to end; a process that was killed holds nothing",
            ) from None
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # its holder before us removed the folder: begin again


def _is_at(handle: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), folder.stat())
    except FileNotFoundError:
        return False


def holder(folder: Path) -> str | None:
    """``process 123 (bpfchain recreate …)`` if one holds the folder's lock; None: nobody, or a
    process that this one cannot see."""
    try:
        found = folder.stat()
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in lines:
        # 1: FLOCK  ADVISORY  WRITE 4242 00:1c:17 0 EOF
        fields = line.split()
        if fields[1:2] == ["FLOCK"] and device in fields[4:]:
            number = fields[fields.index(device) - 1]
            return f"process {number}{_command(number)}"
    return None


def _command(number: str) -> str:
    try:
        raw = Path(f"/proc/{number}/cmdline").read_bytes()
    except OSError:
        return ""
    words = [os.fsdecode(word) for word in raw.split(b"\0") if word]
    if len(words) > 1 and "python" in os.path.basename(words[0]):
        words = words[1:]  # the interpreter of the command
    if words:
        words[0] = os.path.basename(words[0])
    text = " ".join(words)
    return f" ({text[:80]})" if text else ""

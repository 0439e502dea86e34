"""The matrix's initramfs: the runner as process 1 and a job folder, byte for byte reproducible.

A cpio archive in the "newc" format, written here because the entries then need no root (the
console is a device node), carry no times and come in name order.
Format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import gzip
import stat
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Entry:
    """One archive member: absolute path without the slash, st_mode, content, device number."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def _member(entry: Entry, inode: int) -> bytes:
    name = entry.name.encode() + b"\0"
    fields = (
        inode,
        entry.mode,
        0,  # uid
        0,  # gid
        1,  # links
        0,  # mtime
        len(entry.data),
        0,  # major, minor of the file system
        0,
        *entry.device,
        len(name),
        0,  # checksum, unused in this variant
    )
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return _padded(head) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def archive(entries: list[Entry]) -> bytes:
    """The gzipped archive of the entries, in name order (so that folders come before files)."""
    members = [
        _member(entry, inode)
        for inode, entry in enumerate(sorted(entries, key=lambda entry: entry.name), start=1)
    ]
    raw = b"".join(members) + _member(Entry("TRAILER!!!", 0), 0)
    return gzip.compress(raw, 6, mtime=0)


def build(runner: Path, jobs: Path, config: Path) -> bytes:
    """The initramfs with `runner` as /init and everything below the folder `jobs` in /t.

    `config` is the kernel's configuration; the runner gives it the name libbpf looks for.
    """
    entries = [
        Entry("boot", stat.S_IFDIR | 0o755),
        Entry("boot/config", stat.S_IFREG | 0o644, config.read_bytes()),
        Entry("dev", stat.S_IFDIR | 0o755),
        Entry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        Entry("init", stat.S_IFREG | 0o755, runner.read_bytes()),
        Entry("t", stat.S_IFDIR | 0o755),
    ]
    for path in jobs.rglob("*"):
        name = "t/" + path.relative_to(jobs).as_posix()
        if path.is_dir():
            entries.append(Entry(name, stat.S_IFDIR | 0o755))
        else:
            entries.append(Entry(name, stat.S_IFREG | 0o644, path.read_bytes()))
    return archive(entries)

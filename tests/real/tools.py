"""Runs programs unpacked from another Debian suite, with that suite's C library and loader.

A folder holds `root/` (the unpacked packages) and two wrappers: `bpftool`, and `run`, which starts
any dynamically linked program of this machine with the folder's libraries (its libbpf, say).
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

from real.debian import FetchError

_PT_INTERP = 3


def write_wrappers(folder: Path) -> None:
    """Writes `bpftool` and `run` beside `root/`. Raises `FetchError` if root lacks a part."""
    root = folder / "root"
    bpftool = _only(root, "bpftool", ("usr/sbin/bpftool", "sbin/bpftool", "usr/bin/bpftool"))
    loader = _loader_of(root, bpftool)
    libraries = ":".join(
        f"$here/{part.relative_to(folder)}"
        for part in sorted({path.parent for path in root.rglob("lib*.so.*")})
    )
    start = (
        "#!/bin/sh\n"
        'here=$(dirname -- "$(readlink -f -- "$0")")\n'
        f'exec "$here/{loader.relative_to(folder)}" --library-path "{libraries}" '
    )
    for name, program in (("bpftool", f'"$here/{bpftool.relative_to(folder)}" '), ("run", "")):
        wrapper = folder / name
        wrapper.write_text(f'{start}{program}"$@"\n')
        wrapper.chmod(0o755)


def digests(dest: Path, folder: Path) -> dict[str, str]:
    """sha256 by path below `dest` of what a wrapper cannot do without: wrappers, bpftool, libs."""
    files = [folder / "bpftool", folder / "run"]
    for part in (folder / "root").rglob("*"):
        needed = ".so" in part.suffixes or (part.name == "bpftool" and os.access(part, os.X_OK))
        if needed and part.is_file() and not part.is_symlink():
            files.append(part)
    return {
        str(path.relative_to(dest)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(files)
    }


def _only(root: Path, what: str, candidates: tuple[str, ...]) -> Path:
    for candidate in candidates:
        if (root / candidate).is_file():
            return root / candidate
    raise FetchError(f"{what}: not where Debian puts it ({', '.join(candidates)})")


def _loader_of(root: Path, program: Path) -> Path:
    """The dynamic loader that `program` names, inside `root`.

    Found by file name: its absolute path (`/lib64/…`) is a link out of the root in some suites.
    """
    data = program.read_bytes()
    order = ">" if data[5] == 2 else "<"
    (phoff,) = struct.unpack_from(order + "Q", data, 32)
    size, count = struct.unpack_from(order + "HH", data, 54)
    for index in range(count):
        kind, _, offset, _, _, length = struct.unpack_from(
            order + "IIQQQQ", data, phoff + index * size
        )
        if kind == _PT_INTERP:
            name = Path(data[offset : offset + length].rstrip(b"\0").decode()).name
            for path in sorted(root.rglob(name)):
                if path.is_file() and path.resolve().is_relative_to(root.resolve()):
                    return path
            # bullseye: the link's target is absolute, the file beside it is ld-VERSION.so
            for path in sorted(root.rglob("ld-*.so")):
                if path.is_file() and not path.is_symlink():
                    return path
            raise FetchError(f"{program.name}: its loader {name} is not among its libraries")
    raise FetchError(f"{program.name}: names no dynamic loader")

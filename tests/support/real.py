"""Real BPF objects from Debian packages, and bpftools of several Debian releases to load them with.

`real_objects()` and the bpftools come from `.build/real`, which `tests/real/fetch.py` fills; the
first call fetches it (about 30 s, network). `load_as_is` loads one object file, patched or not, in
a mount namespace with a bpffs of its own, so pins, also those of LIBBPF_PIN_BY_NAME maps, are gone
when it returns. Programs are counted by their pins: bpftool returns 0 for objects of which it
loaded no program at all.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile

from real import fetch

DEST = fetch.DEFAULT_DEST
_SECONDS = 60  # one load; the slowest seen takes 2 s

# The new bpffs hides the machine's; nothing outside the namespace sees what is pinned in it.
_IN_NAMESPACE = """\
mount -t bpf bpf /sys/fs/bpf || exit 120
"$@" >&2
code=$?
[ ! -d /sys/fs/bpf/programs ] || ls -1 /sys/fs/bpf/programs
exit $code
"""


@dataclass(frozen=True, slots=True)
class RealObject:
    """One compiled object: its file, where it is from, its bytes.

    `version` is Debian's, epoch included; `suite` the Debian suite; `origins` the files of the
    package that contain it, as PATH@OFFSET.
    """

    path: Path
    package: str
    version: str
    name: str
    data: bytes
    suite: str
    sha256: str
    origins: tuple[str, ...]

    @property
    def label(self) -> str:
        """`PACKAGE-VERSION/NAME`, unique among all objects; the key in `as-is.json`."""
        return f"{self.path.parent.name}/{self.name}"


@dataclass(frozen=True, slots=True)
class Loader:
    """A bpftool: `bookworm`, `newest` or `bullseye`, the version of its package, how to call it."""

    name: str
    version: str
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What one load did: the pinned programs' names, sorted; if none, why; all that was said.

    libbpf 1.0 and later pin by program name, the 5.10 bpftool of bullseye by section name.
    """

    programs: tuple[str, ...]
    error: str | None
    output: str


@functools.cache
def _index() -> dict[str, Any]:
    fetch.fetch(DEST)
    index: dict[str, Any] = json.loads((DEST / "index.json").read_text())
    return index


@functools.cache
def _real_objects() -> tuple[RealObject, ...]:
    objects = []
    for entry in _index()["objects"]:
        path = DEST / entry["path"]
        objects.append(
            RealObject(
                path=path,
                package=entry["package"],
                version=entry["version"],
                name=entry["name"],
                data=path.read_bytes(),
                suite=entry["suite"],
                sha256=entry["sha256"],
                origins=tuple(entry["origins"]),
            )
        )
    return tuple(objects)


def real_objects() -> list[RealObject]:
    """All objects, in the order of the packages in `fetch.SOURCES`; fetches them if need be.

    The same bytes can be there under several packages. Raises `real.debian.FetchError`.
    """
    return list(_real_objects())


def loaders() -> list[Loader]:
    """Every bpftool that was fetched: `bookworm` and `newest` always, `bullseye` if it was there.

    Raises `real.debian.FetchError`.
    """
    return [
        Loader(tool["name"], tool["bpftool"], (str(DEST / "tools" / tool["name"] / "bpftool"),))
        for tool in _index()["tools"]
    ]


def loader(name: str) -> Loader:
    """The bpftool of that name. Raises `LookupError` if it was not fetched, with the reason."""
    for one in loaders():
        if one.name == name:
            return one
    raise LookupError(f"no bpftool {name}: {'; '.join(_index()['notes']) or 'not known'}")


def bookworm_bpftool() -> list[str]:
    """Command prefix of bookworm's bpftool (7.1, libbpf 1.1), with bookworm's own libraries."""
    return list(loader("bookworm").command)


def newest_bpftool() -> list[str]:
    """Command prefix of the newest bpftool in Debian, with the libraries of its suite."""
    return list(loader("newest").command)


def runtime(name: str = "newest") -> list[str]:
    """Command prefix that runs a program of this machine with that suite's libbpf.so.1 and libc.

    `name` is `newest` or `bookworm`. For programs linked to libbpf at run time (bpftool has a
    libbpf of its own inside). The program's own path follows; it must be dynamically linked, for
    this machine's architecture.
    """
    return [str(Path(loader(name).command[0]).with_name("run"))]


def why_no_loading() -> str | None:
    """Why this process cannot load BPF objects here, for a test's skip; None if it can try."""
    if os.geteuid() != 0:
        return "loading BPF objects needs root"
    if not Path("/sys/fs/bpf").is_dir():
        return "no /sys/fs/bpf: this kernel has no BPF file system"
    return None


def type_arguments(data: bytes) -> tuple[str, ...]:
    """The `type` arguments that bpftool needs where libbpf does not know the section's name.

    Suricata's tc objects have `filter` and `loadbalancer`. Empty for all others.
    """
    names = {section.name for section in ELFFile(io.BytesIO(data)).iter_sections()}
    return ("type", "classifier") if names & {"filter", "loadbalancer"} else ()


def load_as_is(
    loader: Loader | Sequence[str], object_path: Path | str, extra_args: Sequence[str] = ()
) -> LoadResult:
    """Runs `bpftool prog loadall OBJECT DIR [extra_args]` in a namespace with its own bpffs.

    `loader` is a `Loader` or a command prefix. Nothing stays loaded. Raises `RuntimeError` when
    the namespace or the bpffs cannot be made, which says nothing about the object.
    """
    prefix = loader.command if isinstance(loader, Loader) else tuple(loader)
    namespace = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _IN_NAMESPACE, "sh"]
    file = str(Path(object_path).absolute())
    done = subprocess.run(
        [*namespace, *prefix, "prog", "loadall", file, "/sys/fs/bpf/programs", *extra_args],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_SECONDS,
        check=False,
    )
    if done.returncode == 120 or done.stderr.startswith("unshare:"):
        raise RuntimeError(f"no mount namespace with a bpffs: {done.stderr.strip()}")
    if done.returncode != 0:
        # bpftool 5.10 can leave pins behind when a later one fails: the object did not load.
        error = useful_line(done.stderr) or f"bpftool ended with {done.returncode}, no message"
        return LoadResult((), error, done.stderr)
    programs = tuple(sorted(done.stdout.split()))
    return LoadResult(programs, None if programs else "no program in it", done.stderr)


def useful_line(output: str) -> str | None:
    """The first line of bpftool's output that names the cause; None if it says nothing.

    With a verifier log, the log's last line before its statistics is added: that is the reason.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = re.compile(r"^libbpf: .*(fail|invalid|[Ee]rror|support|unknown|can't|missing|not )")
    first = next(
        (one for one in lines if telling.match(one) and "Retrying without BTF" not in one),
        next((one for one in lines if one.startswith(("Error", "libbpf:"))), None),
    )
    if first is None:
        return lines[0] if lines else None
    for index, line in enumerate(lines):
        if line.startswith("processed ") and " insns " in line:
            return f"{first}: {lines[index - 1]}" if index else first
    return first


def as_is(refresh: bool = False) -> dict[str, dict[str, dict[str, Any]]]:
    """Which programs of each object each bpftool loads unpatched: {loader: {label: result}}.

    A result is {"programs": [...], "error": line or None, "args": [...]}. Measured once for a
    kernel and a set of objects (about 30 s), then read from `.build/real/as-is.json`.
    """
    result_file, key_file = DEST / "as-is.json", DEST / "as-is.key"
    index = _index()
    key = f"{platform.release()} {hashlib.sha256(json.dumps(index).encode()).hexdigest()}\n"
    if not refresh and key_file.exists() and key_file.read_text() == key:
        known: dict[str, dict[str, dict[str, Any]]] = json.loads(result_file.read_text())
        return known
    result = {one.name: _load_all(one, real_objects()) for one in loaders()}
    key_file.unlink(missing_ok=True)
    result_file.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
    key_file.write_text(key)
    return result


def _load_all(one: Loader, objects: Iterable[RealObject]) -> dict[str, dict[str, Any]]:
    def load(real: RealObject) -> tuple[str, dict[str, Any]]:
        args = type_arguments(real.data)
        done = load_as_is(one, real.path, args)
        entry = {"programs": list(done.programs), "error": done.error, "args": list(args)}
        return real.label, entry

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(load, objects))

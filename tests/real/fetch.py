"""Fetches real BPF objects and other versions of bpftool from Debian packages, for tests.

    python tests/real/fetch.py [DEST] [--refresh]

DEST is `.build/real` of the checkout unless given. It then holds `objects/PACKAGE-VERSION/NAME.o`,
`tools/NAME/bpftool` (wrappers that run with the libraries of their own Debian suite) and
`index.json`. A complete DEST is left as it is; an incomplete one is made anew beside it and swapped
in at the end. Exit code 1 and one line on stderr when something cannot be fetched.
Nothing fetched here belongs in the repository.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
if __package__ in (None, ""):
    sys.path.insert(0, str(TESTS))  # run as a script: `real` is found as it is under pytest

from real import carve, tools  # noqa: E402
from real.debian import FetchError, PrivateApt, Unpacked, missing_commands  # noqa: E402

DEFAULT_DEST = TESTS.parent / ".build" / "real"
RECIPE = 1  # raise it when what this script writes changes: older caches are then made anew

_NEWEST = ("sid", "testing", "stable")


@dataclass(frozen=True, slots=True)
class Source:
    """A package with BPF objects, and the suites that may have it, in order of preference."""

    package: str
    suites: tuple[str, ...]
    mandatory: bool = True


SOURCES = (
    Source("libxdp1", ("bookworm",)),
    Source("xdp-tools", ("bookworm",)),
    Source("libbpf-tools", ("bookworm",)),
    Source("suricata", _NEWEST),
    Source("xdp-tests", _NEWEST),
    Source("libxdp1", _NEWEST, mandatory=False),
    Source("xdp-tools", _NEWEST, mandatory=False),
    Source("libbpf-tools", _NEWEST, mandatory=False),
)


@dataclass(frozen=True, slots=True)
class Tool:
    """A bpftool to unpack with its libraries: its folder's name and the suites that may have it."""

    name: str
    suites: tuple[str, ...]
    packages: tuple[str, ...] = ("bpftool", "libbpf1")
    mandatory: bool = True


TOOLS = (
    Tool("bookworm", ("bookworm",)),
    Tool("newest", _NEWEST),
    # The oldest loader tried; its suite leaves the mirrors some day.
    Tool("bullseye", ("bullseye",), packages=("bpftool",), mandatory=False),
)


class Fetcher:
    """One run: a scratch folder, the private apt of each suite, and what was found so far."""

    def __init__(self, dest: Path) -> None:
        """`dest` is empty or absent; all is written below it."""
        self._dest = dest
        self._scratch = dest / "scratch"
        self._apts: dict[str, PrivateApt | FetchError] = {}
        self.notes: list[str] = []

    def run(self) -> None:
        """Fetches everything and writes `index.json` last. Raises `FetchError`."""
        entries: list[dict[str, Any]] = []
        for source in SOURCES:
            entries += self._objects_of(source)
        index = {
            "recipe": RECIPE,
            "objects": entries,
            "tools": [entry for tool in TOOLS if (entry := self._tool(tool)) is not None],
            "notes": self.notes,
        }
        shutil.rmtree(self._scratch)
        (self._dest / "index.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")

    def _apt(self, suite: str) -> PrivateApt:
        if suite not in self._apts:
            try:
                self._apts[suite] = PrivateApt(self._scratch / "apt" / suite, suite)
            except FetchError as error:
                self._apts[suite] = error
        apt = self._apts[suite]
        if isinstance(apt, FetchError):
            raise apt
        return apt

    def _objects_of(self, source: Source) -> list[dict[str, Any]]:
        errors = []
        for suite in source.suites:
            into = self._scratch / "unpacked" / f"{source.package}-{suite}"
            try:
                return self._carve(self._apt(suite).unpack(source.package, into))
            except FetchError as error:
                errors.append(str(error))
        return self._missing(source.mandatory, source.package, errors)

    def _missing(self, mandatory: bool, name: str, errors: list[str]) -> list[dict[str, Any]]:
        reason = "; ".join(errors)
        if mandatory:
            raise FetchError(reason)
        self.notes.append(f"{name} (optional) is left out: {reason}")
        print(f"fetch: {self.notes[-1]}", file=sys.stderr)
        return []

    def _carve(self, unpacked: Unpacked) -> list[dict[str, Any]]:
        """Writes each distinct object of a package; equal ones (many tools embed the same) once."""
        version = unpacked.version.split(":", 1)[-1]  # the epoch's colon is no good in a file name
        folder = Path("objects") / f"{unpacked.package}-{version}"
        (self._dest / folder).mkdir(parents=True)
        by_digest: dict[str, dict[str, Any]] = {}
        names: set[str] = set()
        for path in sorted(unpacked.root.rglob("*")):
            if path.is_symlink() or not path.is_file():
                continue
            origin = "/" + str(path.relative_to(unpacked.root))
            data = path.read_bytes()
            try:
                found = list(carve.find_objects(data))
            except carve.CarveError as error:
                raise FetchError(f"{unpacked.package} {version}: {origin}: {error}") from None
            for number, one in enumerate(found, start=1):
                piece = data[one.offset : one.offset + one.size]
                digest = hashlib.sha256(piece).hexdigest()
                where = f"{origin}@{one.offset:#x}"
                if digest in by_digest:
                    by_digest[digest]["origins"].append(where)
                    continue
                whole = one.offset == 0 and one.size == len(data)
                name = path.stem if whole else f"{path.name}-{number}"
                if name in names:
                    name = f"{path.parent.name}-{name}"
                names.add(name)
                target = folder / f"{name}.o"
                if (self._dest / target).exists():
                    raise FetchError(f"{unpacked.package} {version}: two objects named {name}")
                (self._dest / target).write_bytes(piece)
                by_digest[digest] = {
                    "path": str(target),
                    "name": name,
                    "package": unpacked.package,
                    "version": unpacked.version,
                    "suite": unpacked.suite,
                    "sha256": digest,
                    "size": one.size,
                    "big_endian": one.big_endian,
                    "origins": [where],
                }
        if not by_digest:
            raise FetchError(f"{folder.name} ({unpacked.suite}): no BPF object in it")
        return list(by_digest.values())

    def _tool(self, tool: Tool) -> dict[str, Any] | None:
        errors = []
        for suite in tool.suites:
            folder = self._dest / "tools" / tool.name
            try:
                parts = self._apt(suite).unpack_with_libraries(tool.packages, folder / "root")
                tools.write_wrappers(folder)
                versions = {part.package: part.version for part in parts}
                return {
                    "name": tool.name,
                    "suite": suite,
                    "bpftool": versions["bpftool"],
                    "libbpf1": versions.get("libbpf1"),  # bpftool itself has its own libbpf inside
                    "files": tools.digests(self._dest, folder),
                }
            except FetchError as error:
                errors.append(str(error))
                shutil.rmtree(folder, ignore_errors=True)
        self._missing(tool.mandatory, f"bpftool of {tool.name}", errors)
        return None


def problem_with(dest: Path) -> str | None:
    """Why `dest` is no complete cache of this recipe; None if it is one."""
    try:
        index = json.loads((dest / "index.json").read_text())
    except FileNotFoundError:
        return "not fetched yet"
    except ValueError as error:
        return f"index.json is damaged: {error}"
    if index.get("recipe") != RECIPE:
        return "written by another version of this script"
    files = {entry["path"]: entry["sha256"] for entry in index["objects"]}
    for tool in index["tools"]:
        files.update(tool["files"])
    for path, digest in files.items():
        try:
            if hashlib.sha256((dest / path).read_bytes()).hexdigest() != digest:
                return f"{path} was changed"
        except OSError as error:
            return f"{path}: {error.strerror}"
    return None


def fetch(dest: Path = DEFAULT_DEST, refresh: bool = False) -> None:
    """Makes `dest` complete, under a lock, so that parallel test runs fetch once.

    `refresh` fetches again even if it is. Raises `FetchError`; `dest` is then as it was.
    """
    dest = dest.absolute()
    dest.parent.mkdir(parents=True, exist_ok=True)
    with open(dest.with_name(dest.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not refresh and problem_with(dest) is None:
            return
        if lacking := missing_commands():
            raise FetchError(f"{' and '.join(lacking)} not found: real objects need Debian's apt")
        fresh = dest.with_name(dest.name + ".new")
        old = dest.with_name(dest.name + ".old")
        for left_over in (fresh, old):
            shutil.rmtree(left_over, ignore_errors=True)
        fresh.mkdir()
        try:
            Fetcher(fresh).run()
            if dest.exists():
                os.rename(dest, old)
            os.rename(fresh, dest)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def main() -> int:
    """The command: 0 when DEST is complete, 1 with one line on stderr when it cannot be made so."""
    parser = argparse.ArgumentParser(description="Fetch real BPF objects from Debian packages.")
    parser.add_argument("dest", nargs="?", type=Path, default=DEFAULT_DEST)
    parser.add_argument("--refresh", action="store_true", help="fetch again even if complete")
    options = parser.parse_args()
    try:
        fetch(options.dest, options.refresh)
    except (FetchError, OSError) as error:
        print(f"fetch: error: {error}", file=sys.stderr)
        return 1
    index = json.loads((options.dest / "index.json").read_text())
    counts: dict[str, int] = {}
    for entry in index["objects"]:
        label = f"{entry['package']} {entry['version']} ({entry['suite']})"
        counts[label] = counts.get(label, 0) + 1
    for label, count in counts.items():
        print(f"{count:4} objects  {label}")
    for tool in index["tools"]:
        extra = f", libbpf1 {tool['libbpf1']}" if tool["libbpf1"] else ""
        print(f"     bpftool  {tool['name']}: {tool['bpftool']} ({tool['suite']}){extra}")
    for note in index["notes"]:
        print(f"     note     {note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

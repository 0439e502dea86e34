"""Builds and calls the test programs that load BPF objects with cilium/ebpf and with aya.

Each program is built once into ``.build/loaders/`` (outside git). A stamp with the hash of its
sources says whether it is up to date, so that a later call needs neither network nor toolchain.
By hand: ``python tests/loaders/build.py [cilium|aya ...]``.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUILD_DIR = HERE.parent.parent / ".build" / "loaders"

BUILD_TIMEOUT = 900
"""Seconds for one build; the first one on a slow machine downloads and compiles all."""

CALL_TIMEOUT = 120
"""Seconds for one call of a program; a call takes milliseconds."""


class ToolMissing(Exception):
    """The compiler is not on this machine or too old; the text says which one is needed."""


class BuildFailed(Exception):
    """The compiler is there and refused, or could not get a library; the text is its own."""


class CallFailed(Exception):
    """A program exited with something other than 0: it could not do its work."""


@dataclass(frozen=True, slots=True)
class Tool:
    """How one of the programs is built.

    ``minimum`` is the oldest compiler that the pinned library builds with: Go's from the
    ``go`` line that cilium/ebpf 0.22 sets, Rust's from ``rust-version`` of aya 0.14.
    """

    name: str
    binary: str
    compiler: str
    version_command: tuple[str, ...]
    minimum: tuple[int, int]
    advice: str


TOOLS: Mapping[str, Tool] = {
    "cilium": Tool(
        "cilium",
        "ciltest",
        "go",
        ("go", "env", "GOVERSION"),
        (1, 25),
        "install Go 1.25 or newer (bookworm's golang is 1.19, too old)",
    ),
    "aya": Tool(
        "aya",
        "ayatest",
        "cargo",
        ("cargo", "--version"),
        (1, 87),
        "install Rust 1.87 or newer, cargo-web on bookworm (its cargo is 1.65, too old)",
    ),
}


def build(name: str, build_dir: Path = BUILD_DIR) -> Path:
    """Return the path of a program, built now if its sources changed.

    Raises ToolMissing or BuildFailed.
    """
    tool = TOOLS[name]
    binary = build_dir / tool.binary
    stamp = build_dir / f"{tool.binary}.sha256"
    wanted = _source_hash(HERE / name)
    build_dir.mkdir(parents=True, exist_ok=True)
    with _locked(build_dir / f"{tool.binary}.lock"):
        if binary.is_file() and stamp.is_file() and stamp.read_text() == wanted:
            return binary
        _check_compiler(tool)
        stamp.unlink(missing_ok=True)
        if name == "cilium":
            _build_go(binary)
        else:
            _build_rust(binary, build_dir / "aya-target")
        stamp.write_text(wanted)
    return binary


def call(name: str, *args: str | Path) -> list[dict[str, Any]]:
    """Build if needed, run a program, return its JSON lines. Root is needed but for ``info``.

    Raises what build raises, and CallFailed with the program's own line.
    """
    command = [str(build(name)), *map(str, args)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=CALL_TIMEOUT, check=False
    )
    if done.returncode != 0:
        raise CallFailed(f"{name}: exit {done.returncode}: {done.stderr.strip()}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def _build_go(binary: Path) -> None:
    flags = ["-trimpath", "-mod=readonly", "-buildvcs=false"]
    # GOTOOLCHAIN: an old go must say so, not download another one.
    env = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local"}
    _compile(["go", "build", *flags, "-o", str(binary), "."], HERE / "cilium", env)


def _build_rust(binary: Path, target_dir: Path) -> None:
    command = ["cargo", "build", "--release", "--locked", "--target-dir", str(target_dir)]
    _compile(command, HERE / "aya", dict(os.environ))
    # Under another name first: a program that is running cannot be written over.
    fresh = binary.with_suffix(".new")
    shutil.copy2(target_dir / "release" / binary.name, fresh)
    fresh.replace(binary)


def _compile(command: Sequence[str], folder: Path, env: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=BUILD_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BuildFailed(f"{folder.name}: no end after {BUILD_TIMEOUT} s: {command}") from error
    if done.returncode != 0:
        raise BuildFailed(f"{folder.name}: {' '.join(command)} failed:\n{done.stdout}")


def _check_compiler(tool: Tool) -> None:
    if shutil.which(tool.compiler) is None:
        raise ToolMissing(f"host: {tool.compiler} not found: {tool.advice}")
    done = subprocess.run(
        tool.version_command, capture_output=True, text=True, timeout=60, check=False
    )
    found = re.search(r"(\d+)\.(\d+)", done.stdout)
    if found is None:
        raise ToolMissing(f"host: {tool.compiler} gives no version: {done.stderr.strip()}")
    if (int(found[1]), int(found[2])) < tool.minimum:
        raise ToolMissing(f"host: {tool.compiler} {found[0]} is too old: {tool.advice}")


def _source_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "target" not in path.relative_to(folder).parts:
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(folder)} {content}\n".encode())
    return digest.hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep parallel test runs from building the same program at once."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Build what is named, or all; exit 5 when the host lacks a compiler, 1 on a failed build."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("tool", nargs="*", metavar="TOOL", help="cilium, aya (default: both)")
    names = parser.parse_args(arguments).tool or list(TOOLS)
    unknown = [name for name in names if name not in TOOLS]
    if unknown:
        parser.error(f"no tool {unknown[0]}: {', '.join(TOOLS)}")
    code = 0
    for name in names:
        start = time.monotonic()
        try:
            path = build(name)
        except ToolMissing as error:
            print(error, file=sys.stderr)
            code = 5
        except BuildFailed as error:
            print(error, file=sys.stderr)
            code = code or 1
        else:
            print(f"{path} ({time.monotonic() - start:.1f} s)")
    return code


if __name__ == "__main__":
    sys.exit(main())

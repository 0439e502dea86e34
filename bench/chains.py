"""Objects of chains for the benchmarks: C compiled as the corpus is, links made by the command."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ROOT / "corpus" / "programs"
MANUAL = ROOT / "bench" / "manual"
RESULTS = ROOT / ".build" / "bench"


class BuildError(Exception):
    """A chain cannot be built or did not do its work; the text is one line."""


def run(command: Sequence[str], what: str) -> str:
    """Run a command and give its stdout; raise BuildError with the line that says why it failed."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        # A traceback says it at its end, everything else in its first line.
        last = -1 if lines[0].startswith("Traceback") else 0
        raise BuildError(f"{what}: {lines[last]}")
    return done.stdout


def compile_c(source: Path, target: Path, *flags: str) -> Path:
    """Compile one BPF program as the corpus is compiled.

    The corpus Makefile's flags count for cost in -O2, -g and -mcpu=v2 only.
    """
    asm = sorted(Path("/usr/include").glob("*-linux-gnu*/asm/types.h"))
    if not asm:
        raise BuildError("no asm/types.h: apt-get install linux-libc-dev")
    includes = [f"-I{PROGRAMS / 'include'}", f"-I{asm[0].parents[1]}"]
    command = ["clang", "-target", "bpfel", "-mcpu=v2", "-g", "-O2", "-Wall", "-Werror"]
    command += [*includes, *flags, "-c", str(source), "-o", str(target)]
    run(command, f"clang {source.name}")
    return target


def transform(source: Path, index: int, target: Path, options: Sequence[str]) -> dict[str, int]:
    """Make a link with bpfchain-transform; {entry program: the slot its record names}."""
    command = [sys.executable, "-m", "bpfchain.cli.transform_main", str(source)]
    command += ["--index", str(index), "-o", str(target), "--json", *options]
    record = json.loads(run(command, f"bpfchain-transform {source.name}"))
    return {entry["program"]: entry["slot"] for entry in record["entries"]}


def first_line(command: Sequence[str]) -> str:
    """The first line that a tool prints of itself."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.partition("\n")[0]

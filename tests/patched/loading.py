"""Loads many object files with each of the loaders that nobody here wrote, and counts programs.

The loaders: bpftool of bookworm and the newest of Debian (each with a libbpf of its own inside),
cilium/ebpf, aya. bpftool is run by one shell a core, each in a mount namespace of its own with an
empty bpffs for each load; the others load a batch in one process. Programs are
counted by their pins (bpftool, which returns 0 where it loaded none) or as the library lists them.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from loaders import build
from support import real

BPFTOOLS = ("bookworm", "newest")
LIBRARIES = ("cilium", "aya")
LOADERS = BPFTOOLS + LIBRARIES

_WORKERS = 2
_BATCH = 100  # objects in one process of a library; the loaded ones are let go one by one
_SECONDS = 280

# $1: a file with lines "FILE<TAB>OUT<TAB>ARGUMENTS"; the rest is bpftool. What is pinned by name
# goes to the same empty bpffs, and is gone before the next load.
_SHELL = """\
list=$1
shift
tab=$(printf '\\t')
while IFS="$tab" read -r file out arguments; do
    mount -t bpf bpf /sys/fs/bpf || exit 120
    "$@" prog loadall "$file" /sys/fs/bpf/programs $arguments >"$out.said" 2>&1
    echo $? >"$out.code"
    ls -1 /sys/fs/bpf/programs >"$out.pins" 2>/dev/null
    umount /sys/fs/bpf || exit 121
done <"$list"
"""


@dataclass(frozen=True, slots=True)
class Job:
    """One file to load; ``type``: what bpftool must be told where the section does not say it."""

    path: Path
    type: str | None = None


@dataclass(frozen=True, slots=True)
class Loaded:
    """The programs that were loaded, by name, sorted; the loader's reason if not all were; all
    that it said."""

    programs: tuple[str, ...]
    error: str | None
    output: str = ""


def versions() -> dict[str, str]:
    """Loader -> version, for reports."""
    tools = {one.name: one.version for one in real.loaders()}
    return {name: tools[name] for name in BPFTOOLS} | {
        name: str(build.call(name, "info", __file__)[0]["loader"]) for name in LIBRARIES
    }


def load(loader: str, jobs: Iterable[Job]) -> list[Loaded]:
    """Load each file alone with that loader; the results in the order of the jobs.

    Raises RuntimeError where the loader itself could not work, which says nothing of an object.
    """
    wanted = list(jobs)
    if loader in BPFTOOLS:
        prefix = real.loader(loader).command
        parts = [wanted[start::_WORKERS] for start in range(_WORKERS)]
        with ThreadPoolExecutor(_WORKERS) as pool:
            done = list(pool.map(functools.partial(_bpftool, prefix), parts))
    else:
        build.build(loader)  # once, before two threads ask for it
        parts = [wanted[start : start + _BATCH] for start in range(0, len(wanted), _BATCH)]
        with ThreadPoolExecutor(_WORKERS) as pool:
            ordered = list(pool.map(functools.partial(_library, loader), parts))
        return [one for part in ordered for one in part]
    results: list[Loaded] = [Loaded((), "not run")] * len(wanted)
    for start, part in enumerate(done):
        results[start::_WORKERS] = part
    return results


def warnings(result: Loaded) -> set[str]:
    """What libbpf warned of, without section numbers."""
    lines = [line for line in result.output.splitlines() if line.startswith("libbpf: ")]
    return {re.sub(r"\(\d+\)", "()", line) for line in lines}


def _bpftool(prefix: Sequence[str], jobs: Sequence[Job]) -> list[Loaded]:
    if not jobs:
        return []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = []
        for number, job in enumerate(jobs):
            arguments = f"type {job.type}" if job.type else ""
            lines.append(f"{job.path.absolute()}\t{folder / str(number)}\t{arguments}\n")
        (folder / "list").write_text("".join(lines))
        namespace = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SHELL, "sh"]
        done = subprocess.run(
            [*namespace, str(folder / "list"), *prefix],
            capture_output=True, text=True, timeout=_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"no mount namespace with a bpffs: {done.stderr.strip()}")
        return [_bpftool_result(folder / str(number)) for number in range(len(jobs))]


def _bpftool_result(out: Path) -> Loaded:
    said = out.with_suffix(".said").read_text(errors="replace")
    programs = tuple(sorted(out.with_suffix(".pins").read_text().split()))
    code = int(out.with_suffix(".code").read_text())
    if code:
        return Loaded((), real.useful_line(said) or f"bpftool ended with {code}, no message", said)
    return Loaded(programs, None if programs else "no program in it", said)


def _library(name: str, jobs: Sequence[Job]) -> list[Loaded]:
    if not jobs:
        return []
    command = [str(build.build(name)), "load", *(str(job.path) for job in jobs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode or len(lines) != len(jobs):
        raise RuntimeError(f"{name}: exit {done.returncode}: {done.stderr.strip()}")
    return [
        Loaded(tuple(sorted(line["programs"])), _cause(line["error"]), line["error"] or "")
        for line in lines
    ]


def _cause(text: str | None) -> str | None:
    """The library's first line; of a verifier's log the line before its statistics is added."""
    if text is None:
        return None
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = lines[0] if lines else "an error without a text"
    for number, line in enumerate(lines):
        if line.startswith("processed ") and " insns " in line and number:
            return f"{first}: {lines[number - 1]}"
    return first

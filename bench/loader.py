#!/usr/bin/env python3
"""How long it takes until a chain is attached, and what a replace does to the frames meanwhile.

Everything happens on a veth pair in network and mount namespaces of its own. How to read the
tables: bench/README.md.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

# in the place of bench/, where this file would hide the tests' folder of its name
sys.path[0] = str(Path(__file__).resolve().parents[1] / "tests")
sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from bench.chains import RESULTS, BuildError, first_line  # noqa: E402

from bpfchain.loader.hooks import interface_target  # noqa: E402
from bpfchain.loader.operations.load import load, rehearse  # noqa: E402
from bpfchain.loader.operations.recreate import recreate  # noqa: E402
from bpfchain.loader.operations.replace import replace  # noqa: E402
from bpfchain.loader.operations.unload import unload  # noqa: E402
from bpfchain.loader.places import ChainPlace, place_of, state_root  # noqa: E402
from bpfchain.transform.policy import hook_named  # noqa: E402
from loader.load.chain import LEFT, RIGHT, Loaded, loaded  # noqa: E402
from loader.load.traffic import traffic  # noqa: E402
from support.chains import Part, source_of, write_chain  # noqa: E402
from support.commands import PROGRAMS, argv, environment  # noqa: E402
from support.kernel import BPFFS, enter_private_mounts, why_unusable  # noqa: E402
from support.nets import make_pair  # noqa: E402

_CLONE_NEWNET = 0x40000000
LINKS = (3, 33)
STEP_MS = 10
"""What the traffic counts frames by."""


@dataclass(frozen=True, slots=True)
class Row:
    """A median with its quartiles; or why there is none."""

    median: float = 0.0
    low: float = 0.0
    high: float = 0.0
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames that arrived in a millisecond while something was done ``times`` times."""

    per_ms: Row
    per_cpu_ms: float
    """The same for a millisecond of the traffic's own CPU time, in which the links run: other work on
    the machine takes nothing from it, something that a frame has to wait for would."""
    longest_batch_ms: float
    """The longest that 32 frames took from the first one's start to the last one's arrival."""
    early: int
    times: int


def timed(command: Sequence[str], environ: dict[str, str] | None = None) -> float:
    """Seconds from the start of a process to its end. Raises BuildError where it fails."""
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environ)
    seconds = time.perf_counter() - begin
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise BuildError(lines[0] if lines else f"exit {done.returncode}")
    return seconds


def bpfchain(*words: str | Path) -> float:
    """Seconds of one command."""
    return timed(argv("bpfchain", *words), environment())


def by_command(manifest: Path) -> float:
    """`bpfchain load`, as a whole process."""
    seconds = bpfchain("load", manifest, "--dev", RIGHT, "-q")
    bpfchain("unload", "edge", "-q")
    return seconds


def by_library(manifest: Path) -> float:
    """The same from a running Python: manifest and objects read, digests compared, attached."""
    begin = time.perf_counter()
    place = _load(manifest)
    seconds = time.perf_counter() - begin
    unload(place)
    return seconds


def _load(manifest: Path) -> ChainPlace:
    target = interface_target(hook_named("xdp"), RIGHT)
    place = place_of(target, "edge", state_root(BPFFS))
    load(source_of(manifest), place, target)
    return place


def by_xdp_loader(count: int) -> float:
    """`xdp-loader load` of so many programs; more than one go behind libxdp's dispatcher."""
    files = [str(PROGRAMS / "verdict_xdp.o")] * count
    seconds = timed(["xdp-loader", "load", "-m", "native", RIGHT, *files])
    timed(["xdp-loader", "unload", RIGHT, "--all"])
    return seconds


def exchanges(what: str) -> float:
    """Library calls that change a running chain of three links: seconds of one."""
    with tempfile.TemporaryDirectory() as folder, _chain(Path(folder), spin=0) as chain:
        begin = time.perf_counter()
        if what == "replace":
            replace(chain.place, *chain.links[1, 2], folder=chain.folder)
        else:
            recreate(chain.sources[2], chain.place)
        return time.perf_counter() - begin


def _chain(folder: Path, *, spin: int) -> AbstractContextManager[Loaded]:
    root = BPFFS / "bench"
    root.mkdir(exist_ok=True)
    return loaded("xdp-native", folder, root, spin, pair=False)


def measure(task: Callable[[], float], rounds: int) -> Row:
    """Median and quartiles of a task's seconds, or why it cannot be."""
    try:
        task()  # caches
        low, middle, high = statistics.quantiles([task() for _ in range(rounds)], n=4)
    except BuildError as error:
        return Row(refused=str(error))
    return Row(round(middle, 5), round(low, 5), round(high, 5))


def during(chain: Loaded, seconds: float, work: Callable[[Loaded, int], None] | None) -> Frames:
    """Traffic on a CPU of its own while ``work`` is done again and again on another one."""
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[0]})
    number = 0
    try:
        with traffic(LEFT, RIGHT, cpu=cpus[-1]) as frames:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                if work is None:
                    time.sleep(0.01)
                else:
                    work(chain, number)
                    number += 1
    finally:
        os.sched_setaffinity(0, cpus)
    seen = frames.seen
    low, middle, high = statistics.quantiles([n / STEP_MS for n in seen.steps[2:-2]], n=4)
    row = Row(round(middle, 2), round(low, 2), round(high, 2))
    per_cpu = round(seen.arrived / seen.cpu / 1000, 2)
    return Frames(row, per_cpu, round(seen.longest * 1000, 1), seen.early, number)


def _replace(chain: Loaded, number: int) -> None:
    replace(chain.place, *chain.links[1, 2 - number % 2], folder=chain.folder)


def _rehearse(chain: Loaded, _: int) -> None:
    target = chain.hook.target
    rehearse(chain.sources[2], place_of(target, "other", state_root(BPFFS)), target, force=True)


def frames(seconds: float) -> dict[str, Frames]:
    """The rows of the second table."""
    ways = {
        "nothing is done": None,
        "the same work beside it": _rehearse,
        "replaces": _replace,
    }
    with tempfile.TemporaryDirectory() as folder, _chain(Path(folder), spin=0) as chain:
        return {name: during(chain, seconds, work) for name, work in ways.items()}


def prepare() -> None:
    """Namespaces of this process's own, with a veth pair. Raises BuildError, OSError."""
    reason = why_unusable()
    if reason:
        raise BuildError(reason)
    enter_private_mounts()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
    make_pair()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the JSON; 1 where a replace ended a frame early."""
    parser = argparse.ArgumentParser(description="seconds until a chain is attached")
    parser.add_argument("--rounds", type=int, default=11, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="of traffic; default: %(default)s"
    )
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "loader.json")
    options = parser.parse_args(arguments)
    try:
        prepare()
    except (BuildError, OSError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 5
    tasks: dict[str, Callable[[], float]] = {
        "start: bpfchain --version": lambda: bpfchain("--version")
    }
    with tempfile.TemporaryDirectory() as scratch:
        for count in LINKS:
            parts = [Part("verdict_xdp")] * count
            path = write_chain(Path(scratch, str(count)), "edge", parts)
            tasks[f"bpfchain load, {count} links"] = partial(by_command, path)
            tasks[f"library, {count} links"] = partial(by_library, path)
        if shutil.which("xdp-loader"):
            tasks["xdp-loader, 3 programs"] = lambda: by_xdp_loader(3)
            tasks["xdp-loader, 1 program"] = lambda: by_xdp_loader(1)
        else:
            print("no xdp-loader (apt-get install xdp-tools): not measured")
        tasks["library: replace"] = lambda: exchanges("replace")
        tasks["library: recreate"] = lambda: exchanges("recreate")
        rows = {name: measure(task, options.rounds) for name, task in tasks.items()}
    about = {
        "kernel": platform.release(), "cpus": str(os.cpu_count()),
        "python": platform.python_version(), "load": f"{os.getloadavg()[0]:.1f}",
        "xdp-loader": first_line(["dpkg-query", "-W", "xdp-tools"]).replace("\t", " "),
    }  # fmt: skip
    print(f"Linux {about['kernel']}, {about['cpus']} CPUs, load {about['load']}, medians")
    for name, row in rows.items():
        seconds = f"{row.median:9.4f} s  {row.low:.4f}..{row.high:.4f}"
        print(f"  {name:28}{f' not on this kernel: {row.refused}' if row.refused else seconds}")
    passing = frames(options.seconds)
    for name, one in passing.items():
        print(
            f"  {name:28}{one.per_ms.median:7.1f} frames/ms  {one.per_ms.low:.1f}.."
            f"{one.per_ms.high:.1f}, {one.per_cpu_ms:.1f} per CPU ms, longest batch "
            f"{one.longest_batch_ms} ms, ended early {one.early}, {one.times} times"
        )
    document = {
        "machine": about,
        "seconds": {name: asdict(row) for name, row in rows.items()},
        "frames": {name: asdict(one) for name, one in passing.items()},
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    if any(one.early for one in passing.values()):
        print("failed: a replace ended frames early", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

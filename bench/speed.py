#!/usr/bin/env python3
"""How long bpfchain-transform takes as a whole process, from its start to its exit.

Beside it, in turn, the least that any tool of this kind would take: Python with click and pyelftools
imported; and the same command without the proof. Then ten objects one after the other, as a Makefile
has them, and generated objects of 1, 2 and 4 MB. How to read the table: bench/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.big_object import big_object
from bench.chains import PROGRAMS, RESULTS, BuildError, first_line

START_LIMIT = 2.0
"""One object with --no-verify / the start of Python with click and pyelftools, of the medians."""
PROOF_LIMIT = 0.25
"""Seconds that the proof adds to one object with the built-in corpus, of the medians."""
BIG_LIMIT = 1.0
"""Seconds for the object of 4 MB, of the median."""
GROWTH_LIMIT = 1.5
"""Seconds per MB from 2 to 4 MB / from 1 to 2 MB: 1 is linear, quadratic would be 2."""
SIZES = (1, 2, 4)
TEN = ("filter", "metrics", "log", "globals", "core_field", "static_subprog", "printk", "jmp32",
       "exits_const", "verdict_xdp")  # fmt: skip

BASE = (sys.executable, "-c", "import click, elftools.elf.elffile")
COMMAND = Path(sys.executable).with_name("bpfchain-transform")
UNPROVED = "--no-verify"
BARE = f"object, {UNPROVED}"


@dataclass(frozen=True, slots=True)
class Timing:
    """One run of one or more processes: wall time and CPU time (user and system), in seconds.

    Other work on the machine lengthens the wall time much and the CPU time little.
    """

    wall: float
    cpu: float


def environment() -> dict[str, str]:
    """With compiled modules, as pip leaves them: a development install may have none."""
    left_out = ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return kept | {"PYTHONPYCACHEPREFIX": str(RESULTS / "pycache")}


def run(*commands: Sequence[str]) -> Timing:
    """Run the commands one after the other. Raises BuildError where one fails."""
    env = environment()
    before, start = _children_cpu(), time.perf_counter()
    for command in commands:
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["nothing on stderr"]
            raise BuildError(f"{' '.join(command)}: {lines[0]}")
    return Timing(time.perf_counter() - start, _children_cpu() - before)


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def transform(source: Path, target: Path, *options: str) -> tuple[str, ...]:
    """The command line of one transformation."""
    return (str(COMMAND), str(source), "--index", "0", "-o", str(target), "-q", *options)


def interleave(tasks: Mapping[str, Callable[[], Timing]], rounds: int) -> dict[str, list[Timing]]:
    """Every task has its turn in every round; one round before that counts for nothing."""
    timings: dict[str, list[Timing]] = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, task in tasks.items():
            timing = task()
            if number:
                timings[name].append(timing)
    return timings


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds of one task: median and quartiles of the wall time, median of the CPU time."""

    wall: float
    low: float
    high: float
    cpu: float


def summarize(timings: Sequence[Timing]) -> Row:
    """Medians and quartiles."""
    low, middle, high = statistics.quantiles([t.wall for t in timings], n=4)
    cpu = statistics.median(t.cpu for t in timings)
    return Row(round(middle, 4), round(low, 4), round(high, 4), round(cpu, 4))


def growth(rows: Mapping[str, Row], sizes: Mapping[str, float]) -> float:
    """By what factor the CPU seconds per MB grow between the two steps of size."""
    (a, b, c) = sizes
    first = (rows[b].cpu - rows[a].cpu) / (sizes[b] - sizes[a])
    second = (rows[c].cpu - rows[b].cpu) / (sizes[c] - sizes[b])
    return second / first


def proof_addition(rows: Mapping[str, Row]) -> Timing:
    """What the proof of one link takes: the command with it and without, of the medians."""
    proved, bare = rows["object"], rows[BARE]
    return Timing(round(proved.wall - bare.wall, 4), round(proved.cpu - bare.cpu, 4))


def find_failures(
    rows: Mapping[str, Row], sizes: Mapping[str, float]
) -> tuple[list[str], list[str]]:
    """One line for each limit that is not kept, and for each that only the wall time breaks."""
    largest = list(sizes)[-1]
    bare, start, added = rows[BARE], rows["start"], proof_addition(rows)
    checks = [
        (f"{BARE} takes {bare.wall / start.wall:.2f} times the start",
         bare.wall / start.wall, bare.cpu / start.cpu, START_LIMIT),
        (f"the proof of one object adds {added.wall:.3f} s", added.wall, added.cpu, PROOF_LIMIT),
        *((f"{name} takes {rows[name].wall:.2f} s", rows[name].wall, rows[name].cpu, BIG_LIMIT)
          for name in (largest, f"{largest}, subprog")),
        (f"CPU seconds per MB grow {growth(rows, sizes):.2f} times", growth(rows, sizes),
         growth(rows, sizes), GROWTH_LIMIT),
    ]  # fmt: skip
    failed = [f"{what}, allowed {limit}" for what, _, cpu, limit in checks if cpu > limit]
    unsure = [
        f"{what}, allowed {limit}; CPU time alone keeps it ({cpu:.2f}): run it on a quiet machine"
        for what, wall, cpu, limit in checks
        if wall > limit >= cpu
    ]
    return failed, unsure


def print_table(rows: Mapping[str, Row]) -> None:
    """Task, seconds and the ratio to the start of Python."""
    start = rows["start"]
    print(f"  {'task':21}{'wall s':>8}  {'quartiles':15}{'/ start':>8}{'cpu s':>9}{'/ start':>8}")
    for name, row in rows.items():
        wall = f"{row.wall:8.3f}  {f'{row.low:.3f}..{row.high:.3f}':15}{row.wall / start.wall:8.2f}"
        print(f"  {name:21}{wall}{row.cpu:9.3f}{row.cpu / start.cpu:8.2f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON; 1 where something takes too long, 4 where only other
    work on the machine may be why.
    """
    parser = argparse.ArgumentParser(description="seconds of bpfchain-transform, whole process")
    parser.add_argument("--rounds", type=int, default=21, help="default: %(default)s")
    parser.add_argument("--big-rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "speed.json")
    options = parser.parse_args(arguments)
    if not COMMAND.exists():
        print(f"refused: {COMMAND} is missing: pip install -e .", file=sys.stderr)
        return 3
    memory = Path("/dev/shm")
    sizes: dict[str, float] = {}
    try:
        with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as scratch:
            out, el = Path(scratch, "out.o"), PROGRAMS / "el"
            small = interleave(
                {
                    "start": lambda: run(BASE),
                    BARE: lambda: run(transform(el / "filter.o", out, UNPROVED)),
                    "object": lambda: run(transform(el / "filter.o", out)),
                    "ten objects": lambda: run(*(transform(el / f"{n}.o", out) for n in TEN)),
                },
                options.rounds,
            )
            tasks: dict[str, Callable[[], Timing]] = {}
            for size in SIZES:
                source = Path(scratch, f"{size}.o")
                source.write_bytes(big_object(size))
                sizes[f"{size} MB"] = source.stat().st_size / (1 << 20)
                line = transform(source, out, "--program", "program_3")
                bare = (*line, UNPROVED)
                tasks[f"{size} MB"] = lambda bare=bare: run(bare)  # type: ignore[misc]
            subprog = (*bare, "--strategy", "subprog")
            tasks[f"{SIZES[-1]} MB, subprog"] = lambda: run(subprog)
            tasks[f"{SIZES[-1]} MB, proved"] = lambda: run(line)
            big = interleave(tasks, options.big_rounds)
    except (BuildError, subprocess.CalledProcessError, FileNotFoundError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 3
    rows = {name: summarize(timings) for name, timings in (small | big).items()}
    about = {
        "kernel": platform.release(),
        "cpus": str(os.cpu_count()),
        "python": platform.python_version(),
        "clang": first_line(["clang", "--version"]),
        "load": f"{os.getloadavg()[0]:.1f}",
    }
    print(f"Python {about['python']}, {about['cpus']} CPUs, load {about['load']}, medians")
    print_table(rows)
    added = proof_addition(rows)
    print(f"  the proof of one object adds {added.wall * 1000:.0f} ms ({added.cpu * 1000:.0f} CPU)")
    print(f"  {', '.join(f'{name} is {size:.2f} MB' for name, size in sizes.items())}")
    print(f"  CPU seconds per MB, 2 to 4 MB against 1 to 2 MB: {growth(rows, sizes):.2f} times")
    failures, unsure = find_failures(rows, sizes)
    document = {
        "unit": "seconds, whole process",
        "limits": {
            "start": START_LIMIT,
            "proof": PROOF_LIMIT,
            "big": BIG_LIMIT,
            "growth": GROWTH_LIMIT,
        },
        "machine": about,
        "sizes": sizes,
        "proof": {"wall": added.wall, "cpu": added.cpu},
        "growth": round(growth(rows, sizes), 3),
        "tasks": {
            name: {"wall": row.wall, "quartiles": [row.low, row.high], "cpu": row.cpu}
            for name, row in rows.items()
        },
        "failures": failures,
        "inconclusive": unsure,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    for text in unsure:
        print(f"inconclusive: {text}", file=sys.stderr)
    return 1 if failures else 4 if unsure else 0


if __name__ == "__main__":
    sys.exit(main())

"""Command: transform N mutants of the corpus and report those that end in another way than they may.

    python tests/fuzz/mutate.py 100000 [--first K] [--jobs J] [--keep DIR]
    python tests/fuzz/mutate.py --only NUMBER

Each worker is a process of its own with at most 512 MB of address space. Exit code 1 where one
ended badly; with --keep its object is saved as DIR/NUMBER.o. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / folder) for folder in ("tests", "transform")]

from support.mutate import SECONDS, judge, mutant  # noqa: E402

MEMORY = 512 << 20
"""Bytes of address space of one worker."""
_BATCH = 50


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def batch(first: int, count: int) -> tuple[Counter[str], list[tuple[int, str]], float]:
    """Outcomes, (number, what is wrong) and the longest time of ``count`` mutants from ``first``."""
    outcomes: Counter[str] = Counter()
    wrong, longest = [], 0.0
    for number in range(first, first + count):
        made = mutant(number)
        verdict = judge(made.data, made.request)
        outcomes[verdict.outcome] += 1
        longest = max(longest, verdict.seconds)
        if verdict.wrong:
            wrong.append((number, verdict.wrong))
    return outcomes, wrong, longest


def _show(number: int) -> int:
    made = mutant(number)
    verdict = judge(made.data, made.request)
    print(f"{number}: {made.base}, {'; '.join(made.damage)}\n{made.request}\n{verdict}")
    return 1 if verdict.wrong else 0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Transform mutants of the corpus.")
    parser.add_argument("count", type=int, nargs="?", default=2000)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--jobs", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--keep", type=Path, help="where to save objects that ended badly")
    parser.add_argument("--only", type=int, help="show one mutant and how it ends")
    options = parser.parse_args(arguments)
    if options.only is not None:
        return _show(options.only)
    start = time.monotonic()
    outcomes: Counter[str] = Counter()
    wrong: list[tuple[int, str]] = []
    longest = 0.0
    end = options.first + options.count
    with ProcessPoolExecutor(
        options.jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_limit
    ) as pool:
        jobs = [
            pool.submit(batch, first, min(_BATCH, end - first))
            for first in range(options.first, end, _BATCH)
        ]
        for job in jobs:
            some, bad, slowest = job.result()
            outcomes += some
            wrong += bad
            longest = max(longest, slowest)
    for number, what in wrong:
        print(f"mutant {number}: {what}", file=sys.stderr)
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"{number}.o").write_bytes(mutant(number).data)
    summary = {
        "mutants": options.count, "outcomes": dict(sorted(outcomes.items())), "wrong": wrong,
        "longest": round(longest, 3), "limit": SECONDS, "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip
    print(json.dumps(summary))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

"""Loads every real object unpatched with every bpftool, and prints what loaded.

    python tests/real/load_as_is.py [--refresh]

Writes `.build/real/as-is.json`: {loader: {object: {"programs": [...], "error": line or null}}}.
Tests of patched objects compare with it. Needs root, and the virtual environment (pyelftools).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from real.debian import FetchError
from support.real import as_is, load_as_is, loaders, real_objects, why_no_loading

__all__ = ["load_as_is", "main", "table"]


def table(results: dict[str, dict[str, dict[str, object]]]) -> list[str]:
    """One line a package: objects, then for each loader objects loaded and (programs in them)."""
    names = list(results)
    rows: dict[str, list[int]] = {}
    for real in real_objects():
        folder = real.path.parent.name
        row = rows.setdefault(folder, [0] * (1 + 2 * len(names)))
        row[0] += 1
        for column, name in enumerate(names):
            programs = results[name][real.label]["programs"]
            assert isinstance(programs, list)
            row[1 + 2 * column] += bool(programs)
            row[2 + 2 * column] += len(programs)
    lines = [f"{'package':28}{'objects':>8}" + "".join(f"{name:>14}" for name in names)]
    for folder, row in rows.items():
        cells = (f"{row[i]} ({row[i + 1]})" for i in range(1, len(row), 2))
        lines.append(f"{folder:28}{row[0]:>8}" + "".join(f"{cell:>14}" for cell in cells))
    return lines


def main() -> int:
    """The command: 0 when measured, 1 with one line on stderr when that is not possible here."""
    parser = argparse.ArgumentParser(description="Load real BPF objects unpatched.")
    parser.add_argument("--refresh", action="store_true", help="measure again even if known")
    options = parser.parse_args()
    if reason := why_no_loading():
        print(f"load_as_is: error: {reason}", file=sys.stderr)
        return 1
    try:
        results = as_is(options.refresh)
    except (FetchError, RuntimeError, OSError) as error:
        print(f"load_as_is: error: {error}", file=sys.stderr)
        return 1
    print("\n".join(table(results)))
    print("(objects loaded, programs in them in brackets)")
    for one in loaders():
        print(f"{one.name}: bpftool {one.version}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What the commands on a build's path import: a module too many there costs every object its time.

bench/speed.py measures; here is only what must never be imported (issue 3, Speed).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import environment

NEVER = {"jsonschema", "lief", "rich", "scapy", "z3"}
"""Too slow to start with, or of no use for a transformation."""

ENTRY = {
    "bpfchain-transform": "bpfchain.cli.transform_main",
    "bpfchain": "bpfchain.cli.main",
}
SCRIPT = """
import importlib, json, os, sys
module, report, *sys.argv = sys.argv[1:]
code = None
try:
    importlib.import_module(module).main()
except SystemExit as end:
    code = end.code
finally:
    with open(report, "w") as file:
        json.dump([code, sorted(sys.modules)], file)
"""


def imported(folder: Path, command: str, *arguments: str) -> set[str]:
    """The modules that are there when a successful command ends."""
    report = folder / "modules.json"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, ENTRY[command], str(report), command, *arguments],
        cwd=folder, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    code, modules = json.loads(report.read_text())
    assert code == 0, done.stderr
    return set(modules)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--json"],
        ["--manifest", "chain.json"],
        ["--strategy", "subprog", "-v"],
        ["--redirect", "REDIRECT", "--kernel", "6.1", "--arch", "arm64"],
    ],
    ids=" ".join,
)
def test_transform_imports_nothing_slow(here: Path, options: list[str]) -> None:
    modules = imported(
        here, "bpfchain-transform", "filter.o", "--index", "0", "-o", "link0.o", *options
    )
    assert (here / "link0.o").exists()
    assert {"click", "bpfchain.transform.rewrite"} <= modules, "it did not transform here"
    assert modules & NEVER == set()


def test_build_imports_nothing_slow(here: Path) -> None:
    modules = imported(here, "bpfchain", "build", "chain.toml", "-o", "chain")
    assert (here / "chain" / "link0.o").exists()
    assert "bpfchain.transform.rewrite" in modules
    assert modules & NEVER == set()

"""What the commands on a build's path import: a module too many there costs every object its time.

bench/speed.py measures; here is only what must never be imported (issue 3, Speed).
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.commands import environment

NEVER = {"asyncio", "jsonschema", "lief", "rich", "scapy"}
"""Too slow to start with, or of no use on the way to a file."""
PROOF = {"elftools", "z3", "bpfchain.emulator._ubpf"}
"""What the proof runs on."""
UNPROVED = {*PROOF, "ctypes", "bpfchain.verify", "bpfchain.emulator", "bpfchain.loader"}
"""What nothing but the proof needs."""
UNUSED = {
    "bpfchain.emulator.core_relo",  # --btf alone
    "bpfchain.emulator.jit", "bpfchain.emulator.jit_process", "subprocess",  # --engine ubpf-jit
    "bpfchain.loader",
    "bpfchain.verify.coverage", "bpfchain.verify.details", "bpfchain.verify.reports",
    "bpfchain.verify.divergence", "bpfchain.verify.minimise",  # where something differs
}  # fmt: skip
"""What a proof that holds needs nothing of."""

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


OPTIONS = pytest.mark.parametrize(
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


@OPTIONS
def test_transform_without_a_proof_imports_nothing_of_it(here: Path, options: list[str]) -> None:
    modules = imported(
        here, "bpfchain-transform", "filter.o", "--index", "0", "-o", "link0.o", "--no-verify",
        *options,
    )  # fmt: skip
    assert (here / "link0.o").exists()
    assert {"click", "bpfchain.transform.rewrite"} <= modules, "it did not transform here"
    assert modules & (NEVER | UNPROVED) == set()


@OPTIONS
def test_transform_imports_of_the_proof_what_it_runs(here: Path, options: list[str]) -> None:
    modules = imported(
        here, "bpfchain-transform", "filter.o", "--index", "0", "-o", "link0.o", *options
    )
    assert (here / "link0.o").exists()
    assert modules >= PROOF, "it did not prove here"
    told = {"bpfchain.verify.reports"} if "-v" in options else set()  # its words
    assert modules & (NEVER | UNUSED) == told


def test_build_without_a_proof_imports_nothing_of_it(here: Path) -> None:
    modules = imported(here, "bpfchain", "build", "chain.toml", "-o", "chain", "--no-verify")
    assert (here / "chain" / "link0.o").exists()
    assert "bpfchain.transform.rewrite" in modules
    assert modules & (NEVER | UNPROVED) == set()


def test_build_imports_of_the_proof_what_it_runs(here: Path) -> None:
    modules = imported(here, "bpfchain", "build", "chain.toml", "-o", "chain")
    assert (here / "chain" / "link0.o").exists()
    assert modules >= PROOF, "it did not prove here"
    assert modules & NEVER == set()


def test_the_unused_modules_exist() -> None:
    """A module that was renamed would be missed by no test above."""
    ours = [name for name in sorted(UNPROVED | UNUSED) if name.startswith("bpfchain.")]
    missing = [name for name in ours if importlib.util.find_spec(name) is None]
    assert not missing

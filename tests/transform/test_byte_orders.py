"""A big-endian object is patched exactly as its little-endian twin, judged by llvm-objdump."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object

PROGRAMS = Path(__file__).resolve().parents[2] / "corpus" / "programs"
INDEX = tomllib.loads((PROGRAMS / "index.toml").read_text())["object"]
LINKS = {entry["name"]: entry for entry in INDEX if entry["expect"] == "link"}


def disassembly(path: Path) -> str:
    done = subprocess.run(
        ["llvm-objdump", "-d", "-r", "--no-show-raw-insn", path],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return re.sub(r"^.*file format.*$", "", done.stdout, flags=re.M)


def patched(name: str, order: str, folder: Path, strategy: str) -> Path:
    entry = LINKS[name]
    request = Request(
        index=2, program=entry.get("program"), hook=entry.get("hook"), strategy=strategy
    )
    out = folder / f"{name}-{order}.o"
    data = (PROGRAMS / order / f"{name}.o").read_bytes()
    out.write_bytes(transform_object(data, request).data)
    return out


def no(entry: dict[str, object], strategy: str) -> bool:
    return str(entry.get(strategy, "")).startswith("no")


@pytest.mark.parametrize("strategy", ["inline", "subprog"])
@pytest.mark.parametrize("name", sorted(LINKS))
def test_both_byte_orders_get_the_same_instructions(
    name: str, strategy: str, tmp_path: Path
) -> None:
    if no(LINKS[name], strategy):
        strategy = "auto"
    original = {o: disassembly(PROGRAMS / o / f"{name}.o") for o in ("el", "eb")}
    got = {o: disassembly(patched(name, o, tmp_path, strategy)) for o in ("el", "eb")}
    assert got["el"] != original["el"] or name == "always_drop"
    if original["el"] == original["eb"]:
        assert got["el"] == got["eb"]
    else:  # the compiler itself made the two differ (byte swaps): as many lines must differ as before
        before = differing(original["el"], original["eb"])
        assert differing(got["el"], got["eb"]) <= before * 2


def differing(left: str, right: str) -> int:
    return len(set(left.splitlines()) ^ set(right.splitlines()))

"""Attacks on ``bpfchain verify`` as a gate: manifests that lie, streams that are gone, odd options.

Whatever happens around it, the exit code must not say "equal" of what is not, and nothing may end in
a traceback.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.commands import PROGRAMS, run

CHAIN = """\
name = "edge"
hook = "xdp"

[[link]]
object = "filter.o"
redirect = "REDIRECT"

[[link]]
object = "metrics.o"
"""
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(name="chain", scope="module")
def _chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with chain/ built from filter.o and metrics.o, and wrong.o: link 0 with a wrong slot."""
    here = tmp_path_factory.mktemp("chain")
    for name in ("filter", "metrics"):
        shutil.copy(PROGRAMS / f"{name}.o", here)
    (here / "chain.toml").write_text(CHAIN)
    assert run("bpfchain", "build", "chain.toml", "-o", "chain", "-q", cwd=here).code == 0
    wrong = bytearray((here / "chain" / "link0.o").read_bytes())
    at = wrong.index(struct.pack("<BBhi", 0x85, 0, 0, 12)) - 8
    struct.pack_into("<BBhi", wrong, at, 0xB7, 3, 0, 2)
    (here / "wrong.o").write_bytes(wrong)
    return here


# manifests that lie


def lie(chain: Path, edit: Edit) -> tuple[int, str]:
    told = json.loads((chain / "chain" / "manifest.json").read_text())
    edit(told)
    (chain / "chain" / "lie.json").write_text(json.dumps(told))
    done = run("bpfchain", "verify", "chain/lie.json", cwd=chain)
    return done.code, done.stderr


def test_a_link_without_the_entry_that_its_record_claims(chain: Path) -> None:
    """Link 1 as patched without --saved, under the record of one with it: REDIRECT would end there."""
    made = run(
        "bpfchain-transform", "metrics.o", "--index", "1", "-o", "chain/short.o", "--last",
        cwd=chain,
    )  # fmt: skip
    assert made.code == 0
    digest = hashlib.sha256((chain / "chain" / "short.o").read_bytes()).hexdigest()

    def edit(told: dict[str, Any]) -> None:
        told["links"][1] |= {"object": "short.o", "output": {"sha256": digest}}

    code, said = lie(chain, edit)
    assert code == 3
    assert "chain/short.o: says saved none, chain/lie.json says REDIRECT" in said


LIES: dict[str, Edit] = {
    "tail calls of its own": lambda told: told["links"][1].update(tail_calls=True),
    "section": lambda told: told["links"][1].update(section="xdp.frags"),
    "maps": lambda told: told["links"][1].update(maps=[]),
    "last": lambda told: told["links"][1].update(last=False),
    "slots map": lambda told: told["slots"].update(map="others"),
}


@pytest.mark.parametrize("what", LIES)
def test_a_record_that_says_something_else_than_the_object(chain: Path, what: str) -> None:
    code, said = lie(chain, LIES[what])
    assert code == 3
    assert f": says {what} " in said, said


# streams


def shell(chain: Path, words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; PATH={_bin()}:$PATH; {words}"],
        cwd=chain, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def _bin() -> str:
    return str(Path(sys.executable).parent)


GOOD, WRONG = "bpfchain verify filter.o chain/link0.o", "bpfchain verify filter.o wrong.o"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (f"{GOOD} >&-", 5),
        (f"{GOOD} >/dev/full", 5),
        (f"{GOOD} --json >/dev/full", 5),
        (f"{GOOD} <&- >&- 2>&-", 5),
        (f"{GOOD} 2>&-", 0),
        (f"{GOOD} 2>/dev/full", 0),
        (f"{GOOD} | true", 0),
        (f"{WRONG} | true", 1),
        (f"{WRONG} --json | head -c 1", 1),
        (f"{WRONG} 2>&-", 1),
        (f"{WRONG} >&-", 5),
        ("bpfchain-transform filter.o --index 0 -o - >/dev/full", 5),
        ("bpfchain-transform filter.o --index 0 -o - >&-", 5),
    ],
)
def test_streams_that_take_nothing(chain: Path, words: str, code: int) -> None:
    done = shell(chain, words)
    assert done.returncode == code
    assert "Traceback" not in done.stdout + done.stderr


def test_a_closed_stderr_does_not_become_the_object(chain: Path) -> None:
    done = shell(chain, "bpfchain-transform filter.o --index 0 -o quiet.o 2>&- -v")
    assert done.returncode == 0
    assert shell(chain, "bpfchain-transform filter.o --index 0 -o loud.o -v").returncode == 0
    assert (chain / "quiet.o").read_bytes() == (chain / "loud.o").read_bytes()


# options


@pytest.mark.parametrize("command", ["verify", "fuzz"])
@pytest.mark.parametrize("seed", ["-1", "18446744073709551616"])
def test_a_seed_that_is_no_seed(chain: Path, command: str, seed: str) -> None:
    done = run("bpfchain", command, "filter.o", "chain/link0.o", "--seed", seed, cwd=chain)
    assert done.code == 2
    assert done.stderr.startswith(f"usage: --seed: {seed} is not in the range")


def test_the_highest_seed(chain: Path) -> None:
    words = ("--seed", str((1 << 64) - 1))
    assert run("bpfchain", "verify", "filter.o", "chain/link0.o", *words, cwd=chain).code == 0


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--corpus", "refused: /dev/zero is no capture: it begins with 00 00 00 00\n"),
        ("--scenario", "refused: /dev/zero: more than 64 MB: not a scenario\n"),
    ],
)
def test_a_file_without_end(chain: Path, option: str, said: str) -> None:
    done = run("bpfchain", "verify", "filter.o", "chain/link0.o", option, "/dev/zero", cwd=chain)
    assert (done.code, done.stderr) == (3, said)


# Ctrl-C


def test_an_interrupt_ends_all_processes_and_says_one_line(chain: Path) -> None:
    """A terminal sends it to the whole group: the workers too."""
    process = subprocess.Popen(
        [f"{_bin()}/bpfchain", "verify", "chain/manifest.json", "--jobs", "2", "--corpus",
         str(_long_capture(chain))],
        cwd=chain, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 60
    while len(children.read_text().split()) < 3:  # multiprocessing's tracker and two workers
        assert time.monotonic() < until, "no workers were started"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == ("", "\ninterrupted: nothing was written\n")


def _long_capture(chain: Path) -> Path:
    """A million packets: nothing ends before it is interrupted."""
    path = chain / "long.pcap"
    if not path.exists():
        record = struct.pack("<IIII", 0, 0, 60, 60) + bytes(60)
        path.write_bytes(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + record * 10**6)
    return path

"""Running the commands as a person does: a process of their own, streams apart."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "corpus" / "programs" / "el"
ROOMS = ("transform", "loader", "emulator", "verify", "cli")
MAINS = {
    "bpfchain": "from bpfchain.cli.main import main; main()",
    "bpfchain-transform": "from bpfchain.cli.transform_main import main; main()",
}


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    stdout: bytes
    stderr: str

    @property
    def text(self) -> str:
        return self.stdout.decode()


def argv(command: str, *arguments: str | Path) -> list[str]:
    """The process to start for a command line."""
    return [sys.executable, "-c", MAINS[command], *map(str, arguments)]


def environment(**changed: str) -> dict[str, str]:
    """The environment of a command: this checkout's packages, no colour settings of the host, and
    modules compiled once, as pip does on install."""
    kept = {k: v for k, v in os.environ.items() if k not in _OF_THE_HOST}
    own = {
        "PYTHONPATH": os.pathsep.join(str(ROOT / room) for room in ROOMS),
        "PYTHONPYCACHEPREFIX": str(ROOT / ".build" / "pycache"),
    }
    return kept | own | changed


_OF_THE_HOST = ("NO_COLOR", "CLICOLOR_FORCE", "COLUMNS", "PYTHONDONTWRITEBYTECODE")


def run(
    command: str, *arguments: str | Path, cwd: Path, stdin: bytes | None = None, **changed: str
) -> Done:
    """Run a command to its end."""
    done = subprocess.run(
        argv(command, *arguments),
        cwd=cwd,
        input=stdin if stdin is not None else b"",
        capture_output=True,
        env=environment(**changed),
        timeout=60,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr.decode())

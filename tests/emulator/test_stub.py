"""The native module is what its stub says: mypy's stubtest, and that stubtest would tell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bpfchain.emulator.interpreter import native
from bpfchain.transform.errors import InconclusiveError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def module() -> Path:
    """The native module's file."""
    try:
        return Path(native().__file__)
    except InconclusiveError as error:
        pytest.skip(f"{error} (unset BPFCHAIN_NO_NATIVE, run tools/setup.sh test)")


def stubtest(folder: Path) -> subprocess.CompletedProcess[str]:
    """Of ``_ubpf`` and ``_ubpf.pyi`` in a folder of their own: the package is not in question."""
    config = folder / "mypy.ini"
    config.write_text("[mypy]\nstrict = true\n")
    return subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "_ubpf", "--mypy-config-file", str(config),
         "--ignore-disjoint-bases"],
        cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"MYPYPATH": str(folder), "PYTHONPATH": str(folder)},
    )  # fmt: skip


def test_the_stub_is_right(module: Path, tmp_path: Path) -> None:
    shutil.copy(module, tmp_path)
    shutil.copy(ROOT / "emulator/bpfchain/emulator/_ubpf.pyi", tmp_path)
    done = stubtest(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no issues found" in done.stdout


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def save(self) -> int:", "def save(self, name: str) -> int:"),
        ("limit: int = 100", "limit: int = 99"),
    ],
)
def test_a_wrong_stub_is_told(module: Path, tmp_path: Path, old: str, new: str) -> None:
    shutil.copy(module, tmp_path)
    text = (ROOT / "emulator/bpfchain/emulator/_ubpf.pyi").read_text()
    assert old in text
    (tmp_path / "_ubpf.pyi").write_text(text.replace(old, new))
    done = stubtest(tmp_path)
    assert done.returncode != 0, done.stdout
    assert "error: " in done.stdout

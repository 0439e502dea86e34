"""The package as a wheel: with the native part it runs where no compiler is; without it the rest
works and says what is missing; and what a build lacks is said in one line.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = (
    "transform", "emulator", "loader", "verify", "cli", "tools", "pyproject.toml", "setup.py",
    "MANIFEST.in", "README.md", "LICENSE",
)  # fmt: skip

RUN = """
import sys
from pathlib import Path
from bpfchain.emulator.link import link_object
from bpfchain.emulator.machine import JitMachine, Machine, Packets
linked = link_object(Path(sys.argv[1]).read_bytes())
for kind in Machine, JitMachine:
    with kind([linked], context="xdp") as machine:
        batch = machine.run(machine.program(0, "filter"), Packets([bytes(64)] * 9))
        print(kind.__name__, len(batch), len(batch.faults))
"""

PURE = """
import sys
from pathlib import Path
from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object
from bpfchain.emulator.link import link_object
from bpfchain.emulator.machine import EmulatorMissingError, Machine
data = Path(sys.argv[1]).read_bytes()
patched = transform_object(data, Request(index=0))
print(len(link_object(patched.data).programs["filter"]) > len(link_object(data).programs["filter"]))
try:
    Machine([], context="xdp")
except EmulatorMissingError as error:
    print(error.message)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources: a build leaves things behind, and other tests run beside this one."""
    folder = tmp_path_factory.mktemp("tree")
    ignore = shutil.ignore_patterns("target", "*.so", "__pycache__", "*.egg-info")
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copy(source, folder)
    return folder


def pip_wheel(tree: Path, into: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pip", "wheel", str(tree), "--no-deps", "--quiet",
         "--disable-pip-version-check", "--wheel-dir", str(into)],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def install(wheel: Path, folder: Path) -> Path:
    """A new environment with only the wheel in it; its Python."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet",
         "--disable-pip-version-check", str(wheel)],
        check=True,
    )  # fmt: skip
    return python


def run(python: Path, program: str) -> list[str]:
    """In an environment where nothing is but that Python."""
    done = subprocess.run(
        [python, "-c", program, str(ROOT / "corpus/programs/el/filter.o")],
        env={"PATH": str(python.parent)}, cwd="/", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_wheel_runs_without_a_compiler(tree: Path, tmp_path: Path) -> None:
    target = ROOT / "emulator" / "native" / "target"
    done = pip_wheel(tree, tmp_path, CARGO_TARGET_DIR=str(target), BPFCHAIN_NO_NATIVE="")
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp311-abi3-linux_" in wheel.name
    python = install(wheel, tmp_path / "venv")
    assert run(python, RUN) == ["Machine 9 0", "JitMachine 9 0"]


def test_without_the_native_part_the_rest_works(tree: Path, tmp_path: Path) -> None:
    done = pip_wheel(tree, tmp_path, BPFCHAIN_NO_NATIVE="1", PATH="/usr/bin:/bin")
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {
        str(path.relative_to(tree / room))
        for room in ("transform", "emulator", "loader", "verify", "cli")
        for path in (tree / room / "bpfchain").rglob("*")
        if path.is_file()
    }
    assert sources - names == set(), "not in the wheel"
    said = run(install(wheel, tmp_path / "venv"), PURE)
    assert said[0] == "True"
    assert said[1].startswith("the emulator's native part cannot be loaded: ")


LACKS = {
    "cargo (Rust 1.85 or newer) is not there": None,
    "cargo is too old (cargo 1.63.0)": "1.63.0",
    "a C compiler (cc) is not there": "1.96.0",
    "a C++ compiler (c++) is not there": "1.96.0",
}


@pytest.mark.parametrize("missing", LACKS)
def test_what_a_build_lacks_is_one_line(tmp_path: Path, missing: str) -> None:
    """The backend's hook as pip calls it, with a PATH where only that cargo is."""
    version = LACKS[missing]
    if version is not None:
        (tmp_path / "cargo").write_text(f"#!/bin/sh\necho cargo {version}\n")
        (tmp_path / "cargo").chmod(0o755)
    if "C++" in missing:
        (tmp_path / "cc").touch(0o755)
    done = subprocess.run(
        [sys.executable, "-c",
         f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import build_backend\n"
         "build_backend.get_requires_for_build_editable()"],
        env={"PATH": str(tmp_path)}, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    what, hint = done.stderr.splitlines()
    start = "bpfchain: the emulator's native part cannot be built: "
    assert what.startswith(start + missing)
    assert hint.startswith("  hint: Debian")
    assert hint.endswith("or build without it: BPFCHAIN_NO_NATIVE=1 pip install .")


def test_what_is_asked_of_the_index(tmp_path: Path) -> None:
    """cmake is required where there is none."""
    for name, text in (
        ("cargo", "echo cargo 1.96.0"), ("cc", ""), ("c++", ""), ("cmake", ""),
    ):  # fmt: skip
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)

    def required() -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c",
             f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import build_backend\n"
             "print(*build_backend._requires())"],
            env={"PATH": str(tmp_path), "LIBCLANG_PATH": "/somewhere"}, check=True,
            capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.split()

    assert required() == []
    (tmp_path / "cmake").unlink()
    assert required() == ["cmake>=3.16"]

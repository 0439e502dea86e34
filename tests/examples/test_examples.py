"""examples/: its Makefile as a person runs it, and the chain that comes out."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **{
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    },
    "PATH": f"{BIN}:{os.environ['PATH']}",
}
SLEEPABLE = """\
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("lsm.s/file_open")
int guard(void *ctx)
{
	return 0;
}

char _license[] SEC("license") = "GPL";
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, text=True, capture_output=True, timeout=120, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def make(folder: Path, *arguments: str) -> str:
    """What make said on stdout, where it succeeded."""
    done = run("make", *arguments, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def objects(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.o")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the folder as it is in the checkout, without what was built there."""
    copy = tmp_path / "examples"
    shutil.copytree(EXAMPLES, copy, ignore=shutil.ignore_patterns("*.o", "chain", "__pycache__"))
    return copy


def test_parallel(folder: Path, tmp_path: Path) -> None:
    """``make -j4`` makes both links, and the same bytes as one job after the other."""
    make(folder, "-j4")
    built = objects(folder)
    assert set(built) == {"guard.o", "count.o", "link0.o", "link1.o"}
    make(folder, "clean")
    assert not objects(folder)
    make(folder)
    assert objects(folder) == built


def test_links_are_what_the_makefile_says(folder: Path) -> None:
    make(folder, "-j4")
    told = [run("bpfchain", "inspect", "--json", f"link{i}.o", cwd=folder) for i in (0, 1)]
    assert [done.returncode for done in told] == [0, 0], told
    (first,), (second,) = (json.loads(done.stdout)["links"] for done in told)
    assert (first["program"], first["index"], first["last"]) == ("guard", 0, False)
    assert (second["program"], second["index"], second["last"]) == ("count", 1, True)


def test_incremental(folder: Path) -> None:
    """A second make does nothing; a changed source is compiled and patched, nothing else."""
    make(folder)
    assert "Nothing to be done" in make(folder)
    make(folder, "chain")
    assert "is up to date" in make(folder, "chain")
    touch(folder / "guard.c")
    again = make(folder).splitlines()
    assert [re.search(r"-o (\S+)", line)[1] for line in again] == ["guard.o", "link0.o"]  # type: ignore[index]
    assert "bpfchain build" in make(folder, "chain")
    assert "is up to date" in make(folder, "chain")
    touch(folder / "chain.toml")
    assert "bpfchain build" in make(folder, "chain")


def touch(path: Path) -> None:
    """Make the file newer than everything in its folder, whatever the clock's grain."""
    newest = max(other.stat().st_mtime_ns for other in path.parent.iterdir())
    os.utime(path, ns=(newest + 1, newest + 1))


def test_chain(folder: Path) -> None:
    """``make chain`` gives the objects of ``make``, and a manifest that names them."""
    make(folder, "-j4", "all", "chain")
    assert {path.name for path in (folder / "chain").iterdir()} == {
        "link0.o", "link1.o", "manifest.json",
    }  # fmt: skip
    for name in ("link0.o", "link1.o"):
        assert (folder / "chain" / name).read_bytes() == (folder / name).read_bytes()
    manifest = json.loads((folder / "chain" / "manifest.json").read_text())
    assert manifest["chain"] == "edge"
    assert [(link["object"], link["program"]) for link in manifest["links"]] == [
        ("link0.o", "guard"), ("link1.o", "count"),
    ]  # fmt: skip


def test_refused(folder: Path) -> None:
    """An object that is refused fails the build with one line, and leaves no output."""
    (folder / "guard.c").write_text(SLEEPABLE)
    done = run("make", "link0.o", cwd=folder)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len([line for line in said if line.startswith("refused: guard.o: ")]) == 1, done.stderr
    assert len(said) <= 2, done.stderr
    assert all(line.startswith(("refused: ", "  hint: ")) for line in said), done.stderr
    assert set(objects(folder)) == {"guard.o"}
    leftovers = {path.name for path in folder.iterdir()} - {
        path.name for path in EXAMPLES.iterdir()
    }
    assert leftovers <= {"guard.o"}
    assert run("make", "link0.o", cwd=folder).returncode != 0, "a second make must fail too"


def test_refused_chain(folder: Path) -> None:
    """``make chain`` with a refused link fails and makes no folder; an older chain stays whole."""
    good = (folder / "guard.c").read_text()
    (folder / "guard.c").write_text(SLEEPABLE)
    done = run("make", "chain", cwd=folder)
    assert done.returncode != 0
    assert done.stderr.count("refused: ") == 1
    assert not (folder / "chain").exists()
    (folder / "guard.c").write_text(good)
    touch(folder / "guard.c")
    make(folder, "chain")
    before = objects(folder / "chain")
    (folder / "guard.c").write_text(SLEEPABLE)
    touch(folder / "guard.c")
    assert run("make", "chain", cwd=folder).returncode != 0
    assert objects(folder / "chain") == before
    assert run("make", "chain", cwd=folder).returncode != 0, "a second make must fail too"


def test_other_order(folder: Path) -> None:
    """examples/README.md: to try the other order, swap the names in two lines."""
    makefile = (folder / "Makefile").read_text()
    swapped = makefile.replace("link0.o: guard.o", "link0.o: count.o").replace(
        "link1.o: count.o", "link1.o: guard.o"
    )
    assert swapped != makefile
    (folder / "Makefile").write_text(swapped)
    make(folder, "-j4")
    done = run("bpfchain", "inspect", "--json", "link0.o", cwd=folder)
    assert json.loads(done.stdout)["links"][0]["program"] == "count"


@pytest.mark.parametrize("objects_of", ["", "chain/"])
def test_objects_load(objects_of: str, folder: Path, bpffs: Path) -> None:
    """Plain bpftool loads both links, each with the program that is named."""
    make(folder, "all", "chain")
    for name, program in (("link0.o", "guard"), ("link1.o", "count")):
        pins = bpffs / name.removesuffix(".o")
        done = run("bpftool", "prog", "loadall", objects_of + name, pins, cwd=folder)
        assert done.returncode == 0, done.stderr
        assert [pin.name for pin in pins.iterdir()] == [program]

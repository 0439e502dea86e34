"""docs/operating.md, tried: every section's blocks run as one script in a playground of their own."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from docs.pages import DOCS, ROOT, blocks

PAGE = DOCS / "operating.md"
BLOCKS = blocks(PAGE)
ROLES = ("build", "shell", "prepare")
SECTIONS = list(dict.fromkeys(b.section for b in BLOCKS if b.language == "sh" and not b.role))
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
}


def the(role: str) -> str:
    (found,) = [block.text for block in BLOCKS if block.role == role]
    return found


def shell(script: str, folder: Path, *prefix: str) -> str:
    path = folder / ".script.sh"
    path.write_text(script)
    done = subprocess.run(
        [*(prefix or ["sh"]), "-eux", path], cwd=folder, env=ENVIRONMENT, text=True, check=False,
        timeout=250, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, f"exit {done.returncode}:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of examples/ in which the page's first block was run."""
    top = tmp_path_factory.mktemp("checkout")
    kept = shutil.ignore_patterns("*.o", "chain", "__pycache__")
    shutil.copytree(ROOT / "examples", top / "examples", ignore=kept)
    shell(the("build"), top)
    return top / "examples"


def test_every_block_is_known() -> None:
    for block in BLOCKS:
        assert (block.language, block.role) in {("sh", ""), ("", "")} | {
            ("sh", role) for role in ROLES
        }, f"{PAGE.name}:{block.line}"
    assert len(SECTIONS) >= 6, SECTIONS


@pytest.mark.parametrize("section", SECTIONS)
def test_section(section: str, chain: Path, kernel: None) -> None:
    script = the("prepare") + "".join(
        block.text for block in BLOCKS
        if block.section == section and block.language == "sh" and not block.role
    )  # fmt: skip
    shell(script, chain, *shlex.split(the("shell")))


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    """Its own binary is put in the place of the installed one, which need not be there."""
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed (package systemd)")
    text = (ROOT / "packaging" / "bpfchain@.service").read_text()
    assert text.count("/usr/bin/bpfchain ") == 3
    unit = tmp_path / "bpfchain@edge.service"
    unit.write_text(text.replace("/usr/bin/bpfchain ", "/bin/true "))
    done = subprocess.run([tool, "verify", unit], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_unit_s_commands() -> None:
    """They are commands that take these options."""
    from bpfchain.cli.main import command

    text = (ROOT / "packaging" / "bpfchain@.service").read_text()
    for line in text.splitlines():
        key, _, value = line.partition("=/usr/bin/bpfchain ")
        if value:
            name = value.split()[0]
            assert key.startswith("Exec")
            found = command.get_command(None, name)  # type: ignore[arg-type]
            assert found is not None
            options = {option for parameter in found.params for option in parameter.opts}
            assert {"--dev", "--direction", "--cgroup"} <= options, name

"""docs/loading.md, tried: every section's blocks run as one script in the page's own playground."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bpfchain.transform.policy import HOOKS, hook_named
from docs.pages import DOCS, ROOT, Block, blocks
from loaders import build
from support.kernel import BPFFS

PAGE = DOCS / "loading.md"
BLOCKS = blocks(PAGE)
PLAYGROUND = "A place to try it"
SECTIONS = list(dict.fromkeys(block.section for block in BLOCKS if block.section != PLAYGROUND))
BIN = Path(sys.executable).parent
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{BIN}:{os.environ['PATH']}",
    "BPFCHAIN": str(ROOT),
    "GOTOOLCHAIN": "local",
}


def the(role: str) -> Block:
    (found,) = [block for block in BLOCKS if block.role == role and block.section == PLAYGROUND]
    return found


def run(*command: str | Path, cwd: Path, seconds: int = 120) -> str:
    """Everything that the command said; an error with it where the command failed."""
    done = subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, text=True, timeout=seconds, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0, f"exit {done.returncode}:\n{done.stdout}"
    return done.stdout


def shell(script: str, folder: Path, *prefix: str, seconds: int = 120) -> str:
    """Run a script that stops at the first command that fails; what it said, commands included."""
    path = folder / ".script.sh"
    path.write_text(script)
    return run(*prefix, *(["sh"] if not prefix else []), "-eux", path, cwd=folder, seconds=seconds)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of examples/ in which the page's first block was run."""
    top = tmp_path_factory.mktemp("checkout")
    kept = shutil.ignore_patterns("*.o", "chain", "__pycache__")
    shutil.copytree(ROOT / "examples", top / "examples", ignore=kept)
    said = shell(the("objects").text, top)
    assert "bpfchain_slots[1, 67]" in said
    return top / "examples"


def test_every_block_is_known() -> None:
    """A block with a language or role that no test knows would never be run."""
    known = {("sh", ""), ("sh", "build"), ("c", "edge.c"), ("go", "main.go")}
    playground = {("sh", "objects"), ("sh", "shell"), ("sh", "prepare")}
    for block in BLOCKS:
        allowed = playground if block.section == PLAYGROUND else known
        assert (block.language, block.role) in allowed, f"{PAGE.name}:{block.line}"
    assert len(SECTIONS) >= 7, SECTIONS


@pytest.mark.parametrize("section", SECTIONS)
def test_section(section: str, objects: Path, tmp_path: Path, kernel: None) -> None:
    """All blocks of a section, in order, in a shell as the page says to open one."""
    mine = [block for block in BLOCKS if block.section == section]
    folder = tmp_path / "examples"
    shutil.copytree(objects, folder)
    for block in mine:
        if block.language != "sh":
            (folder / block.role).write_text(block.text)
    # what needs the network (libraries of Go) runs outside of the namespace, first
    for block in mine:
        if block.role == "build":
            if "go build" in block.text:
                need_go()
            shell(block.text, folder, seconds=280)
    before = sorted(path.name for path in BPFFS.iterdir())
    script = the("prepare").text + "".join(
        block.text for block in mine if block.language == "sh" and not block.role
    )
    shell(script, folder, *shlex.split(the("shell").text))
    assert sorted(path.name for path in BPFFS.iterdir()) == before, "a pin was left outside"


def need_go() -> None:
    try:
        build.build("cilium")
    except build.ToolMissing as missing:
        pytest.skip(str(missing))


def test_numbers() -> None:
    """The page's numbers of entries and of XDP's states are the policy's."""
    text = " ".join(PAGE.read_text().split())
    assert "264 for all hooks but tc and tcx, which have 528" in text
    for hook in HOOKS:
        assert hook.slots == (528 if hook.name.startswith("tc") else 264), hook.name
    states = [f"{code.state} {code.name}" for code in hook_named("xdp").codes]
    assert f"The states of XDP are {', '.join(states)};" in text
    assert hook_named("xdp").slot(1, 1) == 67


SHARED = """\
bpftool map create /sys/fs/bpf/slots type prog_array key 4 value 4 entries {entries} name bpfchain_slots
bpftool prog load {first} /sys/fs/bpf/first map name bpfchain_slots pinned /sys/fs/bpf/slots
bpftool prog load {second} /sys/fs/bpf/second map name bpfchain_slots pinned /sys/fs/bpf/slots
"""


def patched(folder: Path, name: str, *options: str) -> str:
    out = f"{name.replace('/', '_')}_{'_'.join(options).replace('-', '')}.o"
    source = ROOT / "corpus" / "programs" / "el" / f"{name}.o"
    run("bpfchain-transform", source, "--index", "1", *options, "-o", out, cwd=folder)
    return out


@pytest.mark.parametrize(
    ("second", "options", "fits"),
    [
        ("metrics", (), True),
        ("xdp_frags", (), False),
        ("xdp_devmap", ("--program", "on_devmap"), False),
    ],
)
def test_one_kind_of_program(
    second: str, options: tuple[str, ...], fits: bool, tmp_path: Path, kernel: None
) -> None:
    """Frags and the expected attach type must be equal; the error is EINVAL, the log gives no reason."""
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    if second == "xdp_devmap" and release < (6, 18):
        pytest.skip(f"kernel {release} need not compare the expected attach type (6.18 does)")
    script = the("prepare").text + SHARED.format(
        entries=264,
        first=patched(tmp_path, "filter"),
        second=patched(tmp_path, second, *options),
    )
    prefix = shlex.split(the("shell").text)
    if fits:
        shell(script, tmp_path, *prefix)
        return
    with pytest.raises(
        AssertionError, match=r"/sys/fs/bpf/second[\s\S]*Invalid argument"
    ) as failed:
        shell(script, tmp_path, *prefix)
    log = re.search(r"BEGIN PROG LOAD LOG --\n(.*?)-- END", str(failed.value), re.S)
    assert log is not None
    assert re.fullmatch(r"processed \d+ insns[^\n]*", log[1].strip()), (
        "the log gives a reason after all"
    )


def test_a_map_that_is_too_small_is_not_noticed(tmp_path: Path, kernel: None) -> None:
    """What the page warns of: bpftool does not compare the number of entries."""
    script = the("prepare").text + SHARED.format(
        entries=5, first=patched(tmp_path, "filter"), second=patched(tmp_path, "metrics")
    )
    shell(script, tmp_path, *shlex.split(the("shell").text))


def test_last_link_has_no_slots_map(objects: Path, kernel: None) -> None:
    script = the("prepare").text + (
        "bpfchain-transform count.o --index 1 --last -o last.o\n"
        "bpftool map create /sys/fs/bpf/slots type prog_array key 4 value 4 entries 264 name bpfchain_slots\n"
        "bpftool prog load last.o /sys/fs/bpf/x map name bpfchain_slots pinned /sys/fs/bpf/slots\n"
    )
    with pytest.raises(AssertionError, match="unable to find map 'bpfchain_slots'"):
        shell(script, objects, *shlex.split(the("shell").text))


def test_pinmaps_and_pin(objects: Path, kernel: None) -> None:
    """The two do not go together, and the slots were filled all the same."""
    script = the("prepare").text + (
        "bpfchain-transform count.o --index 1 --saved DROP --pin -o pinned.o\n"
        "bpftool prog load pinned.o /sys/fs/bpf/a\n"
        "bpftool map dump pinned /sys/fs/bpf/bpfchain_slots > before\n"
        "bpftool prog load pinned.o /sys/fs/bpf/b pinmaps /sys/fs/bpf/maps 2> said && exit 9\n"
        "grep 'already has pin path' said\n"
        "bpftool map dump pinned /sys/fs/bpf/bpfchain_slots > after || true\n"
        "cmp -s before after && exit 8\n"
        "test -s before\n"
    )
    shell(script, objects, *shlex.split(the("shell").text))


def test_ip_cannot_load_several_entries(objects: Path, kernel: None) -> None:
    script = the("prepare").text + (
        "bpfchain-transform count.o --index 1 --saved DROP --pin -o pinned.o\n"
        "ip link set dev v1 xdpgeneric obj pinned.o sec xdp\n"
    )
    with pytest.raises(AssertionError, match="failed to initialize slot"):
        shell(script, objects, *shlex.split(the("shell").text))


def test_what_aya_does_not_know(tmp_path: Path, kernel: None) -> None:
    """The page's claims of aya: no ``values``, no section tc."""
    with_values = patched(tmp_path, "filter", "--pin")
    plain = patched(tmp_path, "filter")
    tc = patched(tmp_path, "tc_unspec")
    try:
        results = build.call("aya", "load", *(tmp_path / name for name in (with_values, plain, tc)))
    except build.ToolMissing as missing:
        pytest.skip(str(missing))
    assert "unexpected BTF type id" in str(results[0]["error"])
    assert results[1]["error"] is None
    assert results[1]["programs"] == ["filter"]
    assert results[2]["error"] is not None

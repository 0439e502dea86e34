"""bpfchain-transform: streams, exit codes, whole messages, files left behind."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object
from bpfchain.verify.recording import builtin_recording
from support.commands import argv, environment, run

COMMAND = "bpfchain-transform"
HELP_HINT = "  hint: `bpfchain-transform --help` shows what it takes\n"


def test_writes_the_object_and_says_one_line(here: Path) -> None:
    expected = transform_object((here / "filter.o").read_bytes(), Request(index=0))
    more = expected.after.instructions - expected.before.instructions
    done = run(COMMAND, "filter.o", "--index", "0", "-o", "link0.o", cwd=here)
    assert done.code == 0
    assert done.stdout == b""
    assert re.fullmatch(
        rf"link0\.o: xdp/filter is link 0 \({expected.strategy}, \+{more} instructions, S=PASS\), "
        rf"equal on {runnable()} packets, \d+ of 44 edges\n",
        done.stderr,
    )
    assert (here / "link0.o").read_bytes() == expected.data


def runnable() -> int:
    """Packets of the built-in recording that XDP runs: an Ethernet header at least."""
    return sum(len(packet) >= 14 for packet in builtin_recording().packets)


def test_without_the_proof_it_says_so(here: Path) -> None:
    done = run(
        COMMAND, "filter.o", "--index", "0", "-o", "l.o", "--no-verify", "--manifest", "m.json",
        cwd=here,
    )  # fmt: skip
    assert done.code == 0
    assert done.stderr.endswith("S=PASS), not verified\n")
    assert json.loads((here / "m.json").read_text())["links"][0]["verified"] is None


def test_options_reach_the_request(here: Path) -> None:
    expected = transform_object(
        (here / "three_progs.o").read_bytes(),
        Request(
            index=3, program="middle", success="PASS,TX", redirect="REDIRECT", saved="DROP",
            strategy="subprog", last=True, slots_map="mine", pin=True, hook="xdp",
        ),
    )  # fmt: skip
    done = run(
        COMMAND, "three_progs.o", "--index", "3", "-o", "l.o", "--program", "middle",
        "--success", "PASS,TX", "--redirect", "REDIRECT", "--saved", "DROP",
        "--strategy", "subprog", "--last", "--slots-map", "mine", "--pin", "--hook", "xdp",
        cwd=here,
    )  # fmt: skip
    assert done.code == 0
    assert (here / "l.o").read_bytes() == expected.data
    assert "is link 3, the last (subprog, " in done.stderr
    assert "S=PASS,TX, R=REDIRECT, entries middle middle__drop), equal on " in done.stderr


def test_streams_in_and_out(here: Path) -> None:
    data = (here / "filter.o").read_bytes()
    done = run(COMMAND, "-", "--index", "1", "-o", "-", cwd=here, stdin=data)
    assert done.code == 0
    assert done.stdout == transform_object(data, Request(index=1)).data
    assert done.stderr.startswith("stdout: xdp/filter is link 1 (")
    assert done.stderr.count("\n") == 1


def test_quiet_says_nothing(here: Path) -> None:
    done = run(COMMAND, "filter.o", "--index", "0", "-o", "l.o", "-q", cwd=here)
    assert (done.code, done.stdout, done.stderr) == (0, b"", "")


def test_verbose_explains(here: Path) -> None:
    done = run(COMMAND, "filter.o", "--index", "0", "--redirect", "4", "-o", "l.o", "-v", cwd=here)
    first, *rest = done.stderr.splitlines()
    assert first.endswith(" edges")
    assert all(line.startswith("  ") for line in rest)
    said = [line.split(":")[0].strip() for line in rest]
    assert said[:5] == ["hook", "strategy", "instructions", "stack", "context kept in"]
    assert "  hook: xdp (BPF_PROG_TYPE_XDP, BPF_XDP), from section xdp" in rest
    assert "  entry filter: nothing saved, slot 0" in rest


def test_json_is_the_record(here: Path) -> None:
    from hashlib import sha256

    done = run(COMMAND, "filter.o", "--index", "0", "-o", "l.o", "--json", "-q", cwd=here)
    record = json.loads(done.text)
    assert record["object"] == "l.o"
    assert record["index"] == 0
    assert record["program"] == "filter"
    assert record["input"]["sha256"] == sha256((here / "filter.o").read_bytes()).hexdigest()
    assert record["output"]["sha256"] == sha256((here / "l.o").read_bytes()).hexdigest()
    assert record["input"]["file"] == "filter.o"
    verified = record["verified"]
    assert verified["static"]["result"] == verified["dynamic"]["result"] == "equal"
    assert verified["dynamic"]["packets"] == runnable()
    assert verified["dynamic"]["engines"] == ["ubpf"]
    assert verified["dynamic"]["corpora"] == [
        {"name": "builtin", "sha256": builtin_recording().sha256}
    ]


def test_manifest_collects_links_in_any_order(here: Path) -> None:
    for name, index in (("metrics", 1), ("filter", 0)):
        done = run(
            COMMAND, f"{name}.o", "--index", str(index), "-o", f"{name}.link.o",
            "--manifest", "edge.json", cwd=here,
        )  # fmt: skip
        assert done.code == 0, done.stderr
    manifest = json.loads((here / "edge.json").read_text())
    assert manifest["chain"] == "edge"
    assert [link["object"] for link in manifest["links"]] == ["filter.link.o", "metrics.link.o"]


def test_a_manifest_of_another_chain_leaves_no_output(here: Path) -> None:
    run(COMMAND, "filter.o", "--index", "0", "-o", "a.o", "--manifest", "m.json", "--chain", "edge",
        cwd=here)  # fmt: skip
    done = run(
        COMMAND, "metrics.o", "--index", "1", "-o", "b.o", "--manifest", "m.json",
        "--chain", "core", cwd=here,
    )  # fmt: skip
    assert done.code == 3
    assert done.stderr == (
        "refused: m.json: is the manifest of chain edge, not of core\n"
        "  hint: name another manifest file, or remove this one\n"
    )
    assert not (here / "b.o").exists()
    assert not list(here.glob(".*"))


USAGE = [
    ([], "usage: IN is missing\n" + HELP_HINT),
    (["filter.o"], "usage: --index is missing\n" + HELP_HINT),
    (["filter.o", "--index", "0"], "usage: --output is missing\n" + HELP_HINT),
    (
        ["filter.o", "--index", "x", "-o", "l.o"],
        "usage: --index: 'x' is not a valid integer\n" + HELP_HINT,
    ),
    (
        ["filter.o", "--index", "33", "-o", "l.o"],
        "usage: index 33 is outside 0..32\n  hint: the kernel follows 33 tail calls and no more\n",
    ),
    (
        ["filter.o", "--indx", "0", "-o", "l.o"],
        "usage: no option named --indx\n  hint: did you mean --index?\n",
    ),
    (
        ["fliter.o", "--index", "0", "-o", "l.o"],
        "usage: fliter.o: no such file\n  hint: did you mean filter.o?\n",
    ),
    (
        ["filter.o", "--index", "0", "-o", "no/l.o"],
        "usage: no/l.o: there is no folder no\n",
    ),
    (
        ["filter.o", "--index", "0", "-o", "."],
        "usage: . is a folder\n  hint: name a file in it: -o ./link.o\n",
    ),
    (
        ["filter.o", "--index", "0", "-o", "l.o", "--strategy", "inlin"],
        "usage: --strategy: 'inlin' is not auto, inline or subprog\n  hint: did you mean inline?\n",
    ),
    (
        ["filter.o", "--index", "0", "-o", "l.o", "--success", "PAS"],
        "usage: --success: no code named 'PAS'\n  hint: did you mean PASS?\n",
    ),
    (
        ["filter.o", "--index", "0", "-o", "l.o", "--hook", "xpd"],
        "usage: no hook named 'xpd'\n  hint: did you mean xdp?\n",
    ),
    (
        ["filter.o", "--index", "0", "-o", "l.o", "--program", "filtr"],
        "usage: filter.o: no program named 'filtr'\n  hint: did you mean filter?\n",
    ),
    (
        ["three_progs.o", "--index", "0", "-o", "l.o"],
        "usage: three_progs.o: it holds 3 programs (before, middle, after): choose one with "
        "--program\n",
    ),
    (
        ["filter.o", "--index", "0", "-o", "-", "--json"],
        "usage: --json and -o - both write to stdout\n  hint: name a file with -o\n",
    ),
    (
        ["filter.o", "--index", "0", "-o", "-", "--manifest", "m.json"],
        "usage: --manifest records a file: -o - has no name\n  hint: name a file with -o\n",
    ),
    (
        ["filter.o", "--index", "0", "-o", "l.o", "--chain", "edge"],
        "usage: --chain names the chain in a manifest, and there is no --manifest\n",
    ),
]


@pytest.mark.parametrize(("arguments", "expected"), USAGE, ids=lambda v: " ".join(v)[:40])
def test_usage_errors(here: Path, arguments: list[str], expected: str) -> None:
    before = sorted(here.iterdir())
    done = run(COMMAND, *arguments, cwd=here)
    assert (done.code, done.stdout, done.stderr) == (2, b"", expected)
    assert sorted(here.iterdir()) == before


def test_a_refusal_leaves_the_older_output_alone(here: Path) -> None:
    (here / "text.o").write_text("not an object")
    (here / "l.o").write_text("older")
    done = run(COMMAND, "text.o", "--index", "0", "-o", "l.o", cwd=here)
    assert done.code == 3
    assert done.stderr == (
        "refused: text.o: not an ELF file\n"
        "  hint: give a BPF object as clang -target bpf writes it\n"
    )
    assert (here / "l.o").read_text() == "older"
    assert not list(here.glob(".*"))


def test_output_may_be_the_input(here: Path) -> None:
    data = (here / "filter.o").read_bytes()
    done = run(COMMAND, "filter.o", "--index", "0", "-o", "filter.o", cwd=here)
    assert done.code == 0
    assert (here / "filter.o").read_bytes() == transform_object(data, Request(index=0)).data
    again = run(COMMAND, "filter.o", "--index", "1", "-o", "filter.o", cwd=here)
    assert again.code == 3
    assert again.stderr.startswith(
        "refused: filter.o: filter is already link 0 of a chain (patched by"
    )


def test_output_has_the_mode_of_a_new_file(here: Path) -> None:
    for mask, mode in (("022", 0o644), ("077", 0o600)):
        command = argv(COMMAND, "filter.o", "--index", "0", "-o", f"l{mask}.o", "-q")
        subprocess.run(
            ["sh", "-c", f'umask {mask}; exec "$@"', "sh", *command],
            cwd=here, env=environment(), check=True,
        )  # fmt: skip
        assert stat.S_IMODE((here / f"l{mask}.o").stat().st_mode) == mode


def test_output_through_a_symbolic_link_keeps_the_link(here: Path) -> None:
    (here / "real.o").write_text("older")
    (here / "l.o").symlink_to("real.o")
    assert run(COMMAND, "filter.o", "--index", "0", "-o", "l.o", cwd=here).code == 0
    assert (here / "l.o").is_symlink()
    assert (here / "real.o").read_bytes()[:4] == b"\x7fELF"


def test_output_to_a_device(here: Path) -> None:
    done = run(COMMAND, "filter.o", "--index", "0", "-o", "/dev/null", cwd=here)
    assert done.code == 0
    full = run(COMMAND, "filter.o", "--index", "0", "-o", "/dev/full", cwd=here)
    assert full.code == 5
    assert full.stderr == "host: /dev/full: no space left on device\n"


def test_no_object_goes_to_a_terminal(here: Path) -> None:
    terminal, theirs = pty.openpty()
    done = subprocess.run(
        argv(COMMAND, "filter.o", "--index", "0", "-o", "-"),
        cwd=here, env=environment(NO_COLOR="1"), stdout=theirs, stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    os.close(theirs)
    os.close(terminal)
    assert done.returncode == 2
    assert done.stderr.decode() == (
        "usage: -o - would write an object to the terminal\n  hint: pipe it, or name a file\n"
    )


def test_interrupted_leaves_nothing(here: Path) -> None:
    """Ctrl-C while the input is being read: stdin stays open."""
    process = subprocess.Popen(
        argv(COMMAND, "-", "--index", "0", "-o", "l.o"),
        cwd=here, env=environment(PYTHONUNBUFFERED="1"), stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(b"\x7fELF" * 20_000)  # more than a pipe holds: it is reading when this ends
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert (stdout, stderr) == (b"", b"\ninterrupted: nothing was written\n")
    assert not (here / "l.o").exists()
    assert not list(here.glob(".*"))


def test_a_bug_is_a_traceback_and_70(here: Path) -> None:
    code = (
        "import bpfchain.transform.transform as t\n"
        "def broken(data, request): raise KeyError('x')\n"
        "t.transform_object = broken\n"
        "from bpfchain.cli.transform_main import main; main()"
    )
    command = argv(COMMAND, "filter.o", "--index", "0", "-o", "l.o")
    command[2] = code
    done = subprocess.run(command, cwd=here, env=environment(), capture_output=True, check=False)
    assert done.returncode == 70
    assert done.stderr.startswith(b"Traceback")
    assert b"this is a bug in bpfchain" in done.stderr
    assert not (here / "l.o").exists()


def test_names_cannot_write_to_the_terminal(here: Path) -> None:
    done = run(COMMAND, "\x1b[31m.o", "--index", "0", "-o", "l.o", cwd=here)
    assert done.stderr == "usage: \\x1b[31m.o: no such file\n"


def test_colour_only_where_it_is_wanted(here: Path) -> None:
    forced = run(COMMAND, "none.x", "--index", "0", "-o", "l.o", cwd=here, CLICOLOR_FORCE="1")
    assert forced.stderr == "\x1b[31m\x1b[1musage\x1b[0m: none.x: no such file\n"
    both = run(
        COMMAND, "none.x", "--index", "0", "-o", "l.o", cwd=here, CLICOLOR_FORCE="1", NO_COLOR="1"
    )
    assert both.stderr == "usage: none.x: no such file\n"


def test_nothing_heavy_is_imported(here: Path) -> None:
    code = (
        "import sys\n"
        "from bpfchain.cli.transform_main import main\n"
        "try: main()\n"
        "finally: print(*sorted(m.split('.')[0] for m in sys.modules), file=sys.stderr)"
    )
    command = argv(COMMAND, "filter.o", "--index", "0", "-o", "l.o", "-q", "--no-verify")
    command[2] = code
    done = subprocess.run(command, cwd=here, env=environment(), capture_output=True, check=True)
    loaded = set(done.stderr.decode().split())
    assert "click" in loaded
    heavy = {"lief", "rich", "scapy", "jsonschema", "elftools", "z3", "json", "asyncio", "ctypes"}
    assert not loaded & heavy

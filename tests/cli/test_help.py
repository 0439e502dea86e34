"""Help pages: they teach, and every example on them runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from bpfchain.transform.policy import HOOKS
from bpfchain.verify.captures import to_pcap
from bpfchain.verify.recording import builtin_recording
from support.commands import run

PAGES = [
    ("bpfchain-transform", []),
    ("bpfchain", []),
    ("bpfchain", ["transform"]),
    ("bpfchain", ["build"]),
    ("bpfchain", ["inspect"]),
    ("bpfchain", ["verify"]),
    ("bpfchain", ["fuzz"]),
]


@pytest.mark.parametrize(("command", "sub"), PAGES, ids=[" ".join([c, *s]) for c, s in PAGES])
def test_every_page_teaches_and_its_examples_run(here: Path, command: str, sub: list[str]) -> None:
    page = run(command, *sub, "--help", cwd=here)
    assert (page.code, page.stderr) == (0, "")
    first, blank, usage = page.text.splitlines()[:3]
    assert first.endswith(".")
    assert blank == ""
    assert usage.startswith("Usage: " + " ".join([command, *sub]))
    assert "Exit codes:\n  0  done\n" in page.text
    examples = re.findall(r"^  (bpfchain[^\n]*)$", page.text.split("Examples:\n")[1], re.MULTILINE)
    assert 2 <= len(examples) <= 6
    made = run("bpfchain-transform", "filter.o", "--index", "0", "-o", "link0.o", cwd=here)
    assert made.code == 0
    if sub in (["verify"], ["fuzz"]):
        assert run("bpfchain", "build", "chain.toml", "-o", "chain", cwd=here).code == 0
        recording = builtin_recording()
        (here / "yesterday.pcap").write_bytes(to_pcap(recording.packets, recording.times))
    for example in examples:
        if "--dev" in example:
            continue  # nothing is attached to this machine's interfaces: tests/loader does it
        words = shlex.split(re.sub(r"--time \S+", "--time 2s", example))
        done = run(words[0], *words[1:], cwd=here)
        assert done.code == 0, f"{example}\n{done.stderr}"


def test_help_is_the_same_as_a_subcommand(here: Path) -> None:
    own = run("bpfchain-transform", "--help", cwd=here).text
    sub = run("bpfchain", "transform", "--help", cwd=here).text
    assert own.split("\n", 3)[3] == sub.split("\n", 3)[3]


def test_help_names_every_hook_and_who_decides_on_samples(here: Path) -> None:
    page = run("bpfchain-transform", "--help", cwd=here).text
    table = run("bpfchain-transform", "--help-hooks", cwd=here).text
    for hook in HOOKS:
        assert re.search(rf"(?<![\w/.]){re.escape(hook.name)}(?![\w/])", page), hook.name
        assert f"\n{hook.name}  (" in f"\n{table}", hook.name
    flat = " ".join(page.split())
    assert (
        "kprobe.multi, uprobe.multi, kprobe, perf_event: every code goes on by default, so only the "
        "last link decides whether a 0 suppresses the sample." in flat
    )
    assert "  codes     ABORTED=0, DROP=1, PASS=2, TX=3, REDIRECT=4\n" in table


def test_every_option_tells_its_default_or_is_a_flag(here: Path) -> None:
    page = " ".join(run("bpfchain-transform", "--help", cwd=here).text.split())
    for option in ("--program", "--hook", "--success", "--redirect", "--saved", "--strategy",
                   "--saved-code", "--slots-map", "--kernel", "--arch", "--chain"):  # fmt: skip
        text = page.split(f" {option} ", 1)[1].split(" --", 1)[0]
        assert "[default: " in text, option


@pytest.mark.parametrize("command", ["bpfchain", "bpfchain-transform"])
def test_version(here: Path, command: str) -> None:
    from bpfchain.transform.version import VERSION

    done = run(command, "--version", cwd=here)
    assert (done.code, done.text, done.stderr) == (0, f"{command} {VERSION}\n", "")


def test_a_wrong_subcommand_comes_with_the_nearest(here: Path) -> None:
    done = run("bpfchain", "inspct", cwd=here)
    assert (done.code, done.stdout) == (2, b"")
    assert done.stderr == "usage: no command named 'inspct'\n  hint: did you mean inspect?\n"
    none = run("bpfchain", cwd=here)
    assert none.code in (0, 2)
    assert "Commands:" in none.text or none.stderr.startswith("usage: a command is missing\n")

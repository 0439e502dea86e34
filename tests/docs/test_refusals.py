"""docs/refusals.md: every refusal in the source is in the page, and real ones come out as it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpfchain.transform import policy
from docs.messages import HOLE, messages
from docs.pages import DOCS, ROOT

PAGE = DOCS / "refusals.md"
BIN = Path(sys.executable).parent
CORPUS = ROOT / "corpus" / "programs" / "el"

EXPLAINED = {
    "refuse", "inline", "subprog", "program", "legacy", "policy", "stack", "targets", "transform",
    "plan", "rewrite", "btf_maps", "flow", "layout", "emit",
}  # fmt: skip
"""Modules whose every refusal has a row."""
DAMAGED = {
    "btf", "btf_ext", "check", "elf", "elf_edit", "elf_read", "elf_write", "isa", "provenance",
    "manifest_link", "chainfile", "manifest_file", "manifest", "document",
}  # fmt: skip
"""Modules that refuse files which no compiler, or bpfchain itself, writes: one sentence covers them."""
PASSED_ON = {"chain_check"}
"""Modules that raise what another one worded (``Problem``, which has its own test)."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: the section it is in, and the message as the page writes it."""

    section: str
    pattern: str

    def matches(self, message: str) -> bool:
        """Whether the message, or a source's text with holes, is what the row describes."""
        parts = [re.escape(part) for part in self.pattern.split("…")]
        return re.fullmatch(".*".join(parts), message, re.S) is not None


def rows() -> list[Row]:
    found, section = [], ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            section = line[3:]
        cell = re.match(r"\| `([^`]+)` \|", line)
        if cell:
            found.append(Row(section, cell[1]))
    return found


ROWS = rows()
USAGE, CHAIN = "Usage, not refusal", "A whole chain"
REFUSED = [row for row in ROWS if row.section not in (USAGE, CHAIN)]


def example(text: str) -> str:
    """A message from the source with something in every hole."""
    return text.replace(HOLE, "program x")


def described(text: str, among: list[Row]) -> bool:
    return any(row.matches(example(text)) for row in among)


def test_rows_are_found() -> None:
    assert len(REFUSED) > 50
    assert len([row for row in ROWS if row.section == CHAIN]) > 10
    assert len({row.pattern for row in ROWS}) == len(ROWS), "a message has two rows"


def test_every_refusal_is_in_the_page() -> None:
    missing = [
        f"{m.module}:{m.line}: {m.text.replace(HOLE, '…')}"
        for m in messages("RefusedError")
        if m.module in EXPLAINED and not m.empty and not described(m.text, REFUSED)
    ]
    assert not missing, "\n".join(missing)
    strange = {m.module for m in messages("RefusedError")} - EXPLAINED - DAMAGED - PASSED_ON
    assert not strange, f"do the refusals of {sorted(strange)} need rows in {PAGE.name}?"


def test_every_reason_of_a_section_is_in_the_page() -> None:
    """The policy's reasons stand in a table of their own."""
    reasons = {reason for _, reason, _ in policy._REFUSED_SECTIONS}
    assert len(reasons) >= 5
    for reason in reasons:
        assert described(f"program x (section) {reason}", REFUSED), reason


def test_every_problem_of_a_chain_is_in_the_page() -> None:
    chain = [row for row in ROWS if row.section == CHAIN]
    found = messages("Problem")
    assert len(found) > 8
    for message in found:
        if "is not checked here" not in message.text:  # a warning, which build prints and goes on
            assert described(message.text, chain), message
    for row in chain:
        assert any(row.matches(example(m.text)) for m in found), f"stale: {row.pattern}"


@pytest.mark.parametrize(
    ("errors", "among"),
    [(("RefusedError",), REFUSED), (("UsageError", "OptionError"), None)],
    ids=["refused", "usage"],
)
def test_no_row_is_stale(errors: tuple[str, ...], among: list[Row] | None) -> None:
    known = [example(m.text) for error in errors for m in messages(error) if not m.empty]
    known += [f"program x (s) {reason}" for _, reason, _ in policy._REFUSED_SECTIONS]
    for row in among if among is not None else [r for r in ROWS if r.section == USAGE]:
        assert any(row.matches(text) for text in known), f"stale: {row.pattern}"


CASES = [
    ("refused_dissector", "", "their type is not in the policy"),
    ("refused_fentry", "", "their type is not in the policy"),
    ("refused_freplace", "", "is an extension (EXT)"),
    ("refused_iter", "", "their type is not in the policy"),
    ("refused_lsm", "", "their type is not in the policy"),
    ("refused_lsm_sleepable", "", "is sleepable"),
    ("refused_metadata", "", "it is bound to a device"),
    ("refused_override", "", "calls bpf_override_return"),
    ("refused_parser", "", "returns a length"),
    ("refused_reuseport", "", "their type is not in the policy"),
    ("refused_sockops", "", "their type is not in the policy"),
    ("refused_struct_ops", "--program corpus_ssthresh", "is a struct_ops member"),
    ("refused_syscall", "", "is a syscall program"),
    ("refused_throw", "", "can call bpf_throw"),
    ("tailcall_self", "", "is in a map's initial values"),
    ("tailcall_values", "--program target", "is in a map's initial values"),
    ("name_taken", "", "the name bpfchain_slots of the chain's map is taken"),
    ("legacy_maps_long", "", "are not plain definitions of 5 words"),
    ("kprobe_stack", "", "800 bytes of stack over its calls"),
    ("section_filter", "", "does not tell the hook"),
    ("section_cgroup_skb", "", "fits several hooks"),
    ("filter", "--hook tc", "hook tc contradicts its section"),
    ("jump_too_far", "--strategy inline", "further than a jump goes"),
    ("regs_stack_full", "--strategy inline", "its stack is full"),
    ("ldabs", "--strategy inline", "a legacy packet load (LD_ABS)"),
    ("tailcall_own", "--strategy inline", "its own tail calls leave"),
    ("frames8", "--strategy subprog", "8 frames deep"),
    ("xdp_redirect", "--saved REDIRECT", "can call bpf_redirect while REDIRECT is saved"),
    ("verdict_tc", "--program verdict_tc --redirect OK --saved-code map", "can nest or be preempted"),
    ("static_subprog", "--strategy inline --arch riscv64", "no kernel has tail calls beside"),
    ("static_subprog", "--strategy inline --arch arm64 --kernel 5.10", "need 6.0 there"),
]  # fmt: skip


def transform(source: Path | str, *options: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = BIN / "bpfchain-transform"
    return subprocess.run(
        [command, source, "--index", "1", "-o", "out.o", *options],
        cwd=folder, text=True, capture_output=True, timeout=60, check=False,
        stdin=subprocess.DEVNULL, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip


def refusal(done: subprocess.CompletedProcess[str], source: Path | str, folder: Path) -> str:
    """The message of a refusal, with all that the page promises of it checked."""
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert 1 <= len(lines) <= 2, done.stderr
    assert lines[0].startswith(f"refused: {source}: ")
    assert all(line.startswith("  hint: ") for line in lines[1:])
    assert "Traceback" not in done.stderr
    assert [path.name for path in folder.iterdir()] == [], "something was left behind"
    return lines[0].removeprefix(f"refused: {source}: ")


@pytest.mark.parametrize(("name", "options", "words"), CASES)
def test_refused(name: str, options: str, words: str, tmp_path: Path) -> None:
    source = CORPUS / f"{name}.o"
    told = refusal(transform(source, *options.split(), folder=tmp_path), source, tmp_path)
    assert words in told
    assert any(row.matches(told) for row in REFUSED), told


def test_both_strategies_refused(tmp_path: Path) -> None:
    """auto names both reasons, in the form that the page shows."""
    source = CORPUS / "static_subprog.o"
    done = transform(source, "--arch", "riscv64", folder=tmp_path)
    told = refusal(done, source, tmp_path)
    assert re.fullmatch(r"program \S+ \(xdp\): not inline: .+; not subprog: .+", told)


def test_too_many_codes(tmp_path: Path) -> None:
    """More codes than a command line can hold, so in a chain file."""
    codes = ",".join(map(str, range(1, 120000, 3)))
    name = CORPUS / "verdict_socket.o"
    link = f'[[link]]\nobject = "{name}"\n'
    told = build_refusal(f'{link}success = "{codes}"\n{link}', name, tmp_path)
    assert any(row.matches(part) for row in REFUSED for part in told.split("; not subprog: ")), told


def test_patched_already(tmp_path: Path) -> None:
    first = tmp_path / "first"
    second = tmp_path / "second"
    first.mkdir()
    second.mkdir()
    done = transform(CORPUS / "filter.o", folder=first)
    assert done.returncode == 0, done.stderr
    told = refusal(transform(first / "out.o", folder=second), first / "out.o", second)
    assert told.startswith("filter is already link 1 of a chain (patched by bpfchain ")
    assert any(row.matches(told) for row in REFUSED), told


def test_stripped(tmp_path: Path) -> None:
    """``llvm-strip`` takes the symbols, ``llvm-strip -g`` does not, as the page says."""
    work = tmp_path / "work"
    work.mkdir()
    for name, options, refused in (("all.o", (), True), ("debug.o", ("-g",), False)):
        stripped = tmp_path / name
        command = ["llvm-strip", *options, str(CORPUS / "filter.o"), "-o", str(stripped)]
        subprocess.run(command, check=True, timeout=60)
        done = transform(stripped, folder=work)
        if refused:
            assert refusal(done, stripped, work) == "it has no symbol table"
        else:
            assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not an ELF file"),
        (b"not an object", "not an ELF file"),
        ((CORPUS / "filter.o").read_bytes()[:1000], "the file is cut short"),
    ],
)
def test_no_object(content: bytes, words: str, tmp_path: Path) -> None:
    """The one sentence of the page for files that no compiler writes."""
    assert f"`{words}" in PAGE.read_text()
    work = tmp_path / "work"
    work.mkdir()
    source = tmp_path / "in.o"
    source.write_bytes(content)
    assert words in refusal(transform(source, folder=work), source, work)


def test_an_older_output_stays(tmp_path: Path) -> None:
    """Where OUT exists already, a refusal leaves it as it was."""
    (tmp_path / "out.o").write_bytes(b"older")
    done = transform(CORPUS / "refused_throw.o", folder=tmp_path)
    assert done.returncode == 3
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"out.o": b"older"}


def build_refusal(links: str, named: Path | None, folder: Path) -> str:
    """Why ``bpfchain build`` refuses a chain of these links: one line that begins with the name of
    the object, or of the chain file, and no folder."""
    chain = folder / "chain.toml"
    chain.write_text(f'name = "refused"\n{links}')
    done = subprocess.run(
        [BIN / "bpfchain", "build", chain, "-o", folder / "out"],
        text=True, capture_output=True, timeout=60, check=False, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 3, done.stderr[:2000]
    lines = done.stderr.splitlines()
    assert 1 <= len(lines) <= 2, done.stderr[:2000]
    start = f"refused: {named or chain}: "
    assert lines[0].startswith(start)
    assert [path.name for path in folder.iterdir()] == ["chain.toml"], "something was left behind"
    return lines[0].removeprefix(start)


def test_a_refused_chain(tmp_path: Path) -> None:
    names = ("filter", "xdp_frags")
    links = "".join(f'[[link]]\nobject = "{CORPUS / name}.o"\n' for name in names)
    told = build_refusal(links, None, tmp_path)
    assert "handles frags" in told
    assert any(row.matches(told) for row in ROWS if row.section == CHAIN), told

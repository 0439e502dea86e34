"""bpfchain inspect: what it says of links, and that its two columns are the two programs."""

from __future__ import annotations

import json
import os
import pty
import random
import subprocess
from pathlib import Path

import pytest

from bpfchain.cli.changes import Change, ObjectView, entry_view
from bpfchain.transform.elf_read import read_object
from bpfchain.transform.errors import BpfchainError
from bpfchain.transform.program import programs_of
from bpfchain.transform.provenance import read_provenance
from bpfchain.transform.request import Request
from bpfchain.transform.subject import entry_names
from bpfchain.transform.transform import transform_object
from support.commands import PROGRAMS, argv, environment, run

LINK0 = """\
link0.o  xdp/filter  link 0 of a live chain  S=PASS  R=none  inline: stack slot r10-16 is free
  slots    bpfchain_slots[0]
  context  stack slot r10-16
  stack    16 bytes
  DWARF    dropped
  made by  bpfchain VERSION from sha256 SHA256
  filter (nothing saved, slot 0): 109 instructions, 11 of them added
     original         patched
                    +    0: *(u64 *)(r10 - 16) = r1      keep the context
     …                …
     ; filter.c:28: if (bpf_map_lookup_elem(&blocked, &port))
       96: r0 = 2       97: r0 = 2
     ; filter.c:31: }
       97: exit     ~   98: goto +0 -> 99
                    +   99: w1 = w0
                    +  100: if r1 == 2 goto +1 -> 102    PASS
                    +  101: exit                         the chain ends here
                    +  102: r1 = *(u64 *)(r10 - 16)
                    +  103: r2 = map[bpfchain_slots] ll
                    +  105: r3 = 1                       slot of link 1, nothing saved
                    +  106: call bpf_tail_call#12        go on to link 1
                    +  107: r0 = 2                       PASS
                    +  108: exit
"""
"""Checked by hand against `llvm-objdump -dr` of both objects and filter.c."""


def _patch(here: Path, name: str, *options: str, out: str = "link0.o") -> None:
    done = run("bpfchain-transform", f"{name}.o", "-o", out, "-q", *options, cwd=here)
    assert done.code == 0, done.stderr


def test_a_link_beside_its_original(here: Path) -> None:
    from hashlib import sha256

    from bpfchain.transform.version import VERSION

    _patch(here, "filter", "--index", "0")
    done = run("bpfchain", "inspect", "link0.o", cwd=here)
    digest = sha256((here / "filter.o").read_bytes()).hexdigest()
    assert (done.code, done.stderr) == (0, "")
    assert done.text == LINK0.replace("VERSION", VERSION).replace("SHA256", digest)
    compared = run("bpfchain", "inspect", "link0.o", "--original", "filter.o", cwd=here)
    assert compared.text == done.text


def test_states_and_slots(here: Path) -> None:
    _patch(here, "metrics", "--index", "1", "--saved", "REDIRECT", "--strategy", "subprog")
    text = run("bpfchain", "inspect", "link0.o", cwd=here).text
    assert "link 1 of a live chain  S=PASS  R=none  subprog: the body becomes a function\n" in text
    assert "  slots    bpfchain_slots[1, 166]\n" in text
    assert "  metrics (nothing saved, slot 1): " in text
    assert "  metrics__redirect (REDIRECT saved, slot 166): " in text
    assert ", and the body in metrics__body\n" in text
    assert "slot of link 2, REDIRECT saved\n" in text


def test_json(here: Path) -> None:
    _patch(here, "filter", "--index", "0", "--redirect", "REDIRECT")
    done = run("bpfchain", "inspect", "link0.o", "--json", cwd=here)
    assert done.stderr == ""
    found = json.loads(done.text)
    (link,) = found["links"]
    assert found["object"] == "link0.o"
    assert (link["program"], link["hook"], link["index"]) == ("filter", "xdp", 0)
    assert link["redirect"] == [{"code": 4, "name": "REDIRECT"}]
    (entry,) = link["entries"]
    kinds = [change["kind"] for change in entry["changes"]]
    assert kinds[:2] == ["added", "changed"]
    slots = [c["patched"]["slot"] for c in entry["changes"] if c["kind"] == "added"]
    wide = sum(" ll" in c["patched"]["text"] for c in entry["changes"])
    assert len(slots) + wide == entry["added"] == entry["instructions"] - 98


def test_without_line_info_the_provenance_tells_where_the_body_is(here: Path) -> None:
    _patch(here, "nobtf", "--index", "0")
    done = run("bpfchain", "inspect", "link0.o", cwd=here)
    assert (done.code, done.stderr) == (0, "")
    assert "keep the context\n" in done.text
    compared = run("bpfchain", "inspect", "link0.o", "--original", "nobtf.o", cwd=here)
    assert compared.text == done.text
    wrong = run("bpfchain", "inspect", "link0.o", "--original", "filter.o", cwd=here)
    assert wrong.code == 3
    assert wrong.stderr.startswith("refused: link0.o: was not made from filter.o: that has sha256 ")


def test_what_is_no_link(here: Path) -> None:
    done = run("bpfchain", "inspect", "three_progs.o", cwd=here)
    assert (done.code, done.stdout) == (3, b"")
    assert done.stderr == (
        "refused: three_progs.o: not a link: it has no section .bpfchain "
        "(its programs: before, middle, after)\n"
        "  hint: patch it with bpfchain-transform\n"
    )


def test_several_links_in_one_object(here: Path) -> None:
    _patch(here, "three_progs", "--index", "0", "--program", "before", out="a.o")
    _patch(here, "a", "--index", "1", "--program", "after", out="b.o")
    text = run("bpfchain", "inspect", "b.o", cwd=here).text
    assert [line.split()[1] for line in text.splitlines() if line.startswith("b.o  ")] == [
        "xdp/before",
        "xdp/after",
    ]
    one = run("bpfchain", "inspect", "b.o", "--program", "after", cwd=here).text
    assert text.endswith("\n\n" + one)
    wrong = run("bpfchain", "inspect", "b.o", "--program", "aftr", cwd=here)
    assert wrong.code == 2
    assert wrong.stderr == "usage: b.o: no link of program 'aftr'\n  hint: did you mean after?\n"


def _on_terminal(here: Path, columns: int, **changed: str) -> str:
    """The page as a terminal of that width gets it."""
    import fcntl
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        argv("bpfchain", "inspect", "link0.o"), cwd=here, stdout=theirs, stderr=theirs,
        env=environment(**({"TERM": "xterm"} | changed)),
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert process.wait(timeout=30) == 0
    return seen.decode().replace("\r\n", "\n")


def test_a_terminal_gets_colour_and_no_line_too_wide(here: Path) -> None:
    _patch(here, "filter", "--index", "0")
    wide = _on_terminal(here, 120)
    assert "\x1b[32m" in wide
    assert "     original         patched\n" in wide
    assert (
        _on_terminal(here, 120, NO_COLOR="1")
        == run("bpfchain", "inspect", "link0.o", cwd=here).text
    )
    assert "\x1b" not in _on_terminal(here, 120, TERM="dumb")
    narrow = _on_terminal(here, 60, NO_COLOR="1")
    listing = narrow[narrow.index("of them added") :].splitlines()[1:]
    assert max(map(len, listing)) <= 60
    assert "    -   97: exit" in listing
    assert "    ~   98: goto +0 -> 99" in listing


CASES = [
    path
    for path in sorted(PROGRAMS.glob("*.o"))
    if not path.name.startswith(("refused", "pad_big", "jump_limit"))
]


@pytest.mark.parametrize("strategy", ["inline", "subprog"])
def test_both_columns_are_the_programs(strategy: str) -> None:
    """Over the corpus: what is shown of the original stands there in the original, what is told
    as added and changed is all that differs, and the provenance says the same as the comparison."""
    seen = 0
    for path in CASES:
        data = path.read_bytes()
        before = ObjectView(read_object(data))
        for function in programs_of(before.obj):
            try:
                patched = transform_object(
                    data, Request(index=3, program=function.name, strategy=strategy)
                )
            except BpfchainError:
                continue
            after = ObjectView(read_object(patched.data))
            (entry,) = read_provenance(after.obj)
            for state, name in entry_names(entry.program, entry.link).items():
                told = entry_view(after, entry, state, name, None)
                compared = entry_view(after, entry, state, name, before)
                assert told == compared, path.name
                if strategy == "inline" and patched.strategy == "inline":
                    texts = before.texts(function, before.code(function))
                    assert compared.instructions - compared.added == len(texts), path.name
                    _stands_there(compared.rows, texts, path.name)
                seen += 1
    assert seen > 60


def _stands_there(rows: tuple[Change, ...], texts: list[str | None], what: str) -> None:
    for row in rows:
        if row.original is not None:
            assert texts[row.original.slot] == row.original.text, f"{what}: {row}"
        if row.mark == "+":
            assert row.original is None


def test_damaged_links_end_in_one_line(here: Path) -> None:
    """Bytes of a patched object changed at random: an answer or an error, never a traceback."""
    from bpfchain.cli.inspect import _look, _page, _to_dict

    good = transform_object(
        (here / "filter.o").read_bytes(), Request(index=0, redirect="REDIRECT")
    ).data
    chance = random.Random(1)
    ends = {"answer": 0, "error": 0, "other": 0}
    start = good.index(b"link=filter")
    for turn in range(1500):
        data = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            low, high = (start, start + 250) if turn % 3 == 0 else (0, len(data) - 1)
            data[chance.randint(low, high)] = chance.randint(0, 255)
        try:
            for link in _look(bytes(data), None, None, None):
                _to_dict(*link)
                _page("x.o", *link)
            ends["answer"] += 1
        except BpfchainError as error:
            ends["error" if error.exit_code == 3 else "other"] += 1
    assert ends["answer"] > 50
    assert ends["error"] > 50
    assert ends["other"] == 0

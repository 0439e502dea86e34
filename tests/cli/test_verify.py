"""bpfchain verify: exit codes, whole messages, reports, what is matched before anything runs."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bpfchain.verify.captures import to_pcap
from support.commands import PROGRAMS, Done, run


@pytest.fixture
def chain(here: Path) -> Path:
    """The folder, with ``chain/`` built from its chain.toml."""
    assert run("bpfchain", "build", "chain.toml", "-o", "chain", "-q", cwd=here).code == 0
    return here


def verify(here: Path, *words: str) -> Done:
    return run("bpfchain", "verify", *words, cwd=here)


def damaged(path: Path) -> None:
    """The slot of the next link, a constant of the patch, becomes another."""
    data = bytearray(path.read_bytes())
    call = data.index(struct.pack("<BBhi", 0x85, 0, 0, 12))
    opcode, registers, offset, slot = struct.unpack_from("<BBhi", data, call - 8)
    assert (opcode, registers, slot) == (0xB7, 3, 1)
    struct.pack_into("<BBhi", data, call - 8, opcode, registers, offset, slot + 1)
    path.write_bytes(data)


def test_a_sound_link(chain: Path) -> None:
    done = verify(chain, "filter.o", "chain/link0.o")
    assert (done.code, done.stderr) == (0, "")
    first, *rest = done.text.splitlines()
    assert first.startswith("equal   chain/link0.o: 1 link, ")
    assert rest[0].startswith("  not checked: ")
    assert any("filter" in line and line.endswith("proved  equal") for line in rest)


def test_a_chain(chain: Path) -> None:
    done = verify(chain, "chain/manifest.json")
    assert (done.code, done.stderr) == (0, "")
    assert done.text.startswith("equal   chain edge: 3 links, ")
    assert "  chain equal: " in done.text


def test_a_wrong_slot_is_exit_1_with_the_place(chain: Path) -> None:
    damaged(chain / "chain" / "link0.o")
    done = verify(chain, "filter.o", "chain/link0.o")
    assert done.code == 1
    assert done.text.startswith("not equal   chain/link0.o")
    first, *hints = done.stderr.splitlines()
    assert first.startswith("not equal: chain/link0.o: ")
    assert "instruction xdp+" in first
    assert len(hints) <= 1
    assert "saved as counterexample.pcapng" in done.text
    again = verify(chain, "filter.o", "chain/link0.o", "--corpus", "counterexample.pcapng")
    assert again.code == 1
    assert "1 packet" in again.text


def test_quiet_leaves_the_error_and_the_exit_code(chain: Path) -> None:
    done = verify(chain, "chain/manifest.json", "-q")
    assert (done.code, done.stdout, done.stderr) == (0, b"", "")
    damaged(chain / "chain" / "link0.o")
    done = verify(chain, "filter.o", "chain/link0.o", "-q")
    assert (done.code, done.stdout) == (1, b"")
    assert done.stderr.startswith("not equal: ")


def test_reports_are_written_also_where_it_fails(chain: Path) -> None:
    damaged(chain / "chain" / "link0.o")
    kinds = {"html": "r.html", "json": "r.json", "junit": "r.xml", "lcov": "r.info"}
    options = [word for kind, name in kinds.items() for word in ("--report", f"{kind}={name}")]
    assert verify(chain, "filter.o", "chain/link0.o", *options).code == 1
    report = json.loads((chain / "r.json").read_text())
    assert report["outcome"] == "not-equal"
    suites = ElementTree.parse(chain / "r.xml").getroot()
    assert suites.get("failures") != "0"
    assert (chain / "r.html").read_text().startswith("<!doctype html>")
    assert "SF:" in (chain / "r.info").read_text()


def test_json_on_stdout_is_the_report(chain: Path) -> None:
    done = verify(chain, "chain/manifest.json", "--json", "-q")
    report = json.loads(done.text)
    assert report["outcome"] == "equal"
    assert [link["index"] for link in report["links"]] == [0, 1, 2]
    assert all(link["static"]["readers"] == ["pyelftools", "lief"] for link in report["links"])


def test_several_processes_find_the_same(chain: Path) -> None:
    reports = []
    for jobs in ("1", "2"):
        done = verify(chain, "chain/manifest.json", "--jobs", jobs, "--json", "-q")
        report = json.loads(done.text)
        reports.append({k: v for k, v in report.items() if k not in ("seconds", "rerun")})
    assert reports[0] == reports[1]


def test_a_changed_object_is_refused_before_anything_runs(chain: Path) -> None:
    damaged(chain / "chain" / "link0.o")
    done = verify(chain, "chain/manifest.json")
    assert done.code == 3
    assert done.stderr.startswith("refused: chain/link0.o: has sha256 ")


def test_a_changed_original_is_refused(chain: Path) -> None:
    shutil.copy(chain / "metrics.o", chain / "filter.o")
    done = verify(chain, "chain/manifest.json")
    assert done.code == 3
    assert "link 0 was made from" in done.stderr


def test_a_missing_original_can_be_named(chain: Path) -> None:
    (chain / "filter.o").rename(chain / "elsewhere.o")
    done = verify(chain, "chain/manifest.json")
    assert done.code == 2
    assert done.stderr.endswith("  hint: name it with --original\n")
    assert verify(chain, "chain/manifest.json", "--original", "elsewhere.o").code == 0


def test_an_object_that_is_no_link(here: Path) -> None:
    done = verify(here, "filter.o", "metrics.o")
    assert done.code == 3
    assert done.stderr.startswith("refused: metrics.o: ")


def test_another_original_is_not_equal(chain: Path) -> None:
    done = verify(chain, "metrics.o", "chain/link0.o")
    assert done.code in (1, 3)
    assert "sha256" in done.stderr


def test_what_is_not_modelled_is_inconclusive_unless_allowed(here: Path) -> None:
    shutil.copy(PROGRAMS / "sk_ref.o", here)
    made = run("bpfchain-transform", "sk_ref.o", "--index", "0", "-o", "l.o", cwd=here)
    assert made.code == 0
    assert "proved; not run through: bpf_sk_lookup_tcp" in made.stderr
    done = verify(here, "sk_ref.o", "l.o")
    assert done.code == 4
    assert done.stderr.startswith("inconclusive: l.o: not run through: bpf_sk_lookup_tcp")
    assert verify(here, "sk_ref.o", "l.o", "--allow", "unmodelled").code == 0
    strict = run(
        "bpfchain-transform", "sk_ref.o", "--index", "0", "-o", "s.o", "--strict", cwd=here
    )
    assert strict.code == 4
    assert not (here / "s.o").exists()


PADDED = {"version": 1, "maps": {"codes": [{"key": "0100000002000000", "value": 2}]}}


def test_a_verdict_that_depends_on_the_stack(here: Path) -> None:
    """The padded key is found only where zeros lie behind it (design-trials.md, trial 4)."""
    shutil.copy(PROGRAMS / "padded_key.o", here)
    (here / "padded.json").write_text(json.dumps(PADDED))
    words = ("padded_key.o", "--index", "1", "-o", "l.o", "--scenario", "padded.json")
    done = run("bpfchain-transform", *words, cwd=here)
    assert done.code == 4
    assert done.stderr.startswith("inconclusive: l.o: ")
    assert "stack" in done.stderr
    assert "instruction xdp+" in done.stderr
    assert not (here / "l.o").exists()
    allowed = run(
        "bpfchain-transform", *words, "--allow", "stack-residue", "--manifest", "m.json", cwd=here
    )
    assert allowed.code == 0, allowed.stderr
    assert json.loads((here / "m.json").read_text())["links"][0]["allowed"] == ["stack-residue"]
    again = ("padded_key.o", "l.o", "--scenario", "padded.json")
    assert verify(here, *again).code == 4
    taken = verify(here, *again, "--allow", "stack-residue")
    assert taken.code == 0
    assert "waived: stack-residue" in taken.text


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("none.o", "filter.o"), 2, "usage: none.o: no such file"),
        (("filter.o",), 2, "usage: filter.o is an object, not a manifest"),
        (("a", "b", "c"), 2, "usage: 3 files are too many"),
        ((), 2, "usage: IN OUT | MANIFEST is missing"),
        (("filter.o", "filter.o", "--engine", "qemu"), 2, "usage: --engine: 'qemu' is not"),
        (("filter.o", "filter.o", "--jobs", "0"), 2, "usage: --jobs"),
        (("filter.o", "filter.o", "--report", "pdf=x"), 2, "usage: --report pdf=x"),
        (("filter.o", "filter.o", "--corpus", "filter.o"), 3, "refused: filter.o"),
        (("filter.o", "filter.o", "--corpus", "gone.pcap"), 2, "usage: gone.pcap: no such file"),
        (("chain.toml",), 3, "refused: chain.toml"),
    ],
)
def test_bad_command_lines(here: Path, words: tuple[str, ...], code: int, said: str) -> None:
    done = verify(here, *words)
    assert (done.code, done.stdout) == (code, b"")
    assert done.stderr.startswith(said), done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_an_empty_and_a_cut_capture(chain: Path) -> None:
    (chain / "empty.pcap").write_bytes(to_pcap([], []))
    whole = to_pcap([bytes(64)], [0])
    (chain / "cut.pcap").write_bytes(whole[:-5])
    for name in ("empty", "cut"):
        done = verify(chain, "filter.o", "chain/link0.o", "--corpus", f"{name}.pcap")
        assert done.code == 3
        assert done.stderr.startswith(f"refused: {name}.pcap")
        assert done.stdout == b""


def test_packets_that_no_hook_runs_are_inconclusive(chain: Path) -> None:
    (chain / "short.pcap").write_bytes(to_pcap([bytes(5), bytes(13)], [0, 1]))
    done = verify(chain, "filter.o", "chain/link0.o", "--corpus", "short.pcap")
    assert done.code == 4
    assert done.stderr.startswith("inconclusive: ")

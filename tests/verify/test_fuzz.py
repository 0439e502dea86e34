"""Fuzzing finds what no recording holds: behind a magic number, and behind a map's content."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import pytest

from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object
from bpfchain.verify.captures import read_capture
from bpfchain.verify.fuzz import Campaign, campaign_of
from bpfchain.verify.prove import Options, Subject, prove_static
from bpfchain.verify.recording import builtin_recording
from bpfchain.verify.result import Outcome
from support.commands import run

SOURCE = Path(__file__).parent / "subjects" / "rare.c"
MAGIC = struct.pack("<I", 0x4A17C0DE)
ROUNDS = 40


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("subject") / "rare.o"
    asm = next(Path("/usr/include").glob("*-linux-gnu*/asm/types.h")).parents[1]
    subprocess.run(
        ["clang", "-target", "bpf", "-O2", "-g", "-mcpu=v2", f"-I{asm}", "-c", SOURCE, "-o", out],
        check=True,
    )
    return out.read_bytes()


@pytest.fixture(scope="module")
def patched(original: bytes) -> bytes:
    return transform_object(original, Request(index=0, strategy="inline")).data


def other_verdict(data: bytes, verdict: int) -> bytes:
    """The constant of one of the body's returns (TX = 3, DROP = 1) becomes ABORTED."""
    right = struct.pack("<BBhi", 0xB7, 0, 0, verdict)
    assert data.count(right) == 1
    return data.replace(right, struct.pack("<BBhi", 0xB7, 0, 0, 0))


def campaign(original: bytes, patched: bytes, seed: int = 0) -> Campaign:
    subject = Subject(original=original, patched=patched, input_name="rare.o", output_name="link.o")
    options = Options(recordings=(builtin_recording(),), seed=seed)
    return campaign_of(subject, prove_static(subject, options)[0], options)


def rounds(one: Campaign, count: int = ROUNDS) -> int:
    """Rounds until the campaign ends, at most ``count``."""
    for number in range(1, count + 1):
        if not one.round():
            return number
    return count


def test_a_sound_link_stays_equal_and_coverage_grows(original: bytes, patched: bytes) -> None:
    one = campaign(original, patched)
    assert one.began_with < one.of, "the recording must leave something to find"
    rounds(one)
    assert one.outcome is Outcome.EQUAL
    assert len(one.known) == one.of
    assert any(found.packet[26:30] == MAGIC for found in one.found)
    assert any("ports" in found.scenario.maps for found in one.found)


@pytest.mark.parametrize("verdict", [3, 1], ids=["magic-number", "map-content"])
def test_a_difference_behind_it_is_found(original: bytes, patched: bytes, verdict: int) -> None:
    one = campaign(original, other_verdict(patched, verdict))
    assert one.result is None, "the recording alone must not show it"
    rounds(one)
    assert one.outcome is Outcome.NOT_EQUAL
    example = one.counterexample
    assert example is not None
    assert example.dimension == "verdict"
    if verdict == 3:
        assert example.data[26:30] == MAGIC
        assert sum(map(bool, example.data)) <= 4 + 2, "the rest is zeroed"


def test_the_same_seed_gives_the_same_packets(original: bytes, patched: bytes) -> None:
    found = []
    for seed in (7, 7, 8):
        one = campaign(original, patched, seed)
        rounds(one, 6)
        found.append([(f.packet, sorted(f.edges)) for f in one.found])
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_the_command_saves_what_it_found(tmp_path: Path, original: bytes, patched: bytes) -> None:
    (tmp_path / "rare.o").write_bytes(original)
    (tmp_path / "link.o").write_bytes(patched)
    words = ("fuzz", "rare.o", "link.o", "--packets", "20000", "--save", "found.pcapng", "--json")
    done = run("bpfchain", *words, cwd=tmp_path)
    assert done.code == 0, done.stderr
    report = json.loads(done.text)["links"][0]
    assert report["outcome"] == "equal"
    assert report["edges"]["seen"] == report["edges"]["of"]
    capture = read_capture((tmp_path / "found.pcapng").read_bytes(), "found.pcapng")
    assert len(capture.packets) == report["found"] > 0
    assert done.stderr.splitlines()[-1].startswith(f"found.pcapng: {report['found']} packets")
    again = run("bpfchain", "verify", "rare.o", "link.o", "--corpus", "found.pcapng", cwd=tmp_path)
    assert again.code == 0


def test_the_command_ends_with_1_and_a_recording(
    tmp_path: Path, original: bytes, patched: bytes
) -> None:
    (tmp_path / "rare.o").write_bytes(original)
    (tmp_path / "link.o").write_bytes(other_verdict(patched, 3))
    done = run("bpfchain", "fuzz", "rare.o", "link.o", "--packets", "60000", cwd=tmp_path)
    assert done.code == 1
    assert "not equal: link.o: " in done.stderr
    again = run(
        "bpfchain", "verify", "rare.o", "link.o", "--corpus", "counterexample.pcapng", cwd=tmp_path
    )
    assert again.code == 1
    assert "dynamic" in again.text


@pytest.mark.parametrize("time", ["", "0", "-1s", "5x", "soon"])
def test_a_time_that_is_none(tmp_path: Path, time: str) -> None:
    done = run("bpfchain", "fuzz", "a.o", "b.o", "--time", time, cwd=tmp_path)
    assert done.code == 2
    assert done.stderr.startswith("usage: --time: ")

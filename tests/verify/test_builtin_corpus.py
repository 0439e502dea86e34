"""The built-in packets: written by their generator, and holding what its README says."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from scapy.utils import rdpcap

from bpfchain.transform.policy import hook_named
from bpfchain.verify import recording as module
from bpfchain.verify.recording import Recording, builtin_recording

ROOT = Path(__file__).resolve().parents[2]
GENERATOR = ROOT / "corpus/packets/generate.py"
PCAP = Path(module.__file__).parent / "data/builtin.pcap"


@pytest.fixture(scope="module")
def recording() -> Recording:
    return builtin_recording()


def names() -> list[str]:
    lines = (ROOT / "corpus/packets/builtin.txt").read_text().splitlines()
    return [line.split(maxsplit=2)[2] for line in lines if not line.startswith("#")]


def test_the_generator_writes_the_same_bytes() -> None:
    done = subprocess.run([sys.executable, GENERATOR, "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_has_a_few_hundred_packets_each_once_with_a_name(recording: Recording) -> None:
    assert 350 <= len(recording.packets) <= 450
    assert len(set(recording.packets)) == len(recording.packets)
    assert len(names()) == len(set(names())) == len(recording.packets)


def test_scapy_reads_it(recording: Recording) -> None:
    assert [bytes(packet) for packet in rdpcap(str(PCAP))] == list(recording.packets)


def walk(packet: bytes) -> tuple[str, ...]:
    """Tags, network and transport of a frame, read here by hand."""
    if len(packet) < 14:
        return ("short",)
    found, at = [], 12
    kind = packet[at : at + 2].hex()
    while kind in ("8100", "88a8", "9100"):
        found.append(kind)
        at += 4
        kind = packet[at : at + 2].hex()
    found.append(kind)
    at += 2
    if kind == "0800" and len(packet) >= at + 20:
        fragment = int.from_bytes(packet[at + 6 : at + 8], "big") & 0x3FFF
        found.append("fragment" if fragment else f"ip {packet[at + 9]}")
    if kind == "86dd" and len(packet) >= at + 40:
        found.append(f"ip6 {packet[at + 6]}")
    return tuple(found)


def test_it_holds_what_parsers_branch_on(recording: Recording) -> None:
    seen = Counter(walk(packet) for packet in recording.packets)
    for tags in (
        (),
        ("8100",),
        ("88a8",),
        ("88a8", "8100"),
        ("8100", "8100"),
        ("88a8", "8100", "8100"),
    ):
        for inner in (("0800", "ip 6"), ("86dd", "ip6 17")):
            assert seen[(*tags, *inner)], (tags, inner)
    for protocol in (1, 2, 4, 6, 17, 33, 41, 47, 50, 51, 132, 136):
        assert seen["0800", f"ip {protocol}"], protocol
    for protocol in (0, 4, 6, 17, 41, 43, 44, 47, 51, 58, 59, 60, 132, 136):
        assert seen["86dd", f"ip6 {protocol}"], protocol
    for kind in ("0806", "8035", "8847", "8864", "88cc", "0600", "05ff", "05dc"):
        assert any(kind in found for found in seen), kind
    assert seen["0800", "fragment"] >= 6


def test_it_holds_the_edges_of_sizes(recording: Recording) -> None:
    sizes = {len(packet) for packet in recording.packets}
    wanted = {*range(1, 79), 128, 1500, 1514, 1518, 3520, 3521, 3712, 3713, 4096, 9014}
    assert wanted <= sizes


def test_every_cut_of_tcp_is_there(recording: Recording) -> None:
    whole = next(
        packet for packet in recording.packets
        if len(packet) == 54 and packet[:53] in recording.packets
    )  # fmt: skip
    assert walk(whole) == ("0800", "ip 6")
    for size in range(1, 54):
        assert whole[:size] in recording.packets, size


def test_most_of_it_runs_at_every_packet_hook(recording: Recording) -> None:
    for name, least in (("xdp", 430), ("tc", 400), ("cgroup_skb/ingress", 400), ("lwt_xmit", 400)):
        inputs = recording.inputs(hook_named(name))
        skipped = sum(count for _, count in inputs.skipped)
        assert len(inputs.packets) >= least
        assert len(inputs.packets) + skipped == len(recording.packets)

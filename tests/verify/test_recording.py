"""Recordings: what is read, and the inputs of runs that they make at each kind of hook."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bpfchain.transform.errors import RefusedError, UsageError
from bpfchain.transform.policy import HOOKS, hook_named
from bpfchain.verify.captures import to_pcap, to_pcapng
from bpfchain.verify.contexts import SkbContext, XdpContext, kind_of
from bpfchain.verify.link_types import frame
from bpfchain.verify.recording import Recording, builtin_recording, read_recording
from bpfchain.verify.scenario import Scenario

XDP, TC, CGROUP, KPROBE = (hook_named(n) for n in ("xdp", "tc", "cgroup_skb/egress", "kprobe"))
SECOND = 10**9
HOUR = 3600 * SECOND
FRAMES = [bytes(12) + b"\x88\xb5" + bytes([n]) * 46 for n in range(5)]
TIMES = [100 * SECOND + n * 7 for n in range(5)]
IP4, IP6 = b"\x45" + bytes(27), b"\x60" + bytes(47)


def write(folder: Path, packets: list[bytes], link: int = 1, scenario: object = None) -> Path:
    path = folder / "x.pcap"
    path.write_bytes(to_pcap(packets, TIMES[: len(packets)], link))
    if scenario is not None:
        (folder / "x.scenario.json").write_text(json.dumps(scenario))
    return path


def test_a_capture_alone(tmp_path: Path) -> None:
    path = write(tmp_path, FRAMES)
    recording = read_recording(path)
    assert recording.packets == tuple(FRAMES)
    assert recording.times == tuple(TIMES)
    assert recording.name == str(path)
    assert recording.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert recording.scenario == Scenario()
    inputs = recording.inputs(XDP)
    assert inputs.packets == tuple(FRAMES)
    assert inputs.contexts == (struct.pack("<6I", 0, 0, 0, 1, 0, 0),) * 5
    assert inputs.times == tuple(HOUR + n * 7 for n in range(5))
    assert inputs.origin == (0, 1, 2, 3, 4)
    assert inputs.skipped == ()


def test_the_scenario_beside_it_is_read(tmp_path: Path) -> None:
    scenario = {"version": 1, "contexts": {"xdp": [{"ingress_ifindex": 5}]}}
    path = write(tmp_path, FRAMES, scenario=scenario)
    recording = read_recording(path)
    beside = tmp_path / "x.scenario.json"
    assert recording.scenario_name == str(beside)
    both = path.read_bytes() + beside.read_bytes()
    assert recording.sha256 == hashlib.sha256(both).hexdigest()
    assert {c[12:16] for c in recording.inputs(XDP).contexts} == {struct.pack("<I", 5)}


def test_a_scenario_that_is_named_counts(tmp_path: Path) -> None:
    path = write(tmp_path, FRAMES, scenario={"version": 9})
    other = tmp_path / "other.json"
    other.write_text('{"version": 1, "contexts": {"skb": [{"mark": 1}, {"mark": 2}]}}')
    inputs = read_recording(path, other).inputs(TC)
    assert [struct.unpack_from("<I", c, 8)[0] for c in inputs.contexts] == [1, 2, 1, 2, 1]
    with pytest.raises(RefusedError, match=r"x\.scenario\.json: in 'version': 9 is unknown"):
        read_recording(path)


def test_contexts_stay_with_their_packets_when_others_are_skipped(tmp_path: Path) -> None:
    scenario = {"version": 1, "contexts": {"xdp": [{"ingress_ifindex": n} for n in (1, 2, 3)]}}
    packets = [FRAMES[0], b"short", FRAMES[1], b"", FRAMES[2]]
    inputs = read_recording(write(tmp_path, packets, scenario=scenario)).inputs(XDP)
    assert inputs.origin == (0, 2, 4)
    assert [c[12] for c in inputs.contexts] == [1, 3, 2]
    assert inputs.times == (HOUR, HOUR + 14, HOUR + 28)
    assert inputs.skipped == (("shorter than an Ethernet header (14 bytes)", 2),)


def test_the_clock_never_goes_back(tmp_path: Path) -> None:
    path = tmp_path / "x.pcapng"
    path.write_bytes(to_pcapng(FRAMES, [50, 10, 60, 55, (1 << 64) - 1]))
    assert read_recording(path).inputs(XDP).times == (
        HOUR, HOUR, HOUR + 10, HOUR + 10, (1 << 63) - 1,
    )  # fmt: skip


def test_times_of_the_scenario(tmp_path: Path) -> None:
    path = write(tmp_path, FRAMES, scenario={"version": 1, "times": [5, 4, 3, 2, 1]})
    assert read_recording(path).inputs(TC).times == (5, 4, 3, 2, 1)
    path = write(tmp_path, FRAMES[:2], scenario={"version": 1, "times": [5]})
    with pytest.raises(UsageError, match=r"x\.scenario\.json: 1 times for 2 packets"):
        read_recording(path).inputs(XDP)


def test_an_empty_capture_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, [])
    with pytest.raises(RefusedError, match=r"x\.pcap holds no packets$"):
        read_recording(path)


@pytest.mark.parametrize("name", ["missing.pcap", "", "a\0b"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_recording(f"{tmp_path}/{name}")
    assert "\n" not in caught.value.message


def test_packets_over_a_page(tmp_path: Path) -> None:
    packets = [bytes(12) + b"\x88\xb5" + bytes(size - 14) for size in (3712, 3713, 9000, 80_000)]
    recording = read_recording(write(tmp_path, packets))
    assert recording.inputs(XDP).origin == (0, 1, 2)
    assert recording.inputs(TC).origin == (0,)
    assert recording.inputs(TC).skipped == (
        ("longer than a test run of an skb takes (3712 bytes)", 3),
    )


SLL = b"\0\0" + b"\0\x01" + b"\0\x06" + bytes(8)
RAW_KINDS = [
    (101, IP4, b"\x08\x00", IP4),
    (101, IP6, b"\x86\xdd", IP6),
    (228, IP4, b"\x08\x00", IP4),
    (229, IP6, b"\x86\xdd", IP6),
    (113, SLL + b"\x08\x00" + IP4, b"\x08\x00", IP4),
    (276, b"\x86\xdd" + bytes(18) + IP6, b"\x86\xdd", IP6),
    (0, b"\x02\0\0\0" + IP4, b"\x08\x00", IP4),
    (0, b"\0\0\0\x1e" + IP6, b"\x86\xdd", IP6),
    (108, b"\0\0\0\x18" + IP6, b"\x86\xdd", IP6),
]


@pytest.mark.parametrize(("link", "packet", "ether_type", "rest"), RAW_KINDS)
def test_hooks_above_ethernet_take_packets_without_it(
    tmp_path: Path, link: int, packet: bytes, ether_type: bytes, rest: bytes
) -> None:
    recording = read_recording(write(tmp_path, [packet], link))
    (made,) = recording.inputs(CGROUP).packets
    assert made == bytes.fromhex("020000000002020000000001") + ether_type + rest
    for hook in (XDP, TC):
        with pytest.raises(
            UsageError,
            match=rf"x\.pcap is a capture of .* \({link}\): {hook.name} needs Ethernet frames$",
        ):
            recording.inputs(hook)


@pytest.mark.parametrize("link", [105, 127, 147])
def test_link_types_that_no_hook_takes(tmp_path: Path, link: int) -> None:
    recording = read_recording(write(tmp_path, [IP4], link))
    for hook in (XDP, CGROUP):
        with pytest.raises(
            UsageError, match=rf"x\.pcap is a capture of .*{link}.*, which no hook takes"
        ):
            recording.inputs(hook)
    assert recording.inputs(KPROBE).packets  # which looks at no packet


@pytest.mark.parametrize(
    ("link", "packet"),
    [(101, b""), (101, b"\x70" + bytes(30)), (113, SLL), (276, bytes(19)), (0, b"\x02\0"),
     (0, b"\x63\0\0\0" + IP4), (113, SLL + b"\0\x04" + bytes(20))],
)  # fmt: skip
def test_headers_that_are_cut_or_name_nothing_are_skipped_and_counted(
    tmp_path: Path, link: int, packet: bytes
) -> None:
    assert frame(packet, link) is None
    inputs = read_recording(write(tmp_path, [packet], link)).inputs(CGROUP)
    assert inputs.packets == ()
    assert inputs.skipped == (("link-layer header cut, or of no protocol", 1),)


def test_notes_tell_of_the_capture(tmp_path: Path) -> None:
    path = write(tmp_path, [IP4], 101)
    data = bytearray(path.read_bytes())
    data[36:40] = struct.pack("<I", 1500)  # the packet's length on the wire
    path.write_bytes(data)
    assert read_recording(path).notes == (
        "1 packet is cut: recorded shorter than it was", "recorded as raw IP (101)",
    )  # fmt: skip


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_the_built_in_recording_runs_at_every_hook(hook: object) -> None:
    from bpfchain.transform.policy import Hook

    assert isinstance(hook, Hook)
    inputs = builtin_recording().inputs(hook, 40)
    assert len(inputs.packets) == len(inputs.contexts) == len(inputs.times) == len(inputs.origin)
    assert len(inputs.packets) >= 8
    size = {"xdp": 24, "skb": 192}.get(kind_of(hook))
    lengths = {len(context) for context in inputs.contexts}
    assert lengths == {size} if size else max(lengths) >= 40


def test_raw_contexts_of_a_scenario(tmp_path: Path) -> None:
    scenario = {"version": 1, "contexts": {"raw": ["00" * 16, "11" * 16, "22" * 16]}}
    recording = read_recording(write(tmp_path, FRAMES, scenario=scenario))
    inputs = recording.inputs(KPROBE, 16)
    assert inputs.contexts == (bytes(16), b"\x11" * 16, b"\x22" * 16)
    assert inputs.packets == (b"", b"", b"")
    assert inputs.origin == (0, 1, 2)
    with pytest.raises(
        UsageError, match=r"raw contexts have 16 bytes, the program reads up to byte 24"
    ):
        recording.inputs(KPROBE, 24)


def read_again(recording: Recording, folder: Path) -> Recording:
    (folder / "y.pcapng").write_bytes(recording.capture_bytes("why"))
    (folder / "y.scenario.json").write_bytes(recording.scenario.to_json())
    return read_recording(folder / "y.pcapng")


@pytest.mark.parametrize("hook", [XDP, TC])
def test_a_part_runs_as_it_did_in_the_whole(tmp_path: Path, hook: object) -> None:
    """What a counterexample needs: saved and read again, contexts and times are the same."""
    contexts = {
        "xdp": [{"ingress_ifindex": n} for n in (1, 2, 3)],
        "skb": [{"mark": n} for n in (7, 8)],
    }
    scenario = {"version": 1, "contexts": contexts, "maps": {"m": [{"key": 1, "value": 2}]}}
    recording = read_recording(write(tmp_path, FRAMES, scenario=scenario))
    whole = recording.inputs(hook)  # type: ignore[arg-type]
    part = recording.select([3, 1], hook)  # type: ignore[arg-type]
    again = read_again(part, tmp_path)
    for found in (part.inputs(hook), again.inputs(hook)):  # type: ignore[arg-type]
        assert found.packets == (FRAMES[3], FRAMES[1])
        assert found.contexts == (whole.contexts[3], whole.contexts[1])
        assert found.times == (whole.times[3], whole.times[1])
    assert again.scenario == part.scenario
    assert again.scenario.maps == recording.scenario.maps


def test_a_part_has_the_digest_of_its_files(tmp_path: Path) -> None:
    part = read_recording(write(tmp_path, FRAMES)).select([0], XDP)
    (tmp_path / "z.pcapng").write_bytes(part.capture_bytes())
    (tmp_path / "z.scenario.json").write_bytes(part.scenario.to_json())
    assert read_recording(tmp_path / "z.pcapng").sha256 == part.sha256


def test_a_part_of_plain_runs() -> None:
    recording = builtin_recording()
    whole = recording.inputs(KPROBE, 300)
    part = recording.select([4, 2], KPROBE, 300)
    found = part.inputs(KPROBE, 300)
    assert found.contexts == (whole.contexts[4], whole.contexts[2])
    assert found.times == (whole.times[4], whole.times[2])


def test_contexts_of_one_are_not_copied_for_each(tmp_path: Path) -> None:
    recording = replace(
        read_recording(write(tmp_path, FRAMES)),
        scenario=Scenario(xdp=(XdpContext(ingress_ifindex=9),), skb=(SkbContext(mark=1),)),
    )
    assert len(recording.select([0, 1, 2], XDP).scenario.xdp) == 1


def test_the_built_in_recording_is_cheap_to_read() -> None:
    """No library that is slow to import is on the transformer's path."""
    code = (
        "import sys; from bpfchain.verify.recording import builtin_recording; builtin_recording();"
        "print([m for m in ('scapy', 'dpkt', 'jsonschema', 'elftools', 'lief', 'asyncio')"
        " if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.stdout.strip() == "[]"

"""Which frames the kernel runs: the rules beside BPF_PROG_TEST_RUN on this machine."""

from __future__ import annotations

import errno
import struct

import pytest

from bpfchain.loader.programs import load_raw
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import ProgType
from bpfchain.transform.policy import Hook, hook_named
from bpfchain.verify.packet_rules import SKB_MAX, XDP_LINEAR_MAX, XDP_MAX, admissible
from bpfchain.verify.recording import builtin_recording

R0_IS_1 = bytes.fromhex("b7000000010000009500000000000000")
HOOKS = ["xdp", "tc", "tcx/ingress", "tcx/egress", "cgroup_skb/ingress", "cgroup_skb/egress",
         "socket", "lwt_in", "lwt_out", "lwt_xmit"]  # fmt: skip
ETHER_TYPES = [0x0800, 0x86DD, 0x8100, 0x88A8, 0x0806, 0, 5, 0x5FF, 0x600, 0x0008, 0xFFFF]
SIZES = [*range(1, 80), 128, 1500, 1514, 3519, 3520, 3521, 3522, 3711, 3712, 3713, 4095, 4096, 4097,
         9000, 65535, 73151, 73152, 73153, 80000]  # fmt: skip


def frame(kind: int, size: int) -> bytes:
    head = bytes.fromhex("020000000002020000000001") + struct.pack(">H", kind)
    return (head + b"\x45" + bytes(size))[:size]


def runs(hook: Hook, frames: list[bytes]) -> list[bool]:
    """Which of them the kernel runs. A refusal that says nothing of the frame fails the test."""
    attach = 0 if hook.name == "xdp" else hook.attach_type_id
    done = []
    with load_raw(ProgType(hook.prog_type_id), R0_IS_1, expected_attach_type=attach) as program:
        for data in frames:
            try:
                done.append(program.test_run(data).retval == 1)
            except BpfError as error:
                assert error.errno in (errno.EINVAL, errno.ENOMEM)  # noqa: PT017
                done.append(False)
    return done


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("name", HOOKS)
def test_the_rules_are_the_kernels(name: str) -> None:
    hook = hook_named(name)
    frames = [frame(kind, size) for kind in ETHER_TYPES for size in SIZES]
    frames += builtin_recording().packets
    ruled = [admissible(data, hook) is None for data in frames]
    differs = [
        f"{data[:16].hex()} of {len(data)} bytes: rule {rule}, kernel {run}"
        for data, rule, run in zip(frames, ruled, runs(hook, frames), strict=True)
        if rule != run
    ]
    assert differs == []
    assert {True, False} == set(ruled)


@pytest.mark.usefixtures("kernel")
def test_xdp_sees_the_linear_part_only() -> None:
    # r0 = data_end - data
    code = bytes.fromhex("611004000000000061120000000000001f200000000000009500000000000000")
    with load_raw(ProgType.XDP, code) as program:
        seen = {size: program.test_run(frame(0, size)).retval for size in (14, 3520, 3521, 9000)}
    assert seen == {14: 14, 3520: XDP_LINEAR_MAX, 3521: XDP_LINEAR_MAX, 9000: XDP_LINEAR_MAX}


def test_reasons_are_few_and_say_why() -> None:
    """Reports count packets by reason: no sizes of packets in them."""
    tc, xdp = hook_named("tc"), hook_named("xdp")
    assert {admissible(frame(0x0800, size), tc) for size in range(1, 5000)} == {
        None,
        "shorter than an Ethernet header (14 bytes)",
        "IPv4 by its EtherType and shorter than an IPv4 header (34 bytes)",
        "longer than a test run of an skb takes (3712 bytes)",
    }
    assert admissible(frame(0x86DD, 53), tc) == (
        "IPv6 by its EtherType and shorter than an IPv6 header (54 bytes)"
    )
    assert (
        admissible(bytes(XDP_MAX + 1), xdp) == "longer than a test run of XDP takes (73152 bytes)"
    )
    assert admissible(bytes(SKB_MAX + 1), xdp) is None
    assert admissible(b"", xdp) is not None


def test_hooks_without_packets_take_anything() -> None:
    assert admissible(b"", hook_named("kprobe")) is None
    assert admissible(bytes(100_000), hook_named("raw_tp")) is None

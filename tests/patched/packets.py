"""A few frames for the corpus's filter, metrics and log, made by hand."""

from __future__ import annotations

import struct

BLOCKED_PORT = 443


def ethernet(protocol: int, payload: bytes) -> bytes:
    frame = bytes.fromhex("020000000001 020000000002") + struct.pack("!H", protocol) + payload
    return frame.ljust(64, b"\0")


def ip6(next_header: int, payload: bytes) -> bytes:
    head = struct.pack("!IHBB", 6 << 28, len(payload), next_header, 64)
    return ethernet(0x86DD, head + bytes(15) + b"\1" + bytes(15) + b"\2" + payload)


def tcp6(port: int) -> bytes:
    """An IPv6/TCP frame to this port."""
    return ip6(6, struct.pack("!HHIIBBHHH", 4000, port, 0, 0, 0x50, 2, 64, 0, 0))


UDP6 = ip6(17, struct.pack("!HHHH", 4000, 53, 8, 0))
IPV4 = ethernet(0x0800, bytes.fromhex("45000014") + bytes(16))
ARP = ethernet(0x0806, bytes(28))

FRAMES = (
    tcp6(BLOCKED_PORT), tcp6(80), tcp6(BLOCKED_PORT), UDP6, IPV4, ARP, tcp6(22), tcp6(443),
)  # fmt: skip
"""Four IPv6/TCP frames to the blocked port or others, and one of each other kind that is counted."""

DROP, PASS = 1, 2


def filter_verdict(frame: bytes) -> int:
    """What the corpus's filter says, port BLOCKED_PORT being blocked."""
    tcp = frame[12:14] == b"\x86\xdd" and frame[20] == 6
    return DROP if tcp and frame[56:58] == struct.pack("!H", BLOCKED_PORT) else PASS


def is_tcp6(frame: bytes) -> bool:
    return frame[12:14] == b"\x86\xdd" and frame[20] == 6


def kind(frame: bytes) -> int:
    """The key under which the corpus's metrics count the frame."""
    protocol = frame[12:14]
    if protocol == b"\x08\x06":
        return 1
    if protocol == b"\x08\x00":
        return 2
    if protocol == b"\x86\xdd":
        return {6: 3, 17: 4}.get(frame[20], 5)
    return 0

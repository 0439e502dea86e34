"""Frames for test runs: IPv4, IPv6, TCP, UDP, VLAN, fragments, what is short and what is long."""

from __future__ import annotations

import struct

_MACS = bytes.fromhex("020000000002 020000000001")
IPV4, IPV6, ARP, VLAN, QINQ = 0x0800, 0x86DD, 0x0806, 0x8100, 0x88A8
TCP, UDP, ICMP, ICMP6, HOP, ROUTING, FRAGMENT, DEST = 6, 17, 1, 58, 0, 43, 44, 60


def ether(proto: int, payload: bytes, *tags: int) -> bytes:
    """A frame, with a VLAN tag of each of these types in front of the protocol."""
    head = _MACS
    for number, tag in enumerate(tags):
        head += struct.pack("!HH", tag, 100 + number)
    return head + struct.pack("!H", proto) + payload


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return int(~(total + (total >> 16)) & 0xFFFF)


def ip4(proto: int, payload: bytes, *, options: bytes = b"", fragment: int = 0) -> bytes:
    def head(check: int) -> bytes:
        return struct.pack(
            "!BBHHHBBH4s4s", 0x45 + len(options) // 4, 0, 20 + len(options) + len(payload), 7,
            fragment, 64, proto, check, bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)),
        ) + options  # fmt: skip

    return head(_checksum(head(0))) + payload


def ip6(proto: int, payload: bytes, *extensions: int) -> bytes:
    """With extension headers of these kinds, eight bytes each."""
    chain = [*extensions, proto]
    body = b"".join(bytes([following, 0]) + bytes(6) for following in chain[1:]) + payload
    addresses = bytes.fromhex("20010db8" + "00" * 11 + "01" + "20010db8" + "00" * 11 + "02")
    return struct.pack("!IHBB", 6 << 28 | 0x12345, len(body), chain[0], 64) + addresses + body


def tcp(source: int, target: int, flags: int = 2, payload: bytes = b"") -> bytes:
    return struct.pack("!HHIIBBHHH", source, target, 1, 2, 0x50, flags, 512, 0, 0) + payload


def udp(source: int, target: int, payload: bytes = b"") -> bytes:
    return struct.pack("!HHHH", source, target, 8 + len(payload), 0) + payload


def _all() -> list[bytes]:
    data = bytes(range(32))
    found = []
    for source, target in ((1024, 80), (443, 2000), (22, 22), (80, 81)):
        for flags in (2, 0x10, 0x14):
            found.append(ether(IPV6, ip6(TCP, tcp(source, target, flags, data))))
        found.append(ether(IPV4, ip4(TCP, tcp(source, target, 2, data))))
        found.append(ether(IPV4, ip4(UDP, udp(source, target, data))))
        found.append(ether(IPV6, ip6(UDP, udp(source, target, data))))
    found += [
        ether(IPV6, ip6(TCP, tcp(1, 80), HOP)),
        ether(IPV6, ip6(TCP, tcp(1, 80), HOP, ROUTING, DEST)),
        ether(IPV6, ip6(TCP, tcp(1, 80), HOP, ROUTING, DEST, DEST)),
        ether(IPV6, ip6(FRAGMENT, bytes(16))),
        ether(IPV6, ip6(ICMP6, bytes([128]) + bytes(20))),
        ether(IPV6, ip6(TCP, tcp(1, 80)), VLAN),
        ether(IPV6, ip6(TCP, tcp(1, 443)), QINQ, VLAN),
        ether(IPV6, ip6(TCP, tcp(1, 443)), VLAN, VLAN, VLAN),
        ether(IPV4, ip4(UDP, udp(53, 53, data)), VLAN),
        ether(IPV4, ip4(ICMP, bytes([8]) + bytes(20))),
        ether(IPV4, ip4(TCP, tcp(5, 80), options=bytes(12))),
        ether(IPV4, ip4(UDP, bytes(24), fragment=0x2001)),
        ether(IPV6, ip6(TCP, tcp(1, 80))[:50]),  # cut in the TCP header
        ether(IPV6, ip6(TCP, b"")),
        ether(IPV4, ip4(TCP, b"")),
        ether(ARP, bytes.fromhex("0001080006040001") + bytes(20)),
        ether(VLAN, bytes(2) + bytes(12)),
        ether(0x88B5, bytes(46)),
        ether(0, bytes(100)),
        _MACS + b"\x08\x00",  # a header and nothing behind
        bytes(14 + 20),
        b"\x80\x80" + bytes(60),
        b"\x02\x01" + bytes(59),
        b"\x01\x7f" + bytes(62),
        b"\xff" * 64,
    ]
    found += [
        ether(IPV4, ip4(UDP, udp(1, 2, bytes(n)))) for n in (60, 150, 230, 333, 434, 555, 1400)
    ]
    return found


PACKETS = _all()
MARKS = (0, 1, 2, 3, 9, 0x8000_0000, 0xFFFF_FFFF)
"""skb->mark for some of the runs of types that have it."""

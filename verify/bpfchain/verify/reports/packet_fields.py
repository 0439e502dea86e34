"""A packet's bytes by the names of their fields: Ethernet, tags, ARP, IPv4, IPv6, TCP, UDP, ICMP.

Names are Wireshark's. What is not known, or cut short, is shown as bytes: this is for people who look
at a counterexample, nothing is decided by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

__all__ = ["Field", "fields_of"]

ROW = 16
"""Bytes of a row of payload."""
_PROTOCOLS = {
    1: "ICMP", 2: "IGMP", 4: "IPv4", 6: "TCP", 17: "UDP", 41: "IPv6", 47: "GRE", 58: "ICMPv6",
    132: "SCTP",
}  # fmt: skip
_ETHER_TYPES = {
    0x0800: "IPv4", 0x0806: "ARP", 0x8100: "802.1Q", 0x88A8: "802.1ad", 0x86DD: "IPv6",
    0x8847: "MPLS",
}  # fmt: skip
_TCP_FLAGS = ("FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR")


@dataclass(frozen=True, slots=True)
class Field:
    """Some bytes of a packet, their name, and what they mean ("" where the bytes say it)."""

    name: str
    offset: int
    data: bytes
    value: str = ""


_Layout = tuple[tuple[str, int, Callable[[bytes], str]], ...]
"""(name, bytes, what they mean), one after the other."""


def _number(data: bytes) -> str:
    return str(int.from_bytes(data))


def _hexadecimal(data: bytes) -> str:
    return f"0x{data.hex()}"


def _none(data: bytes) -> str:
    return ""


def _ipv4(data: bytes) -> str:
    return str(IPv4Address(data))


def _ipv6(data: bytes) -> str:
    return str(IPv6Address(data))


def _ether_type(data: bytes) -> str:
    return _ETHER_TYPES.get(int.from_bytes(data), "")


def _protocol(data: bytes) -> str:
    return _PROTOCOLS.get(data[0], _number(data))


def _flags(data: bytes) -> str:
    return " ".join(name for bit, name in enumerate(_TCP_FLAGS) if data[0] >> bit & 1) or "none"


def _vlan(data: bytes) -> str:
    word = int.from_bytes(data)
    return f"id {word & 0xFFF}, priority {word >> 13}"


def _fragment(data: bytes) -> str:
    word = int.from_bytes(data)
    flags = [name for bit, name in ((0x4000, "DF"), (0x2000, "MF")) if word & bit]
    return " ".join([*flags, f"offset {(word & 0x1FFF) * 8}"])


_ETHERNET: _Layout = (("eth.dst", 6, _none), ("eth.src", 6, _none), ("eth.type", 2, _ether_type))
_TAG: _Layout = (("vlan.tci", 2, _vlan), ("vlan.etype", 2, _ether_type))
_ARP: _Layout = (
    ("arp.hw.type", 2, _number), ("arp.proto.type", 2, _ether_type), ("arp.hw.size", 1, _number),
    ("arp.proto.size", 1, _number), ("arp.opcode", 2, _number), ("arp.src.hw_mac", 6, _none),
    ("arp.src.proto_ipv4", 4, _ipv4), ("arp.dst.hw_mac", 6, _none), ("arp.dst.proto_ipv4", 4, _ipv4),
)  # fmt: skip
_IPV4: _Layout = (
    ("ip.version, ip.hdr_len", 1, lambda d: f"{d[0] >> 4}, {(d[0] & 15) * 4} bytes"),
    ("ip.dsfield", 1, _none), ("ip.len", 2, _number), ("ip.id", 2, _number),
    ("ip.flags, ip.frag_offset", 2, _fragment), ("ip.ttl", 1, _number), ("ip.proto", 1, _protocol),
    ("ip.checksum", 2, _none), ("ip.src", 4, _ipv4), ("ip.dst", 4, _ipv4),
)  # fmt: skip
_IPV6: _Layout = (
    ("ipv6.version, ipv6.flow", 4, lambda d: str(d[0] >> 4)), ("ipv6.plen", 2, _number),
    ("ipv6.nxt", 1, _protocol), ("ipv6.hlim", 1, _number), ("ipv6.src", 16, _ipv6),
    ("ipv6.dst", 16, _ipv6),
)  # fmt: skip
_TCP: _Layout = (
    ("tcp.srcport", 2, _number), ("tcp.dstport", 2, _number), ("tcp.seq", 4, _number),
    ("tcp.ack", 4, _number), ("tcp.hdr_len", 1, lambda d: f"{(d[0] >> 4) * 4} bytes"),
    ("tcp.flags", 1, _flags), ("tcp.window_size", 2, _number), ("tcp.checksum", 2, _none),
    ("tcp.urgent_pointer", 2, _number),
)  # fmt: skip
_UDP: _Layout = (
    ("udp.srcport", 2, _number), ("udp.dstport", 2, _number), ("udp.length", 2, _number),
    ("udp.checksum", 2, _none),
)  # fmt: skip
_ICMP: _Layout = (
    ("icmp.type", 1, _number), ("icmp.code", 1, _number), ("icmp.checksum", 2, _none),
)  # fmt: skip


def fields_of(packet: bytes) -> tuple[Field, ...]:
    """All bytes of the packet in order, each in one field. Names that come again (tunnels, stacked
    tags) get a number."""
    found: list[Field] = []
    seen: dict[str, int] = {}
    for item in _walk(packet):
        seen[item.name] = seen.get(item.name, 0) + 1
        number = seen[item.name]
        name = item.name if number == 1 else f"{item.name} #{number}"
        found.append(Field(name, item.offset, item.data, item.value))
    return tuple(found)


class _Cursor:
    def __init__(self, packet: bytes) -> None:
        self.packet, self.at = packet, 0

    def take(self, layout: _Layout) -> Iterator[Field]:
        """The fields of a layout; one that is cut short ends it."""
        for name, size, meaning in layout:
            data = self.packet[self.at : self.at + size]
            if not data:
                return
            whole = len(data) == size
            yield Field(name, self.at, data, meaning(data) if whole else "cut short")
            self.at += len(data)

    def rows(self, name: str, end: int | None = None) -> Iterator[Field]:
        """Bytes up to ``end``, as rows named by their distance from the first."""
        begin = self.at
        end = len(self.packet) if end is None else min(end, len(self.packet))
        while self.at < end:
            data = self.packet[self.at : min(self.at + ROW, end)]
            yield Field(f"{name}+{self.at - begin}", self.at, data)
            self.at += len(data)


def _walk(packet: bytes) -> Iterator[Field]:
    cursor = _Cursor(packet)
    last = b""
    for item in cursor.take(_ETHERNET):
        last = item.data
        yield item
    while last in (b"\x81\x00", b"\x88\xa8") and cursor.at < len(packet):
        for item in cursor.take(_TAG):
            last = item.data
            yield item
    kind = {b"\x08\x00": 4, b"\x86\xdd": 41}.get(last)
    if last == b"\x08\x06":
        yield from cursor.take(_ARP)
    while kind is not None:
        begin = cursor.at
        fields = list(cursor.take(_IPV4 if kind == 4 else _IPV6))
        yield from fields
        if cursor.at - begin < (20 if kind == 4 else 40):
            break
        if kind == 4:
            yield from cursor.rows("ip.options", begin + (packet[begin] & 15) * 4)
            follows = packet[begin + 9]
            if (packet[begin + 6] & 0x1F) or packet[begin + 7]:
                break  # a later fragment: what follows is no header
        else:
            follows = packet[begin + 6]
        kind = follows if follows in (4, 41) else None
        if kind is None:
            yield from _transport(cursor, follows)
    yield from cursor.rows("data")


def _transport(cursor: _Cursor, protocol: int) -> Iterator[Field]:
    begin = cursor.at
    layout = {6: _TCP, 17: _UDP, 1: _ICMP, 58: _ICMP}.get(protocol, ())
    yield from cursor.take(layout)
    if protocol == 6 and cursor.at - begin == 20:
        end = begin + (cursor.packet[begin + 12] >> 4) * 4
        yield from cursor.rows("tcp.options", end)

"""The protocol of a frame, in one word, for the count in a report."""

from __future__ import annotations

__all__ = ["protocol_of"]

_ETHER = {0x0806: "arp", 0x8847: "mpls", 0x8848: "mpls", 0x8864: "pppoe", 0x8863: "pppoe"}
_IP = {
    1: "icmp", 2: "igmp", 4: "ipip", 6: "tcp", 17: "udp", 33: "dccp", 41: "6in4", 47: "gre",
    50: "esp", 51: "ah", 58: "icmp6", 89: "ospf", 132: "sctp", 136: "udplite",
}  # fmt: skip
_TAGS = (0x8100, 0x88A8, 0x9100)
_EXTENSIONS = (0, 43, 60)


def protocol_of(frame: bytes) -> str:
    """``tcp``, ``arp``, ``ip fragment``, ``other`` …; tags and extension headers are looked through."""
    at = 12
    kind = int.from_bytes(frame[at : at + 2], "big")
    while kind in _TAGS and len(frame) >= at + 6:
        at += 4
        kind = int.from_bytes(frame[at : at + 2], "big")
    at += 2
    if kind == 0x0800 and len(frame) >= at + 20:
        if int.from_bytes(frame[at + 6 : at + 8], "big") & 0x3FFF:
            return "ip fragment"
        return _IP.get(frame[at + 9], "ip other")
    if kind == 0x86DD and len(frame) >= at + 40:
        return _ip6(frame, at)
    return _ETHER.get(kind, "short" if len(frame) < at else "other")


def _ip6(frame: bytes, at: int) -> str:
    following, at = frame[at + 6], at + 40
    while following in _EXTENSIONS and len(frame) >= at + 2:
        following, at = frame[at], at + 8 * (frame[at + 1] + 1)
    return "ip fragment" if following == 44 else _IP.get(following, "ip other")

"""The protocol of a frame, in one word, for the count in a report."""

from __future__ import annotations

__all__ = ["protocol_of"]

_ETHER = {
    b"\x08\x06": "arp", b"\x88\x47": "mpls", b"\x88\x48": "mpls", b"\x88\x64": "pppoe",
    b"\x88\x63": "pppoe",
}  # fmt: skip
_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_IP = {
    1: "icmp", 2: "igmp", 4: "ipip", 6: "tcp", 17: "udp", 33: "dccp", 41: "6in4", 47: "gre",
    50: "esp", 51: "ah", 58: "icmp6", 89: "ospf", 132: "sctp", 136: "udplite",
}  # fmt: skip
_TAGS = (b"\x81\x00", b"\x88\xa8", b"\x91\x00")
_EXTENSIONS = (0, 43, 60)


def protocol_of(frame: bytes) -> str:
    """``tcp``, ``arp``, ``ip fragment``, ``other`` …; tags and extension headers are looked through."""
    at = 12
    kind = frame[at : at + 2]
    while kind in _TAGS and len(frame) >= at + 6:
        at += 4
        kind = frame[at : at + 2]
    at += 2
    if kind == _IPV4 and len(frame) >= at + 20:
        if frame[at + 6] & 0x3F or frame[at + 7]:
            return "ip fragment"
        return _IP.get(frame[at + 9], "ip other")
    if kind == _IPV6 and len(frame) >= at + 40:
        return _ip6(frame, at)
    return _ETHER.get(kind, "short" if len(frame) < at else "other")


def _ip6(frame: bytes, at: int) -> str:
    following, at = frame[at + 6], at + 40
    while following in _EXTENSIONS and len(frame) >= at + 2:
        following, at = frame[at], at + 8 * (frame[at + 1] + 1)
    return "ip fragment" if following == 44 else _IP.get(following, "ip other")

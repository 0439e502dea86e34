"""From a captured packet to the frame that a test run takes: which link type fits which hook.

XDP and tc see the Ethernet header. Hooks above it (cgroup_skb, lwt, socket filters, sk_skb) get a
frame whose Ethernet header the test run takes off again, so for them one is made in front of
packets that were recorded without. Layouts: tcpdump.org/linktypes.html.
"""

from __future__ import annotations

import struct

from bpfchain.transform.errors import UsageError
from bpfchain.transform.policy import Hook
from bpfchain.verify.captures import ETHERNET, link_type_name

__all__ = ["above_ethernet", "check_link_type", "frame"]

_RAW, _RAW4, _RAW6, _SLL, _SLL2, _NULL, _LOOP = 101, 228, 229, 113, 276, 0, 108
_IPV4, _IPV6 = 0x0800, 0x86DD
_MACS = bytes.fromhex("020000000002020000000001")
_FAMILIES = {2: _IPV4, 24: _IPV6, 28: _IPV6, 30: _IPV6, 10: _IPV6}
"""AF_INET, and AF_INET6 as the BSDs, macOS and Linux number it."""
_NOT_ETHERNET = frozenset((_RAW, _RAW4, _RAW6, _SLL, _SLL2, _NULL, _LOOP))


def above_ethernet(hook: Hook) -> bool:
    """Whether the hook's programs see packets from the network header on (``skb-l3``)."""
    return hook.context == "__sk_buff" and not hook.prog_type.endswith("SCHED_CLS")


def check_link_type(link_type: int, hook: Hook, name: str) -> None:
    """Raise UsageError where captures of the link type cannot be run at the hook."""
    if link_type == ETHERNET:
        return
    what = f"{name} is a capture of {link_type_name(link_type)}"
    if link_type not in _NOT_ETHERNET:
        raise UsageError(f"{what}, which no hook takes", "record Ethernet frames")
    if not above_ethernet(hook):
        raise UsageError(
            f"{what}: {hook.name} needs Ethernet frames",
            "record on an Ethernet interface, not on 'any' or a tunnel",
        )


def frame(packet: bytes, link_type: int) -> bytes | None:
    """The packet as a frame with an Ethernet header; None where its own link-layer header is cut, or
    names no protocol. For link types that ``check_link_type`` lets pass."""
    if link_type == ETHERNET:
        return packet
    at, protocol = _network(packet, link_type)
    if protocol is None or at > len(packet):
        return None
    return _MACS + struct.pack(">H", protocol) + packet[at:]


def _network(packet: bytes, link_type: int) -> tuple[int, int | None]:
    """Where the network header begins, and its EtherType."""
    if link_type == _RAW4:
        return 0, _IPV4
    if link_type == _RAW6:
        return 0, _IPV6
    if link_type == _RAW:
        return 0, {4: _IPV4, 6: _IPV6}.get(packet[0] >> 4) if packet else None
    if link_type == _SLL:
        return 16, _ether_type(packet, 14, 16)
    if link_type == _SLL2:
        return 20, _ether_type(packet, 0, 20)
    if len(packet) < 4:
        return 4, None
    if link_type == _LOOP:
        return 4, _FAMILIES.get(struct.unpack_from(">I", packet)[0])
    # NULL: in the byte order of the machine that recorded; a family is below 256
    number: int = struct.unpack_from("<I", packet)[0]
    return 4, _FAMILIES.get(number if number < 256 else struct.unpack_from(">I", packet)[0])


def _ether_type(packet: bytes, at: int, header: int) -> int | None:
    if len(packet) < header:
        return None
    number: int = struct.unpack_from(">H", packet, at)[0]
    return number if number >= 0x600 else None  # below: LLC and other kinds, not Ethernet's numbers

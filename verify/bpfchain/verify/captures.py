"""Capture files as bytes: pcap (both byte orders, µs and ns) and pcapng are read, both are written.

Own code, not a library: the import of dpkt takes 120 ms, half of what the whole proof may add to
``bpfchain-transform``, and it stops at a cut record without a word. A capture that is broken
anywhere is refused as a whole: the packets before the break are not what someone recorded.

Formats: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng (IETF), LINKTYPE numbers of
tcpdump.org/linktypes.html.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from bpfchain.transform.errors import RefusedError

__all__ = [
    "ETHERNET",
    "PACKET_MAX",
    "Capture",
    "link_type_name",
    "looks_like_capture",
    "read_capture",
    "to_pcap",
    "to_pcapng",
]

PACKET_MAX = 262_144
"""Bytes of one record: libpcap's own limit (MAXIMUM_SNAPLEN); more is a broken length."""

ETHERNET = 1
LINK_TYPES = {
    0: "BSD loopback (NULL)",
    1: "Ethernet",
    101: "raw IP",
    105: "IEEE 802.11",
    108: "OpenBSD loopback (LOOP)",
    113: "Linux cooked (SLL)",
    127: "IEEE 802.11 with radiotap",
    228: "raw IPv4",
    229: "raw IPv6",
    276: "Linux cooked 2 (SLL2)",
}
_ALSO_RAW = {12: 101, 14: 101}
"""DLT_RAW has other numbers on some systems, and old captures hold them."""

_SECOND = 1_000_000_000
_PCAP_NANO, _PCAP_MICRO, _PCAP_MODIFIED = 0xA1B23C4D, 0xA1B2C3D4, 0xA1B2CD34
_SECTION, _INTERFACE, _OLD_PACKET, _SIMPLE, _ENHANCED = 0x0A0D0D0A, 1, 2, 3, 6
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_SKIPPED_BLOCKS = frozenset((4, 5, 7, 8, 9, 10, 0x0BAD, 0x4000_0BAD))
"""Names, statistics, journal, secrets, custom blocks: known, and without packets."""
_OTHER_FILES = (
    (b"\x1f\x8b", "is compressed with gzip", "unpack it with gunzip"),
    (b"\xfd7zXZ", "is compressed with xz", "unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd", "unpack it with unzstd"),
    (b"snoop\0", "is a snoop capture, not pcap or pcapng", "convert it with editcap -F pcapng"),
    (b"\x7fELF", "is an ELF file, not a capture", None),
)


@dataclass(frozen=True, slots=True)
class Capture:
    """What a capture file holds. All packets are of one link type."""

    packets: tuple[bytes, ...]
    times: tuple[int, ...]
    """Nanoseconds since 1970, one a packet."""
    link_type: int
    """LINKTYPE_*."""
    snapped: int = 0
    """Packets of which the capture holds less than went over the wire."""
    notes: tuple[str, ...] = ()
    """What was passed over: blocks that no known format describes."""


class _Packet(NamedTuple):
    data: bytes
    time: int
    link_type: int
    wire: int
    offset: int


def link_type_name(number: int) -> str:
    """``Ethernet (1)``; only the number where the name is not known."""
    return f"{LINK_TYPES[number]} ({number})" if number in LINK_TYPES else f"link type {number}"


def looks_like_capture(start: bytes) -> bool:
    """Whether a file that begins with these four bytes can be a capture."""
    known = (_SECTION, _PCAP_NANO, _PCAP_MICRO, _PCAP_MODIFIED)
    return any(int.from_bytes(start, order) in known for order in ("little", "big"))


def read_capture(data: bytes, name: str) -> Capture:
    """The packets of a capture file; ``name`` stands in errors.

    Raises RefusedError: not a capture, broken or cut (with the offset in the file), no packets,
    packets of several link types.
    """
    if len(data) < 4:
        what = "is empty" if not data else f"is no capture: it has {len(data)} bytes"
        raise RefusedError(f"{name} {what}")
    notes: tuple[str, ...] = ()
    if struct.unpack_from("<I", data)[0] == _SECTION:
        packets, notes = _read_pcapng(data, name)
    else:
        packets = _read_pcap(data, name)
    if not packets:
        raise RefusedError(f"{name} holds no packets", "record some, or leave it out")
    link_type = packets[0].link_type
    for number, packet in enumerate(packets):
        if packet.link_type != link_type:
            _mixed(packets, number, name)
    return Capture(
        packets=tuple(packet.data for packet in packets),
        times=tuple(packet.time for packet in packets),
        link_type=link_type,
        snapped=sum(packet.wire > len(packet.data) for packet in packets),
        notes=notes,
    )


def _mixed(packets: list[_Packet], number: int, name: str) -> NoReturn:
    kinds = Counter(packet.link_type for packet in packets)
    listed = ", ".join(f"{link_type_name(kind)}: {count}" for kind, count in kinds.items())
    raise RefusedError(
        f"{name} holds packets of {len(kinds)} link types ({listed}); packet {number} at offset"
        f" {packets[number].offset} is the first that differs",
        "split it by interface with editcap or tcpdump, one link type a file",
    )


def _link_type(number: int) -> int:
    return _ALSO_RAW.get(number, number)


# pcap


def _read_pcap(data: bytes, name: str) -> list[_Packet]:
    order, fraction = _pcap_form(data, name)
    if len(data) < 24:
        raise RefusedError(f"{name} is cut in its header: {len(data)} of 24 bytes")
    major, minor, _, _, _, network = struct.unpack_from(order + "HHiIII", data, 4)
    if (major, minor) != (2, 4):
        raise RefusedError(
            f"{name}: pcap version {major}.{minor} at offset 4 is not known, only 2.4"
        )
    # Bits 16..25 are reserved, 26 tells that the frames end in a checksum of (28..31) 16-bit words.
    if network & 0x0BFF_0000:
        raise RefusedError(f"{name}: link type {network:#x} at offset 20 has reserved bits set")
    link_type = _link_type(network & 0xFFFF)
    record = struct.Struct(order + "IIII")
    packets: list[_Packet] = []
    at = 24
    end = len(data)
    while at < end:
        number = len(packets)
        if end - at < 16:
            raise RefusedError(
                f"{name} is cut in the header of packet {number} at offset {at}:"
                f" {end - at} of 16 bytes"
            )
        seconds, part, size, wire = record.unpack_from(data, at)
        _check_size(name, number, at, size, end - at - 16)
        at += 16
        packets.append(
            _Packet(
                data[at : at + size], seconds * _SECOND + part * fraction, link_type, wire, at - 16
            )
        )
        at += size
    return packets


def _pcap_form(data: bytes, name: str) -> tuple[str, int]:
    """Byte order and nanoseconds a unit, by the magic number."""
    for order in "<>":
        (magic,) = struct.unpack_from(order + "I", data)
        if magic == _PCAP_NANO:
            return order, 1
        if magic == _PCAP_MICRO:
            return order, 1000
        if magic == _PCAP_MODIFIED:
            raise RefusedError(
                f"{name} is a pcap file of Kuznetzov's modified form, which is not read",
                "convert it with editcap -F pcapng",
            )
    for start, what, hint in _OTHER_FILES:
        if data.startswith(start):
            raise RefusedError(f"{name} {what}", hint)
    raise RefusedError(f"{name} is no capture: it begins with {data[:4].hex(' ')}")


def _check_size(name: str, number: int, at: int, size: int, left: int) -> None:
    if size > PACKET_MAX:
        raise RefusedError(
            f"{name} is broken: packet {number} at offset {at} is said to hold {size} bytes,"
            f" more than any capture ({PACKET_MAX})"
        )
    if size > left:
        raise RefusedError(
            f"{name} is cut in packet {number} at offset {at}: {left} of {size} bytes"
        )


# pcapng


class _Interface(NamedTuple):
    link_type: int
    snap: int
    per_second: int
    """Units of a time stamp."""
    offset: int
    """Seconds to add to time stamps."""


def _read_pcapng(data: bytes, name: str) -> tuple[list[_Packet], tuple[str, ...]]:
    packets: list[_Packet] = []
    strange: Counter[int] = Counter()
    interfaces: list[_Interface] = []
    order = "<"
    at = 0
    end = len(data)
    while at < end:
        if end - at < 12:
            raise RefusedError(f"{name} is cut in a block at offset {at}: {end - at} of 12 bytes")
        # The section header's type reads the same in both byte orders, its length does not.
        if struct.unpack_from("<I", data, at)[0] == _SECTION:
            order = _section_order(data, at, name)
            interfaces = []
        kind, size = struct.unpack_from(order + "II", data, at)
        body = _block(data, at, size, order, name)
        if kind == _SECTION:
            _check_section(body, order, at, name)
        elif kind == _INTERFACE:
            interfaces.append(_interface(body, order, at, name))
        elif kind in (_ENHANCED, _SIMPLE, _OLD_PACKET):
            packets.append(_packet(kind, body, order, interfaces, len(packets), at, name))
        elif kind not in _SKIPPED_BLOCKS:
            strange[kind] += 1  # readers must pass over unknown blocks (pcapng, section 3.1)
        at += size
    notes = tuple(
        f"{count} block{'s' if count > 1 else ''} of unknown type {kind:#x} passed over"
        for kind, count in strange.items()
    )
    return packets, notes


def _section_order(data: bytes, at: int, name: str) -> str:
    for order in "<>":
        if struct.unpack_from(order + "I", data, at + 8)[0] == _BYTE_ORDER_MAGIC:
            return order
    raise RefusedError(
        f"{name} is broken: the section header at offset {at} has no byte-order mark, but"
        f" {data[at + 8 : at + 12].hex(' ')}"
    )


def _block(data: bytes, at: int, size: int, order: str, name: str) -> bytes:
    if size < 12 or size % 4:
        raise RefusedError(f"{name} is broken: the block at offset {at} has a length of {size}")
    if size > len(data) - at:
        raise RefusedError(
            f"{name} is cut in the block at offset {at}: {len(data) - at} of {size} bytes"
        )
    (again,) = struct.unpack_from(order + "I", data, at + size - 4)
    if again != size:
        raise RefusedError(
            f"{name} is broken: the block at offset {at} has a length of {size} in front and"
            f" {again} at its end"
        )
    return data[at + 8 : at + size - 4]


def _check_section(body: bytes, order: str, at: int, name: str) -> None:
    if len(body) < 16:
        raise RefusedError(f"{name} is broken: the section header at offset {at} is too short")
    major, minor = struct.unpack_from(order + "HH", body, 4)
    if major != 1:
        raise RefusedError(
            f"{name}: pcapng version {major}.{minor} at offset {at} is not known, only 1"
        )


def _interface(body: bytes, order: str, at: int, name: str) -> _Interface:
    if len(body) < 8:
        raise RefusedError(f"{name} is broken: the interface at offset {at} is too short")
    link_type, _, snap = struct.unpack_from(order + "HHI", body)
    per_second, offset = 1_000_000, 0
    for code, value in _options(body[8:], order, at, name):
        if code == 9 and len(value) == 1:
            per_second = 2 ** (value[0] & 0x7F) if value[0] & 0x80 else 10 ** value[0]
        elif code == 14 and len(value) == 8:
            (offset,) = struct.unpack(order + "q", value)
        elif code in (9, 14):
            raise RefusedError(
                f"{name} is broken: option {code} of the interface at offset {at} has"
                f" {len(value)} bytes"
            )
    return _Interface(_link_type(link_type), snap, per_second, offset)


def _options(rest: bytes, order: str, at: int, name: str) -> list[tuple[int, bytes]]:
    found: list[tuple[int, bytes]] = []
    pos = 0
    while pos + 4 <= len(rest):
        code, size = struct.unpack_from(order + "HH", rest, pos)
        if code == 0:
            break
        if pos + 4 + size > len(rest):
            raise RefusedError(
                f"{name} is broken: option {code} of the interface at offset {at} is longer than"
                " its block"
            )
        found.append((code, rest[pos + 4 : pos + 4 + size]))
        pos += 4 + (size + 3) // 4 * 4
    return found


def _packet(
    kind: int,
    body: bytes,
    order: str,
    interfaces: list[_Interface],
    number: int,
    at: int,
    name: str,
) -> _Packet:
    head = {_ENHANCED: 20, _OLD_PACKET: 20, _SIMPLE: 4}[kind]
    if len(body) < head:
        raise RefusedError(f"{name} is broken: packet {number} at offset {at} has no whole header")
    which, stamp = 0, 0
    if kind == _SIMPLE:
        (wire,) = struct.unpack_from(order + "I", body)
        size = wire
    elif kind == _ENHANCED:
        which, high, low, size, wire = struct.unpack_from(order + "IIIII", body)
        stamp = high << 32 | low
    else:
        which, _, high, low, size, wire = struct.unpack_from(order + "HHIIII", body)
        stamp = high << 32 | low
    if which >= len(interfaces):
        raise RefusedError(
            f"{name} is broken: packet {number} at offset {at} is of interface {which}, the"
            f" section has {len(interfaces)} until there"
        )
    interface = interfaces[which]
    if kind == _SIMPLE and interface.snap:
        size = min(wire, interface.snap)
    _check_size(name, number, at, size, len(body) - head)
    time = stamp * _SECOND // interface.per_second + interface.offset * _SECOND
    return _Packet(body[head : head + size], time, interface.link_type, wire, at)


# writing


def to_pcap(packets: Sequence[bytes], times: Sequence[int], link_type: int = ETHERNET) -> bytes:
    """A pcap file with nanosecond times (little-endian). ``times`` in ns since 1970."""
    parts = [struct.pack("<IHHiIII", _PCAP_NANO, 2, 4, 0, 0, PACKET_MAX, link_type)]
    for packet, time in zip(packets, times, strict=True):
        seconds, part = divmod(time, _SECOND)
        parts.append(struct.pack("<IIII", seconds, part, len(packet), len(packet)) + packet)
    return b"".join(parts)


def to_pcapng(
    packets: Sequence[bytes],
    times: Sequence[int],
    link_type: int = ETHERNET,
    *,
    comment: str = "",
    comments: Sequence[str] = (),
) -> bytes:
    """A pcapng file with nanosecond times, one section, one interface (little-endian).

    ``comment`` stands in the section header, ``comments`` at the packets, where readers such as
    Wireshark show them.
    """
    section = struct.pack("<IHHq", _BYTE_ORDER_MAGIC, 1, 0, -1)
    interface = struct.pack("<HHI", link_type, 0, PACKET_MAX) + _option(9, b"\x09") + bytes(4)
    parts = [_framed(_SECTION, section + _comment(comment)), _framed(_INTERFACE, interface)]
    for number, (packet, time) in enumerate(zip(packets, times, strict=True)):
        head = struct.pack("<IIIII", 0, time >> 32, time & 0xFFFF_FFFF, len(packet), len(packet))
        text = comments[number] if number < len(comments) else ""
        parts.append(_framed(_ENHANCED, head + _padded(packet) + _comment(text)))
    return b"".join(parts)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + _padded(value)


def _comment(text: str) -> bytes:
    # an option's length has 16 bits; cutting bytes may cut a character, which is then left out
    value = text.encode()[:0xFFF0].decode(errors="ignore").encode()
    return _option(1, value) + bytes(4) if value else b""


def _framed(kind: int, body: bytes) -> bytes:
    size = len(body) + 12
    return struct.pack("<II", kind, size) + body + struct.pack("<I", size)

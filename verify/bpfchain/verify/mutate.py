"""Mutation of packets and map contents, for fuzzing: deterministic in the seed.

Field-aware: most mutations change what a parser reads (EtherTypes, protocols, ports, lengths, flags,
tags), the others whatever lies there. ``layout`` finds the fields by walking the headers, so that a
mutated packet can be mutated again.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

__all__ = ["MUTATED_MAX", "Field", "MapShape", "layout", "mutated_maps", "mutated_packets"]

MUTATED_MAX = 3712
"""Bytes that mutation lets a packet grow to: what every packet hook takes."""

_ETHER_TYPES = (0x0800, 0x86DD, 0x0806, 0x8100, 0x88A8, 0x8847, 0x8864, 0x9100, 0x05DC, 0x0600)
_PROTOCOLS = (
    0,
    1,
    2,
    4,
    6,
    17,
    33,
    41,
    43,
    44,
    47,
    50,
    51,
    58,
    59,
    60,
    89,
    103,
    132,
    135,
    136,
    255,
)
_PORTS = (0, 22, 23, 53, 80, 123, 443, 2152, 4789, 6081, 8080, 65535)
_TCP_FLAGS = (0x00, 0x01, 0x02, 0x04, 0x10, 0x11, 0x12, 0x14, 0x18, 0x29, 0x3F, 0xC2, 0xFF)
_EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000,
          0xFFFF_FFFF)  # fmt: skip
_TAGS, _EXTENSIONS = (0x8100, 0x88A8, 0x9100), (0, 43, 60, 135)
_SIZES = (14, 15, 18, 33, 34, 42, 54, 60, 64, 74, 128, 1514, 1518, 3520)


class Field(NamedTuple):
    """A field of a packet: where, how many bytes, and what kind (``ether``, ``protocol``, ``port``,
    ``length``, ``flags``, ``address``, ``number``)."""

    at: int
    size: int
    kind: str


class MapShape(NamedTuple):
    """What mutation needs to know of a map."""

    name: str
    key_size: int
    value_size: int
    max_entries: int
    array: bool = False
    """Whether keys are indexes (32 bits) below ``max_entries``."""


@lru_cache(maxsize=1024)  # the pool's packets come again and again
def layout(packet: bytes) -> tuple[Field, ...]:
    """The fields that a walk through the headers finds; those that are cut are left out."""
    return tuple(field for field in _walk(packet) if field.at + field.size <= len(packet))


def _walk(packet: bytes) -> Iterator[Field]:
    yield Field(0, 6, "address")
    yield Field(6, 6, "address")
    yield Field(12, 2, "ether")
    at, kind = 14, _number(packet, 12, 2)
    while kind in _TAGS and at + 4 <= len(packet):
        yield Field(at, 2, "number")
        yield Field(at + 2, 2, "ether")
        kind, at = _number(packet, at + 2, 2), at + 4
    if kind == 0x0800:
        yield from _ip4(packet, at)
    elif kind == 0x86DD:
        yield from _ip6(packet, at)
    elif kind == 0x0806:
        for where, size in ((at, 2), (at + 2, 2), (at + 6, 2), (at + 14, 4), (at + 24, 4)):
            yield Field(where, size, "number")


def _ip4(packet: bytes, at: int) -> Iterator[Field]:
    yield Field(at, 1, "number")  # version and header length
    yield Field(at + 1, 1, "flags")
    yield Field(at + 2, 2, "length")
    yield Field(at + 6, 2, "flags")  # fragment
    yield Field(at + 8, 1, "number")
    yield Field(at + 9, 1, "protocol")
    yield Field(at + 12, 4, "address")
    yield Field(at + 16, 4, "address")
    if at + 20 <= len(packet):
        yield from _transport(packet, at + (packet[at] & 15) * 4, packet[at + 9])


def _ip6(packet: bytes, at: int) -> Iterator[Field]:
    yield Field(at, 4, "number")
    yield Field(at + 4, 2, "length")
    yield Field(at + 6, 1, "protocol")
    yield Field(at + 7, 1, "number")
    yield Field(at + 8, 16, "address")
    yield Field(at + 24, 16, "address")
    if at + 40 > len(packet):
        return
    protocol, at = packet[at + 6], at + 40
    while protocol in (*_EXTENSIONS, 44, 51) and at + 8 <= len(packet):
        yield Field(at, 1, "protocol")
        yield Field(at + 1, 1, "length")
        yield Field(at + 2, 2, "flags")
        size = {44: 8, 51: (packet[at + 1] + 2) * 4}.get(protocol, (packet[at + 1] + 1) * 8)
        protocol, at = packet[at], at + size
    yield from _transport(packet, at, protocol)


def _transport(packet: bytes, at: int, protocol: int) -> Iterator[Field]:
    if protocol in (6, 17, 132, 136, 33):
        yield Field(at, 2, "port")
        yield Field(at + 2, 2, "port")
    if protocol == 6:
        yield Field(at + 4, 4, "number")
        yield Field(at + 8, 4, "number")
        yield Field(at + 12, 1, "length")
        yield Field(at + 13, 1, "flags")
        yield Field(at + 14, 2, "number")
    elif protocol == 17:
        yield Field(at + 4, 2, "length")
    elif protocol in (1, 58):
        yield Field(at, 1, "number")
        yield Field(at + 1, 1, "number")
    elif protocol == 47:
        yield Field(at, 2, "flags")
        yield Field(at + 2, 2, "ether")


def _number(packet: bytes, at: int, size: int) -> int:
    return int.from_bytes(packet[at : at + size], "big") if at + size <= len(packet) else -1


_Mutation = Callable[[bytearray, random.Random, tuple[bytes, ...], Sequence[bytes]], bytearray]


def mutated_packets(
    packets: Sequence[bytes], values: Sequence[bytes], seed: int, count: int
) -> list[bytes]:
    """``count`` packets, each made of one of ``packets`` by one to four mutations.

    ``values``: what a program compares with (``dictionary.dictionary``), written as it stands. The
    same arguments give the same packets. Raises ValueError without packets.
    """
    if not packets:
        raise ValueError("there are no packets to mutate")
    rng, known = random.Random(seed), tuple(values)
    made = []
    for _ in range(count):
        packet = bytearray(packets[rng.randrange(len(packets))])
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
            mutation = rng.choices(_MUTATIONS, _WEIGHTS)[0]
            packet = mutation(packet, rng, known, packets)
        made.append(bytes(packet[:MUTATED_MAX]) or b"\0")
    return made


def _field(
    packet: bytearray, rng: random.Random, values: tuple[bytes, ...], _: Sequence[bytes]
) -> bytearray:
    fields = layout(bytes(packet))
    if not fields:
        return _flip(packet, rng, values, _)
    field = rng.choice(fields)
    packet[field.at : field.at + field.size] = _value_for(field, packet, rng, values)
    return packet


@lru_cache(maxsize=64)
def _of_size(values: tuple[bytes, ...], size: int) -> tuple[bytes, ...]:
    return tuple(value for value in values if len(value) == size)


def _value_for(
    field: Field, packet: bytearray, rng: random.Random, values: tuple[bytes, ...]
) -> bytes:
    old = int.from_bytes(packet[field.at : field.at + field.size], "big")
    most = (1 << 8 * field.size) - 1
    fitting = _of_size(values, field.size)
    if fitting and rng.random() < 0.4:
        return rng.choice(fitting)
    known: tuple[int, ...] = {
        "ether": _ETHER_TYPES, "protocol": _PROTOCOLS, "port": _PORTS,
        "flags": _TCP_FLAGS if field.size == 1 else (0, 0x2000, 0x4000, 1, 0x2001, 0x1FFF, 0x8000),
        "length": (0, 1, 4, 5, 8, 20, 40, len(packet) - field.at, len(packet)),
        "address": (0, most, 1, 0x7F000001, 0x0A000001, 0xE0000001),
    }.get(field.kind, _EDGES)  # fmt: skip
    how = rng.random()
    if how < 0.6:
        new = rng.choice(known)
    elif how < 0.8:
        new = old + rng.choice((-4, -1, 1, 4))
    else:
        new = rng.getrandbits(8 * field.size)
    return (new & most).to_bytes(field.size, "big")


def _write(
    packet: bytearray, rng: random.Random, values: tuple[bytes, ...], _: Sequence[bytes]
) -> bytearray:
    value = rng.choice(values) if values else struct.pack(">H", rng.choice(_EDGES) & 0xFFFF)
    if len(packet) >= len(value):
        at = rng.randrange(len(packet) - len(value) + 1)
        packet[at : at + len(value)] = value
    return packet


def _flip(
    packet: bytearray, rng: random.Random, _: Sequence[bytes], __: Sequence[bytes]
) -> bytearray:
    for _n in range(rng.randint(1, 8) if packet else 0):
        packet[rng.randrange(len(packet))] ^= 1 << rng.randrange(8)
    return packet


def _truncate(
    packet: bytearray, rng: random.Random, _: Sequence[bytes], __: Sequence[bytes]
) -> bytearray:
    shorter = [size for size in _SIZES if size < len(packet)]
    if shorter and rng.random() < 0.5:
        return packet[: rng.choice(shorter)]
    return packet[: rng.randint(1, len(packet))] if packet else packet


def _extend(
    packet: bytearray, rng: random.Random, _: Sequence[bytes], __: Sequence[bytes]
) -> bytearray:
    longer = [size for size in _SIZES if size > len(packet)]
    target = (
        rng.choice(longer) if longer and rng.random() < 0.5 else len(packet) + rng.randint(1, 64)
    )
    missing = min(target, MUTATED_MAX) - len(packet)
    if missing > 0:
        packet += rng.randbytes(missing) if rng.random() < 0.5 else bytes(missing)
    return packet


def _tag(
    packet: bytearray, rng: random.Random, _: Sequence[bytes], __: Sequence[bytes]
) -> bytearray:
    """Put a VLAN tag in, or take one out."""
    if len(packet) < 14:
        return packet
    if _number(bytes(packet[:14]), 12, 2) in _TAGS and len(packet) >= 18 and rng.random() < 0.4:
        del packet[12:16]
    else:
        packet[12:12] = struct.pack(">HH", rng.choice(_TAGS), rng.choice((0, 1, 100, 4095, 0xE064)))
    return packet


def _splice(
    packet: bytearray, rng: random.Random, _: Sequence[bytes], packets: Sequence[bytes]
) -> bytearray:
    """The head of one packet, the rest of another, cut where headers begin if possible."""
    other = packets[rng.randrange(len(packets))]
    here = [field.at for field in layout(bytes(packet))] or [len(packet)]
    there = [field.at for field in layout(other)] or [0]
    return packet[: rng.choice(here)] + other[rng.choice(there) :]


def _move(
    packet: bytearray, rng: random.Random, _: Sequence[bytes], __: Sequence[bytes]
) -> bytearray:
    """Take some bytes out, or write some twice: what lies behind moves."""
    if len(packet) < 2:
        return packet
    at, size = rng.randrange(len(packet)), rng.choice((1, 2, 4, 8, 16, 20))
    if rng.random() < 0.5:
        del packet[at : at + size]
        return packet or bytearray(1)
    packet[at:at] = packet[at : at + size]
    return packet


_MUTATIONS: tuple[_Mutation, ...] = (
    _field, _write, _flip, _truncate, _extend, _tag, _splice, _move,
)  # fmt: skip
_WEIGHTS = (40, 20, 8, 8, 6, 8, 6, 4)

_ENTRIES_MAX = 64
"""Entries that one round puts into a map: more say little, and fill time."""


def mutated_maps(
    shapes: Sequence[MapShape], values: Sequence[bytes], packets: Sequence[bytes], seed: int
) -> dict[str, list[tuple[bytes, bytes]]]:
    """Contents for maps: name -> entries, keys once each, of the maps' sizes.

    Keys come from what packets hold at their fields, from ``values`` and from edges, so that look-ups
    hit; about a quarter of the maps stay empty. Deterministic in the seed. Maps without keys (queues,
    rings) are left out.
    """
    rng = random.Random(seed)
    found: dict[str, list[tuple[bytes, bytes]]] = {}
    for shape in shapes:
        if shape.key_size == 0 or rng.random() < 0.25:
            continue
        entries: dict[bytes, bytes] = {}
        for _ in range(rng.randint(1, min(shape.max_entries, _ENTRIES_MAX) or 1)):
            key = _key(shape, values, packets, rng)
            entries[key] = _content(shape.value_size, values, packets, rng)
        found[shape.name] = sorted(entries.items())[: shape.max_entries]
    return found


def _key(
    shape: MapShape, values: Sequence[bytes], packets: Sequence[bytes], rng: random.Random
) -> bytes:
    if shape.array and shape.key_size == 4:
        return struct.pack("<I", rng.randrange(max(1, min(shape.max_entries, 4096))))
    return _content(shape.key_size, values, packets, rng)


def _content(
    size: int, values: Sequence[bytes], packets: Sequence[bytes], rng: random.Random
) -> bytes:
    data = bytearray()
    how = rng.random()
    if how < 0.15:
        return bytes(size)
    if how < 0.25:
        return b"\xff" * size
    while len(data) < size:
        pick = rng.random()
        if pick < 0.35 and packets:
            packet = rng.choice(packets)
            fields = layout(packet)
            if fields:
                field = rng.choice(fields)
                piece = packet[field.at : field.at + field.size]
                data += piece if rng.random() < 0.5 else piece[::-1]
        elif pick < 0.6 and values:
            data += rng.choice(values)
        elif pick < 0.9:
            data += struct.pack("<I", rng.choice(_EDGES))[: rng.choice((1, 2, 4))]
        else:
            data += rng.randbytes(4)
    return bytes(data[:size])

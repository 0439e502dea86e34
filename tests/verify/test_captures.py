"""Capture files: read and written against scapy's own code, and everything that can be broken."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bpfchain.transform.errors import RefusedError
from bpfchain.verify.captures import PACKET_MAX, read_capture, to_pcap, to_pcapng

PACKETS = [b"\x02" * 14, bytes(range(61)), b"\xff" * 1514]
TIMES = [1_700_000_000_123_456_789, 1_700_000_001_000_000_000, 1_700_000_001_999_999_999]


def classic(
    order: str, magic: int, units: int, packets: list[bytes] = PACKETS, link: int = 1
) -> bytes:
    """A pcap file written by hand after the draft."""
    data = struct.pack(order + "IHHiIII", magic, 2, 4, 0, 0, 65535, link)
    for packet, time in zip(packets, TIMES, strict=False):
        fraction = time % 10**9 * units // 10**9
        data += (
            struct.pack(order + "IIII", time // 10**9, fraction, len(packet), len(packet)) + packet
        )
    return data


def block(order: str, kind: int, body: bytes) -> bytes:
    size = len(body) + 12
    return struct.pack(order + "II", kind, size) + body + struct.pack(order + "I", size)


def section(order: str = "<") -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order: str = "<", link: int = 1, snap: int = 0, options: bytes = b"") -> bytes:
    return block(order, 1, struct.pack(order + "HHI", link, 0, snap) + options)


def enhanced(
    packet: bytes, order: str = "<", which: int = 0, stamp: int = 0, wire: int | None = None
) -> bytes:
    head = struct.pack(
        order + "IIIII", which, stamp >> 32, stamp & 0xFFFFFFFF, len(packet),
        len(packet) if wire is None else wire,
    )  # fmt: skip
    return block(order, 6, head + packet + bytes(-len(packet) % 4))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("magic", "units"), [(0xA1B2C3D4, 10**6), (0xA1B23C4D, 10**9)])
def test_pcap_of_both_orders_and_resolutions(order: str, magic: int, units: int) -> None:
    capture = read_capture(classic(order, magic, units), "x.pcap")
    grain = 10**9 // units
    assert list(capture.packets) == PACKETS
    assert list(capture.times) == [time // grain * grain for time in TIMES]
    assert capture.link_type == 1
    assert capture.snapped == 0


def scapy_read(data: bytes) -> tuple[list[bytes], list[int]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from scapy.utils import RawPcapNgReader, RawPcapReader

        reader: Any = (
            RawPcapReader(io.BytesIO(data))
            if data[:4] == b"\x4d\x3c\xb2\xa1"
            else RawPcapNgReader(io.BytesIO(data))
        )
        found = list(reader)
    packets = [bytes(packet) for packet, _ in found]
    if isinstance(reader, RawPcapNgReader):
        times = [((m.tshigh << 32 | m.tslow) * 10**9) // m.tsresol for _, m in found]
    else:
        times = [m.sec * 10**9 + m.usec for _, m in found]
    return packets, times


@pytest.mark.parametrize("write", [to_pcap, to_pcapng])
def test_scapy_reads_what_is_written(write: Any) -> None:
    assert scapy_read(write(PACKETS, TIMES)) == (PACKETS, TIMES)


def test_what_scapy_writes_is_read(tmp_path: Path) -> None:
    from scapy.utils import RawPcapNgWriter, RawPcapWriter

    for number, kind in enumerate((RawPcapWriter, RawPcapNgWriter)):
        path = tmp_path / str(number)
        writer = kind(str(path))
        writer.linktype = 1
        writer.write_header(None)
        for packet, time in zip(PACKETS, TIMES, strict=True):
            # the pcapng writer takes no usec, but a fraction of seconds
            if kind is RawPcapWriter:
                writer.write_packet(packet, sec=time // 10**9, usec=time % 10**9 // 1000)
            else:
                writer.write_packet(packet, sec=time / 10**9)
        writer.close()
        capture = read_capture(path.read_bytes(), "x")
        assert list(capture.packets) == PACKETS
        off = [abs(got - time) for got, time in zip(capture.times, TIMES, strict=True)]
        assert max(off) < 2000


@given(st.lists(st.tuples(st.binary(max_size=80), st.integers(0, (1 << 62) - 1))), st.text())
def test_pcapng_round_trip(items: list[tuple[bytes, int]], comment: str) -> None:
    packets, times = [p for p, _ in items], [t for _, t in items]
    written = to_pcapng(packets, times, 101, comment=comment, comments=[comment])
    if not items:
        with pytest.raises(RefusedError, match="x holds no packets"):
            read_capture(written, "x")
        return
    capture = read_capture(written, "x")
    assert (list(capture.packets), list(capture.times), capture.link_type) == (packets, times, 101)


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_sections_of_both_orders(order: str) -> None:
    """A file may hold sections of different orders; interfaces count anew in each."""
    other = "><"[order == ">"]
    data = section(order) + interface(order) + enhanced(PACKETS[0], order)
    data += section(other) + interface(other) + enhanced(PACKETS[1], other, stamp=5_000_001)
    capture = read_capture(data, "x")
    assert list(capture.packets) == PACKETS[:2]
    assert capture.times == (0, 5_000_001_000)


@pytest.mark.parametrize(
    ("resolution", "stamp", "expected"),
    [(6, 7, 7_000), (9, 7, 7), (3, 7, 7_000_000), (0, 7, 7_000_000_000), (0x80 | 10, 1024, 10**9),
     (12, 7_999, 7)],
)  # fmt: skip
def test_pcapng_time_resolution(resolution: int, stamp: int, expected: int) -> None:
    option = struct.pack("<HHB3x", 9, 1, resolution)
    data = section() + interface(options=option) + enhanced(b"x", stamp=stamp)
    assert read_capture(data, "x").times == (expected,)


def test_pcapng_time_offset_is_seconds() -> None:
    option = struct.pack("<HHq", 14, 8, 100)
    data = section() + interface(options=option) + enhanced(b"x", stamp=5)
    assert read_capture(data, "x").times == (100 * 10**9 + 5_000,)


def test_pcapng_simple_and_old_packets() -> None:
    simple = block("<", 3, struct.pack("<I", 100) + b"\x01" * 20)
    old = block("<", 2, struct.pack("<HHIIII", 0, 0, 0, 9, 3, 3) + b"abc\0")
    capture = read_capture(section() + interface(snap=20) + simple + old, "x")
    assert capture.packets == (b"\x01" * 20, b"abc")
    assert capture.times == (0, 9_000)
    assert capture.snapped == 1  # the first had 100 bytes


def test_unknown_blocks_are_passed_over_and_told() -> None:
    data = section() + block("<", 0x77, bytes(8)) + interface() + enhanced(b"a")
    data += block("<", 5, bytes(12)) + block("<", 0x77, b"")
    capture = read_capture(data, "x")
    assert capture.packets == (b"a",)
    assert capture.notes == ("2 blocks of unknown type 0x77 passed over",)


def test_interfaces_of_one_link_type_are_one_capture() -> None:
    data = section() + interface() + interface(link=101) + interface()
    data += enhanced(b"a") + enhanced(b"b", which=2)
    assert read_capture(data, "x").link_type == 1  # nothing came by the raw one


def test_snapped_packets_are_counted() -> None:
    data = section() + interface() + enhanced(b"abcd", wire=1500) + enhanced(b"ab")
    assert read_capture(data, "x").snapped == 1


@pytest.mark.parametrize("number", [12, 14])
def test_old_numbers_of_raw_ip(number: int) -> None:
    data = classic("<", 0xA1B2C3D4, 10**6, link=number)
    assert read_capture(data, "x").link_type == 101


GOOD = classic("<", 0xA1B2C3D4, 10**6)
NG = section() + interface() + enhanced(PACKETS[0]) + enhanced(PACKETS[1])
BROKEN = [
    (b"", "x is empty"),
    (b"abc", "x is no capture: it has 3 bytes"),
    (b"no capture at all", "x is no capture: it begins with 6e 6f 20 63"),
    (b"\x1f\x8b\x08\0\0", "x is compressed with gzip"),
    (b"\x28\xb5\x2f\xfd\0", "x is compressed with zstd"),
    (b"\xfd7zXZ\0", "x is compressed with xz"),
    (b"snoop\0\0\0", "x is a snoop capture, not pcap or pcapng"),
    (b"\x7fELF\x02", "x is an ELF file, not a capture"),
    (struct.pack("<I", 0xA1B2CD34) + bytes(20), "x is a pcap file of Kuznetzov's modified form, which is not read"),
    (GOOD[:20], "x is cut in its header: 20 of 24 bytes"),
    (GOOD[:24], "x holds no packets"),
    (GOOD[:30], "x is cut in the header of packet 0 at offset 24: 6 of 16 bytes"),
    (GOOD[:50], "x is cut in packet 0 at offset 24: 10 of 14 bytes"),
    (GOOD[:-1], "x is cut in packet 2 at offset 131: 1513 of 1514 bytes"),
    (GOOD + b"\0", "x is cut in the header of packet 3 at offset 1661: 1 of 16 bytes"),
    (GOOD[:32] + b"\xff\xff\xff\x7f" + GOOD[36:],
     "x is broken: packet 0 at offset 24 is said to hold 2147483647 bytes, more than any capture (262144)"),
    (GOOD[:4] + b"\x03\0" + GOOD[6:], "x: pcap version 3.4 at offset 4 is not known, only 2.4"),
    (GOOD[:22] + b"\x01\0" + GOOD[24:], "x: link type 0x10001 at offset 20 has reserved bits set"),
    (section(), "x holds no packets"),
    (section() + interface(), "x holds no packets"),
    (section()[:10], "x is cut in a block at offset 0: 10 of 12 bytes"),
    (section()[:20], "x is cut in the block at offset 0: 20 of 28 bytes"),
    (section()[:8] + bytes(4) + section()[12:],
     "x is broken: the section header at offset 0 has no byte-order mark, but 00 00 00 00"),
    (section()[:12] + b"\x09" + section()[13:], "x: pcapng version 9.0 at offset 0 is not known, only 1"),
    (block("<", 0x0A0D0D0A, struct.pack("<I", 0x1A2B3C4D)), "x is broken: the section header at offset 0 is too short"),
    (NG[:-1], "x is cut in the block at offset 96: 95 of 96 bytes"),
    (NG[:-4] + b"\x08\0\0\0", "x is broken: the block at offset 96 has a length of 96 in front and 8 at its end"),
    (NG + bytes(4), "x is cut in a block at offset 192: 4 of 12 bytes"),
    (NG + bytes(12), "x is broken: the block at offset 192 has a length of 0"),
    (NG + struct.pack("<II", 6, 13) + bytes(8), "x is broken: the block at offset 192 has a length of 13"),
    (section() + enhanced(b"a"),
     "x is broken: packet 0 at offset 28 is of interface 0, the section has 0 until there"),
    (section() + interface() + section() + enhanced(b"a"),
     "x is broken: packet 0 at offset 76 is of interface 0, the section has 0 until there"),
    (section() + block("<", 1, bytes(4)), "x is broken: the interface at offset 28 is too short"),
    (section() + interface(options=struct.pack("<HHI", 9, 4, 0)),
     "x is broken: option 9 of the interface at offset 28 has 4 bytes"),
    (section() + interface(options=struct.pack("<HHI", 2, 400, 0)),
     "x is broken: option 2 of the interface at offset 28 is longer than its block"),
    (section() + interface() + block("<", 6, bytes(8)),
     "x is broken: packet 0 at offset 48 has no whole header"),
    (section() + interface() + block("<", 6, struct.pack("<IIIII", 0, 0, 0, 500, 500) + bytes(8)),
     "x is cut in packet 0 at offset 48: 8 of 500 bytes"),
    (section() + interface() + block("<", 6, struct.pack("<IIIII", 0, 0, 0, PACKET_MAX + 1, 1) + bytes(8)),
     "x is broken: packet 0 at offset 48 is said to hold 262145 bytes, more than any capture (262144)"),
    (section() + interface() + interface(link=101) + enhanced(b"a") + enhanced(b"b", which=1),
     "x holds packets of 2 link types (Ethernet (1): 1, raw IP (101): 1); packet 1 at offset 104 is the first that differs"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "message"), BROKEN, ids=[message for _, message in BROKEN])
def test_what_is_broken_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(RefusedError) as caught:
        read_capture(data, "x")
    assert caught.value.message == message


@given(st.sampled_from([GOOD, NG, to_pcapng(PACKETS, TIMES, comment="a comment")]), st.data())
@settings(max_examples=400)
def test_mutated_captures_are_read_or_refused(base: bytes, data: st.DataObject) -> None:
    """Whatever stands in the file: packets, or one line."""
    broken = bytearray(base)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(broken) - 1))
        how = data.draw(st.sampled_from(["byte", "cut", "word", "insert"]))
        if how == "byte":
            broken[at] = data.draw(st.integers(0, 255))
        elif how == "cut":
            del broken[at : at + data.draw(st.integers(1, 40))]
        elif how == "word":
            value = data.draw(st.sampled_from([0, 1, 4, 12, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]))
            broken[at : at + 4] = struct.pack("<I", value)
        else:
            broken[at:at] = data.draw(st.binary(min_size=1, max_size=16))
        if not broken:
            break
    _read_or_refused(bytes(broken))


@given(st.binary(max_size=200))
@example(b"\x0a\x0d\x0d\x0a")
@example(b"\xd4\xc3\xb2\xa1")
def test_anything_is_read_or_refused(data: bytes) -> None:
    _read_or_refused(data)
    _read_or_refused(GOOD[:24] + data)
    _read_or_refused(section() + interface() + data)


def _read_or_refused(data: bytes) -> None:
    capture, message = None, ""
    try:
        capture = read_capture(data, "some.pcap")
    except RefusedError as error:
        message = error.message
    if capture is None:
        assert message.startswith("some.pcap")
        assert "\n" not in message
    else:
        assert capture.packets
        assert len(capture.packets) == len(capture.times)

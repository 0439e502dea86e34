"""Tests of carving with objects made here, so that the exact end is known beforehand."""

from __future__ import annotations

import struct

import pytest

from real import carve


def make_object(order: str, contents: bytes, *, table_last: bool, machine: int = 247) -> bytes:
    """A minimal ELF64 file: one section of `contents`, one NOBITS section far larger than it."""
    body = 64 if table_last else 64 + 3 * 64
    table = 64 + len(contents) if table_last else 64
    ident = b"\x7fELF" + bytes([2, 1 if order == "<" else 2, 1]) + bytes(9)
    fields = (1, machine, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 0)
    header = ident + struct.pack(order + "HHIQQQIHHHHHH", *fields)
    sections = bytes(64)
    sections += struct.pack(order + "IIQQQQIIQQ", 0, 1, 0, 0, body, len(contents), 0, 0, 1, 0)
    sections += struct.pack(order + "IIQQQQIIQQ", 0, 8, 0, 0, body, 1 << 40, 0, 0, 1, 0)
    return header + (contents + sections if table_last else sections + contents)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("table_last", [True, False])
def test_the_exact_bytes_come_out_of_a_larger_file(order: str, table_last: bool) -> None:
    first = make_object(order, b"\x95" * 13, table_last=table_last)
    second = make_object(order, b"\x95" * 5, table_last=not table_last)
    data = b"\x7fELF" + b"junk" * 30 + first + second + b"tail" * 30
    found = list(carve.find_objects(data))
    assert [data[one.offset : one.offset + one.size] for one in found] == [first, second]
    assert [one.big_endian for one in found] == [order == ">"] * 2


def test_the_file_around_it_and_other_machines_are_not_found() -> None:
    x86 = make_object("<", b"x" * 99, table_last=True, machine=62)
    assert list(carve.find_objects(x86 + b"\x7fELF")) == []


def test_an_object_inside_the_contents_of_a_host_binary_is_found() -> None:
    inner = make_object("<", b"\x95" * 8, table_last=True)
    host = make_object("<", b"abc" + inner + b"\0", table_last=True, machine=62)
    (found,) = carve.find_objects(host)
    assert host[found.offset : found.offset + found.size] == inner


@pytest.mark.parametrize("cut", [1, 64, 100])
def test_a_truncated_object_is_an_error_and_not_a_silent_gap(cut: int) -> None:
    whole = make_object("<", b"\x95" * 64, table_last=True)
    with pytest.raises(carve.CarveError, match=r"offset 0x3: .* past the file"):
        list(carve.find_objects(b"abc" + whole[:-cut]))


def test_a_header_without_a_section_table_is_an_error() -> None:
    whole = bytearray(make_object("<", b"\x95" * 64, table_last=True))
    whole[40:48] = bytes(8)
    with pytest.raises(carve.CarveError, match="no usable section header table"):
        list(carve.find_objects(bytes(whole)))

"""Mutation and the dictionary: deterministic, within bounds, and reaching what a parser branches on."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfchain.verify.dictionary import compared_numbers, dictionary
from bpfchain.verify.mutate import (
    MUTATED_MAX,
    Field,
    MapShape,
    layout,
    mutated_maps,
    mutated_packets,
)
from bpfchain.verify.recording import builtin_recording
from semantics.packets import HOP, IPV4, IPV6, TCP, UDP, VLAN, ether, ip4, ip6, tcp, udp

PACKETS = builtin_recording().packets


def insn(opcode: int, number: int = 0, registers: int = 0x01, offset: int = 0) -> bytes:
    return struct.pack("<BBhI", opcode, registers, offset, number & 0xFFFF_FFFF)


def test_compared_numbers_of_every_comparison() -> None:
    for operation in (0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xA0, 0xB0, 0xC0, 0xD0):
        for kind in (0x05, 0x06):
            assert compared_numbers(insn(kind | operation, 4789)) == (4789,)
            assert compared_numbers(insn(kind | operation | 0x08, 0)) == ()  # with a register


def test_what_is_no_comparison() -> None:
    code = (
        insn(0x85, 77) + insn(0x95) + insn(0x05, 5) + insn(0x06, 6) + insn(0x63, 9) + insn(0x27, 8)
    )
    assert compared_numbers(code) == ()


def test_constants_that_compilers_compare_indirectly() -> None:
    code = insn(0xB7, 443) + insn(0x07, -80) + insn(0x57, 0x3FFF) + insn(0x04, -22)
    assert compared_numbers(code) == (22, 80, 443, 0x3FFF)


def test_64_bit_constants_but_not_map_pseudo_loads() -> None:
    wide = insn(0x18, 0x11223344) + insn(0, 0x55667788, registers=0)
    assert compared_numbers(wide) == (0x11223344, 0x55667788)
    a_map = insn(0x18, 7, registers=0x11) + insn(0x15, 9, registers=0)  # its half is no comparison
    assert compared_numbers(a_map + insn(0x15, 3)) == (3,)


def test_a_cut_constant() -> None:
    assert compared_numbers(insn(0x18, 5)) == (0, 5)
    assert compared_numbers(insn(0x15, 5)[:7]) == ()


def test_the_dictionary_has_both_orders_and_the_neighbours() -> None:
    found = dictionary([insn(0x15, 443), insn(0x55, 6)])
    for value in (442, 443, 444):
        assert {struct.pack(form, value) for form in ("<H", ">H", "<I", ">I")} <= set(found)
    assert {b"\x05", b"\x06", b"\x07"} <= set(found)
    assert len(set(found)) == len(found)
    assert bytes(4) not in found


def names(packet: bytes) -> dict[tuple[int, int], str]:
    return {(field.at, field.size): field.kind for field in layout(packet)}


def test_layout_finds_the_fields() -> None:
    found = names(ether(IPV4, ip4(TCP, tcp(1, 80)), VLAN))
    assert found[12, 2] == found[16, 2] == "ether"
    assert found[18 + 9, 1] == "protocol"
    assert found[38, 2] == found[40, 2] == "port"
    assert found[38 + 13, 1] == "flags"
    found = names(ether(IPV6, ip6(UDP, udp(1, 53), HOP)))
    assert found[14 + 6, 1] == found[54, 1] == "protocol"
    assert found[62, 2] == found[64, 2] == "port"
    assert found[66, 2] == "length"
    options = names(ether(IPV4, ip4(UDP, udp(1, 53), options=bytes(8))))
    assert options[14 + 28, 2] == "port"


@given(st.one_of(st.binary(max_size=120), st.sampled_from(PACKETS)))
def test_fields_lie_inside_any_packet(packet: bytes) -> None:
    for field in layout(packet):
        assert field.at >= 0
        assert field.at + field.size <= len(packet)
        assert isinstance(field, Field)


@given(st.lists(st.binary(max_size=90), min_size=1, max_size=4), st.integers(0, 1000))
def test_anything_can_be_mutated(packets: list[bytes], seed: int) -> None:
    made = mutated_packets(packets, [b"\x01\xbb"], seed, 20)
    assert len(made) == 20
    assert all(1 <= len(packet) <= MUTATED_MAX for packet in made)


def test_mutation_is_deterministic() -> None:
    values = dictionary([insn(0x15, 443)])
    first = mutated_packets(PACKETS, values, 7, 500)
    assert first == mutated_packets(PACKETS, values, 7, 500)
    assert first != mutated_packets(PACKETS, values, 8, 500)
    shapes = [MapShape("a", 4, 8, 16), MapShape("b", 2, 1, 1000)]
    assert mutated_maps(shapes, values, PACKETS, 3) == mutated_maps(shapes, values, PACKETS, 3)


def test_no_packets() -> None:
    with pytest.raises(ValueError, match="there are no packets to mutate"):
        mutated_packets([], [], 0, 1)


def test_mutation_makes_what_the_seed_has_not() -> None:
    """From one plain TCP packet: tags, other protocols, ports, flags, lengths, cuts, growth."""
    packet = ether(IPV4, ip4(TCP, tcp(1024, 9999)))
    values = dictionary([insn(0x15, 4711)])
    made = mutated_packets([packet], values, 1, 4000)
    assert {0x8100, 0x88A8, 0x86DD, 0x0806} <= {int.from_bytes(p[12:14], "big") for p in made}
    plain = [p for p in made if p[12:14] == b"\x08\x00" and len(p) >= 54]
    assert {1, 17, 47, 132} <= {p[23] for p in plain}
    assert {22, 53, 443, 4711} <= {int.from_bytes(p[36:38], "big") for p in plain}
    assert {0x00, 0x10, 0x12, 0x04} <= {p[47] for p in plain}
    assert {p[14] & 15 for p in plain} - {5}
    assert {14, 34, 1514} <= {len(p) for p in made}
    assert len(set(made)) > 2000


def test_a_number_of_the_program_is_found_soon() -> None:
    """One value of 2^16 in one field: without the dictionary none of these packets has it."""
    values = dictionary([insn(0x15, 0x9E27), insn(0x15, 0x88B7)])
    made = mutated_packets(PACKETS[:2], values, 0, 5000)
    without = mutated_packets(PACKETS[:2], [], 0, 5000)
    assert not any(p[12:14] == b"\x88\xb7" or p[36:38] == b"\x9e\x27" for p in without)
    assert any(p[12:14] == b"\x88\xb7" for p in made)
    assert any(p[12:14] == b"\x08\x00" and p[36:38] == b"\x9e\x27" for p in made)


def test_map_contents_fit_the_maps() -> None:
    shapes = [
        MapShape("hash", 13, 20, 7), MapShape("array", 4, 8, 5, array=True), MapShape("one", 4, 4, 1),
        MapShape("queue", 0, 4, 10), MapShape("wide", 8, 0, 1 << 20),
    ]  # fmt: skip
    seen: dict[str, int] = {}
    for seed in range(60):
        found = mutated_maps(shapes, [b"\xbb\x01"], PACKETS, seed)
        for shape in shapes:
            entries = found.get(shape.name, [])
            seen[shape.name] = seen.get(shape.name, 0) + len(entries)
            assert len(entries) <= shape.max_entries
            assert len({key for key, _ in entries}) == len(entries)
            for key, value in entries:
                assert (len(key), len(value)) == (shape.key_size, shape.value_size)
                if shape.array:
                    assert struct.unpack("<I", key)[0] < shape.max_entries
    assert seen["queue"] == 0
    assert all(seen[name] > 60 for name in ("hash", "array", "wide"))
    assert seen["one"] > 20


def test_map_keys_come_from_packets() -> None:
    """A map of addresses is hit by the packets that it is filled from."""
    shape = MapShape("blocked", 4, 1, 64)
    address = bytes((10, 0, 0, 2))
    packet = ether(IPV4, ip4(TCP, tcp(1, 80)))
    hits = sum(
        any(
            key == address
            for key, _ in mutated_maps([shape], [], [packet], seed).get("blocked", [])
        )
        for seed in range(100)
    )
    assert hits > 10

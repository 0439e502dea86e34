"""Instructions: decoded and encoded without loss, in both byte orders."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpfchain.transform import isa
from bpfchain.transform.elf_read import read_object
from bpfchain.transform.errors import RefusedError
from bpfchain.transform.isa import Insn, decode, encode
from support.mutate import CORPUS

_slots = st.binary(max_size=80).map(lambda data: data[: len(data) & ~7])


@given(_slots, st.sampled_from("<>"))
def test_any_bytes_come_back(data: bytes, order: str) -> None:
    decoded = decode(data, order)
    assert len(decoded) == len(data) // 8
    assert encode(decoded, order) == data


@given(
    st.integers(0, 255), st.integers(0, 15), st.integers(0, 15), st.integers(-0x8000, 0x7FFF),
    st.integers(-(1 << 31), (1 << 31) - 1),
)  # fmt: skip
def test_fields_are_where_the_rfc_says(
    opcode: int, dst: int, src: int, offset: int, imm: int
) -> None:
    """RFC 9669, section 3.1: the register nibbles swap with the byte order."""
    little = struct.pack("<BBhi", opcode, src << 4 | dst, offset, imm)
    big = struct.pack(">BBhi", opcode, dst << 4 | src, offset, imm)
    wanted = [Insn(opcode, dst, src, offset, imm)]
    assert decode(little, "<") == wanted
    assert decode(big, ">") == wanted
    assert encode(wanted, "<") == little
    assert encode(wanted, ">") == big


def test_corpus_code_comes_back() -> None:
    seen = 0
    for path in sorted(CORPUS.glob("e[lb]/*.o")):
        obj = read_object(path.read_bytes())
        for section in obj.sections:
            if section.executable:
                assert encode(decode(section.data, obj.order), obj.order) == section.data
                seen += len(section.data) // 8
    assert seen > 100_000


def test_code_is_the_same_in_both_byte_orders() -> None:
    """The same source: what differs is the order of bytes, never an instruction's fields."""
    same = 0
    for path in sorted(CORPUS.glob("el/*.o")):
        little = read_object(path.read_bytes())
        big = read_object((path.parents[1] / "eb" / path.name).read_bytes())
        for one in little.sections:
            other = big.section(one.name) if one.executable else None
            if other is None:
                continue
            # packet bytes compare with constants that are swapped: opcodes and registers agree
            mine, theirs = decode(one.data, "<"), decode(other.data, ">")
            same += [i[:3] for i in mine] == [i[:3] for i in theirs]
    assert same > 60


@pytest.mark.parametrize("size", [1, 4, 7, 9, 15])
def test_half_instructions_are_refused(size: int) -> None:
    with pytest.raises(RefusedError) as caught:
        decode(bytes(size), "<", what="program p (xdp)")
    assert (
        caught.value.message == f"program p (xdp): {size} bytes are not whole 8-byte instructions"
    )


def test_what_an_instruction_is() -> None:
    assert Insn(0x05).is_jump
    assert Insn(0x05).is_unconditional
    assert Insn(0x06, imm=5).is_unconditional
    assert Insn(0x06, imm=5).target(10) == 16
    assert Insn(0x05, offset=-3).target(10) == 8
    assert Insn(0x15, offset=2).target(0) == 3
    assert Insn(0xE5, offset=2).is_jump, "may_goto may go"
    assert not Insn(0xE5).is_unconditional
    assert Insn(0x1E).is_jump
    for opcode in (0x85, 0x8D, 0x95):
        assert not Insn(opcode).is_jump
    for opcode in (0x07, 0x18, 0x61, 0x63, 0xDB, 0xD4):
        assert not Insn(opcode).is_jump
    assert Insn(0x85).is_call
    assert not Insn(0x8D).is_call
    assert Insn(0x18).wide
    assert not Insn(0x20).wide


def test_where_instructions_start() -> None:
    assert isa.starts([Insn(0x18), Insn(0), Insn(0x95)]) == [True, False, True]
    assert isa.starts([Insn(0x18), Insn(0), Insn(0x18), Insn(0)]) == [True, False, True, False]
    for broken in ([Insn(0x18)], [Insn(0x18), Insn(0x95)], [Insn(0x95), Insn(0x18)]):
        with pytest.raises(RefusedError, match="a ldimm64 without its second half"):
            isa.starts(broken)

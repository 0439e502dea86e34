"""The engine beside this kernel's BPF_PROG_TEST_RUN: context fields, packets, tail calls, LD_ABS."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest

from bpfchain.loader.maps import Map
from bpfchain.loader.programs import VerifierError, load_raw
from bpfchain.loader.uapi import MapType, ProgType
from emulator.assembly import (
    EXIT,
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    alu,
    alu_reg,
    call_local,
    insn,
    jump_if,
    jump_if_reg,
    load,
    load_abs,
    load_ind,
    mov,
    mov_reg,
    returns,
    store,
    store_imm,
    tail_call,
    wide,
)

try:
    from bpfchain.emulator import _ubpf
except ImportError:
    pytest.skip(
        "the native engine is not built: `pip install .` builds it", allow_module_level=True
    )

pytestmark = pytest.mark.usefixtures("kernel")

FRAMES = [
    bytes.fromhex("020000000001 020000000002 0800") + bytes(range(14, 100)),
    bytes.fromhex("ffffffffffff 020000000002 86dd") + bytes(range(14, 120)),
    bytes.fromhex("000000000000 020000000002 8100") + bytes(range(14, 64)),
    bytes.fromhex("010000000000 020000000002 0026 ffff") + bytes(range(16, 64)),
    bytes.fromhex("020000000000 020000000002 0026 aaaa") + bytes(range(16, 64)),
]
TYPES = {
    "xdp": (ProgType.XDP, "xdp"),
    "tc": (ProgType.SCHED_CLS, "skb"),
    "cgroup_skb": (ProgType.CGROUP_SKB, "skb-l3"),
    "socket_filter": (ProgType.SOCKET_FILTER, "skb-l3"),
    "lwt_in": (ProgType.LWT_IN, "skb-l3"),
}


def emulated(
    context: str, code: bytes, frames: Sequence[bytes], functions: Sequence[int] = (0,),
    given: bytes = b"",
) -> _ubpf.Batch:  # fmt: skip
    world = _ubpf.World()
    program = world.add_program("test", context, code, [], list(functions))
    batch = world.run_batch(program, _ubpf.Packets(frames, contexts=given))
    assert not batch.faults, batch.faults
    return batch


def low(batch: _ubpf.Batch) -> list[int]:
    """The verdicts' low 32 bits, which is what a test run gives."""
    return [value & 0xFFFFFFFF for (value,) in struct.iter_unpack("<Q", batch.verdicts)]


def agrees(kind: str, code: bytes, frames: Sequence[bytes], given: bytes = b"") -> bool | None:
    """Whether ``code`` leaves the same in r0, frame by frame; None where the verifier refuses it.

    The kernel's program compares with what the emulator found, as some types may return 0 and 1 only.
    """
    prog_type, context = TYPES[kind]
    try:
        load_raw(prog_type, code + returns(0), log=False).close()
    except VerifierError:
        return None
    for frame in frames:
        (found,) = low(emulated(context, code + EXIT, [frame], given=given))
        compare = wide(R5, 0, found) + mov_reg(R4, R0) + mov(R0, 1) + jump_if_reg(R4, "==", R5, 1)
        with load_raw(prog_type, code + compare + returns(0)) as program:
            if program.test_run(frame, given or None).retval != 1:
                return False
    return True


@pytest.mark.parametrize("kind", TYPES)
def test_context_fields_read_as_in_the_kernel(kind: str) -> None:
    """Every 4-byte field that the verifier lets a program read as a number."""
    xdp = kind == "xdp"
    compared = []
    for offset in range(0, 24 if xdp else 192, 4):
        if offset in ({0, 4, 8} if xdp else {76, 80, 140}):
            continue  # pointers
        if kind == "cgroup_skb" and 88 <= offset < 140:
            continue  # of the socket: not modelled, which test_core shows
        same = agrees(kind, load(4, R0, R1, offset), FRAMES)
        assert same is not False, offset
        if same:
            compared.append(offset)
    assert len(compared) >= (2 if xdp else 15), compared


@pytest.mark.parametrize("kind", ["tc", "cgroup_skb"])
def test_given_contexts_read_as_in_the_kernel(kind: str) -> None:
    given = bytearray(192)
    struct.pack_into("<I", given, 8, 0x1234)  # mark
    struct.pack_into("<I", given, 32, 7)  # priority
    struct.pack_into("<5I", given, 48, 1, 2, 3, 4, 5)  # cb
    compared = 0
    for offset in (0, 8, 16, 32, 36, 40, 48, 52, 64, 160, 164):
        same = agrees(kind, load(4, R0, R1, offset), FRAMES, bytes(given))
        assert same is not False, offset
        compared += same is True
    assert compared >= 9


@pytest.mark.parametrize("kind", ["xdp", "tc", "lwt_in"])
def test_length_and_first_bytes(kind: str) -> None:
    prog_type, context = TYPES[kind]
    data, end = (0, 4) if context == "xdp" else (76, 80)
    code = (
        load(4, R2, R1, data) + load(4, R3, R1, end) + mov_reg(R4, R2) + alu(R4, "+", 8)
        + mov(R0, 0) + jump_if_reg(R4, ">", R3, 3)
        + load(4, R0, R2, 0) + load(4, R5, R2, 4) + alu_reg(R0, "^", R5)
        + EXIT
    )  # fmt: skip
    with load_raw(prog_type, code) as program:
        expected = [program.test_run(frame).retval for frame in FRAMES]
    assert low(emulated(context, code, FRAMES)) == expected


@pytest.mark.parametrize("kind", ["xdp", "tc"])
def test_written_packets(kind: str) -> None:
    prog_type, context = TYPES[kind]
    data, end = (0, 4) if context == "xdp" else (76, 80)
    code = (
        load(4, R2, R1, data) + load(4, R3, R1, end) + mov_reg(R4, R2) + alu(R4, "+", 40)
        + jump_if_reg(R4, ">", R3, 2)
        + store_imm(1, R2, 3, 0x77) + store_imm(4, R2, 32, 0x01020304)
        + returns(1)
    )  # fmt: skip
    with load_raw(prog_type, code) as program:
        expected = [program.test_run(frame) for frame in FRAMES]
    batch = emulated(context, code, FRAMES)
    assert [batch.packet(i) for i in range(len(FRAMES))] == [one.data_out for one in expected]
    assert low(batch) == [one.retval for one in expected]


LEGACY_OFFSETS = [0, 1, 12, 46, 49, 50, 96, 97, 99, 100, 1 << 20, -1, -0x1000, -0x100000,
                  -0x100000 + 40, -0x100000 + 86, -0x200000, -0x200000 + 13, -0x200000 + 98,
                  -0x200001, -0x7FFFFFFF]  # fmt: skip


@pytest.mark.parametrize("kind", ["tc", "socket_filter"])
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("indirect", [False, True])
def test_legacy_loads(kind: str, size: int, indirect: bool) -> None:
    prog_type, context = TYPES[kind]
    for offset in LEGACY_OFFSETS:
        access = mov(R7, 5) + load_ind(size, R7, offset) if indirect else load_abs(size, offset)
        code = mov_reg(R6, R1) + access + alu(R0, "^", 0x55555555) + EXIT
        with load_raw(prog_type, code) as program:
            expected = [program.test_run(frame).retval for frame in FRAMES]
        assert low(emulated(context, code, FRAMES)) == expected, offset


ALU_CASES = [
    insn(size | op | source, R0, R2 if source else 0, off, 0 if source else imm)
    for size in (0x04, 0x07)  # 32 and 64 bits
    for source in (0x00, 0x08)
    for op, off in [(0x00, 0), (0x10, 0), (0x20, 0), (0x30, 0), (0x30, 1), (0x40, 0), (0x50, 0),
                    (0x90, 0), (0x90, 1), (0xA0, 0), (0xB0, 0)]
    for imm in (3, -7, 0x7FFFFFFF, -0x80000000)
]  # fmt: skip


def test_arithmetic_gives_what_the_kernel_gives() -> None:
    """Each operation on a few values; the 64-bit result is folded, high half and low."""
    fold = mov_reg(R3, R0) + alu(R3, ">>", 32) + alu_reg(R0, "^", R3)
    with_sign = 0
    for case in ALU_CASES:
        for value in (0, -1, 0x12345678, 1 << 63):
            start = wide(R0, 0, value & 0xFFFFFFFF, value >> 32) + wide(R2, 0, 5, 0x80000001)
            code = start + case + fold + EXIT
            try:
                program = load_raw(ProgType.SOCKET_FILTER, code, log=False)
            except VerifierError:
                with_sign += case[2] == 1  # older kernels have no signed division
                continue
            with program:
                expected = program.test_run(FRAMES[0]).retval
            assert low(emulated("skb-l3", code, FRAMES[:1])) == [expected], (case.hex(), value)
    assert with_sign in (0, sum(case[2] == 1 for case in ALU_CASES) * 4)


def in_kernel(code: bytes, slots: Map) -> bytes:
    """``code`` with the map in place of its number."""
    first = wide(R2, 1, 0)
    return code.replace(first, insn(0x18, R2, 1, 0, slots.fileno()) + bytes(8))


def test_tail_calls_that_find_nothing_count_as_in_the_kernel() -> None:
    """40 attempts on an empty slot, then one on a full one: does the kernel still take it?"""
    target = returns(42)
    attempts = mov_reg(R6, R1) + (mov_reg(R1, R6) + tail_call(0, 1)) * 40
    code = attempts + mov_reg(R1, R6) + tail_call(0, 0) + returns(7)
    with (
        Map.create(MapType.PROG_ARRAY, 4, 4, 4) as slots,
        load_raw(ProgType.XDP, target) as target_program,
        load_raw(ProgType.XDP, in_kernel(code, slots)) as program,
    ):
        slots.set_fd(0, target_program.fileno())
        expected = program.test_run(FRAMES[0]).retval
    world = _ubpf.World()
    array = world.add_map("slots", 3, 4, 4, 4)
    world.set_program(array, 0, world.add_program("target", "xdp", target, [], [0]))
    emulator = world.add_program("test", "xdp", code, [array], [0])
    batch = world.run_batch(emulator, _ubpf.Packets(FRAMES[:1]))
    assert low(batch) == [expected]


def test_the_count_of_a_chain_that_calls_itself() -> None:
    """Each run adds one to the first packet byte, then tail-calls itself; so does a function."""
    body = (
        load(4, R2, R1, 0) + load(4, R3, R1, 4) + mov_reg(R4, R2) + alu(R4, "+", 1)
        + jump_if_reg(R4, ">", R3, 3)
        + load(1, R4, R2, 0) + alu(R4, "+", 1) + store(1, R2, 0, R4)
    )  # fmt: skip
    code = body + tail_call(0, 0) + returns(2)
    with (
        Map.create(MapType.PROG_ARRAY, 4, 4, 4) as slots,
        load_raw(ProgType.XDP, in_kernel(code, slots)) as program,
    ):
        slots.set_fd(0, program.fileno())
        expected = program.test_run(FRAMES[0]).data_out
    world = _ubpf.World()
    array = world.add_map("slots", 3, 4, 4, 4)
    itself = world.add_program("test", "xdp", code, [array], [0])
    world.set_program(array, 0, itself)
    batch = world.run_batch(itself, _ubpf.Packets(FRAMES[:1]))
    assert batch.packet(0) == expected
    assert batch.packet(0)[0] == FRAMES[0][0] + 34


def test_jumps_and_calls() -> None:
    code = (
        mov(R1, 10) + call_local(1) + EXIT
        + mov(R0, 0) + alu_reg(R0, "+", R1) + alu(R1, "-", 1) + jump_if(R1, "!=", 0, -3) + EXIT
    )  # fmt: skip
    assert low(emulated("xdp", code, FRAMES[:1], functions=(0, 3))) == [55]

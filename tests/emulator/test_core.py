"""The native engine: what uBPF lacks and the engine bridges, each shown by a program."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence

import pytest

from emulator.assembly import (
    ADD,
    CMPXCHG,
    EXIT,
    FETCH,
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R10,
    XCHG,
    alu,
    alu_reg,
    atomic,
    call,
    call_local,
    insn,
    jump,
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

ARRAY, PROG_ARRAY = 2, 3
PLAIN = _ubpf.Packets([b""], contexts=bytes(range(64)))
FRAME = bytes.fromhex("020000000001 020000000002 0800") + bytes(range(14, 64))
FRAMES = _ubpf.Packets([FRAME])


def run(
    code: bytes,
    *,
    context: str = "plain",
    packets: _ubpf.Packets = PLAIN,
    functions: Sequence[int] = (0,),
    world: _ubpf.World | None = None,
    maps: Sequence[int] = (),
    fill: int = 0,
    jit: bool = False,
) -> _ubpf.Batch:
    world = world or _ubpf.World()
    program = world.add_program("test", context, code, list(maps), list(functions))
    return world.run_batch(program, packets, fill=fill, jit=jit)


def verdicts(batch: _ubpf.Batch) -> tuple[int, ...]:
    assert not batch.faults, batch.faults
    return struct.unpack(f"<{len(batch)}Q", batch.verdicts)


def verdict(batch: _ubpf.Batch) -> int:
    return verdicts(batch)[0]


def ended(batch: _ubpf.Batch) -> int:
    return int.from_bytes(batch.ended[:4], "little", signed=True)


def counts(batch: _ubpf.Batch) -> tuple[int, int]:
    """Instructions and tail calls of the first packet."""
    return (
        int.from_bytes(batch.instructions[:4], "little"),
        int.from_bytes(batch.tail_calls[:4], "little"),
    )


def fault(batch: _ubpf.Batch) -> tuple[str, int, int, int]:
    assert len(batch.faults) == len(batch)
    one = batch.faults[0]
    assert ended(batch) == -2
    return one.kind, one.pc, one.address, one.size


def prog_array(world: _ubpf.World, size: int = 4) -> int:
    return world.add_map("slots", PROG_ARRAY, 4, 4, size)


# contexts and memory


def test_context_is_below_4_gib_and_the_same_in_two_worlds() -> None:
    code = mov_reg(R0, R1) + EXIT
    first, second = _ubpf.World(), _ubpf.World()
    for world in (first, second):
        world.add_map("values", ARRAY, 4, 8, 1)
    a = verdict(run(code, context="xdp", packets=FRAMES, world=first))
    b = verdict(run(code, context="xdp", packets=FRAMES, world=second))
    assert a == b < 1 << 32
    value = wide(R0, 2, 0, 0) + EXIT
    a = verdict(run(value, world=first, maps=[0]))
    assert a == verdict(run(value, world=second, maps=[0]))
    stack = mov_reg(R0, R10) + EXIT
    assert verdict(run(stack, world=first)) == verdict(run(stack, world=second))


def test_two_worlds_keep_their_own_values_at_one_address() -> None:
    code = wide(R1, 2, 0, 0) + load(8, R0, R1) + alu(R0, "+", 1) + store(8, R1, 0, R0) + EXIT
    worlds = [_ubpf.World() for _ in range(3)]
    programs = []
    for start, world in enumerate(worlds):
        world.add_map("v", ARRAY, 4, 8, 1)
        world.map_update(0, bytes(4), struct.pack("<Q", 100 * start))
        programs.append(world.add_program("p", "plain", code, [0], [0]))
    for round_ in range(1, 4):
        for start, world in enumerate(worlds):
            assert verdict(world.run_batch(programs[start], PLAIN)) == 100 * start + round_
    found = [struct.unpack("<Q", world.map_lookup(0, bytes(4)) or b"")[0] for world in worlds]
    assert found == [3, 103, 203]
    assert worlds[0].map_differs(0, worlds[1], 0)


def test_map_memory_grows_in_place() -> None:
    world = _ubpf.World()
    world.add_map("first", ARRAY, 4, 8, 1)
    world.map_update(0, bytes(4), b"held her")
    world.add_map("large", ARRAY, 4, 4096, 4096)
    last = struct.pack("<I", 4095)
    world.map_update(1, last, b"x" * 4096)
    assert world.map_lookup(0, bytes(4)) == b"held her"
    code = wide(R1, 2, 0, 0) + load(8, R0, R1) + EXIT
    assert verdict(run(code, world=world, maps=[0])) == int.from_bytes(b"held her", "little")


def test_xdp_context_and_packet() -> None:
    code = (
        load(4, R2, R1, 0) + load(4, R3, R1, 4)
        + mov_reg(R4, R2) + alu(R4, "+", 14) + jump_if_reg(R4, ">", R3, 5)
        + load(2, R0, R2, 12) + store_imm(1, R2, 0, 0x55)
        + alu_reg(R3, "-", R2) + alu(R3, "<<", 16) + alu_reg(R0, "|", R3)
        + EXIT
    )  # fmt: skip
    batch = run(code, context="xdp", packets=FRAMES)
    assert verdict(batch) == 64 << 16 | 0x0008
    assert batch.packet(0) == b"\x55" + FRAME[1:]
    start, end, meta, ifindex, queue, egress = struct.unpack("<6I", batch.context(0))
    assert (end - start, meta, ifindex, queue, egress) == (64, start, 1, 0, 0)


def test_long_xdp_frames_show_a_page() -> None:
    code = load(4, R0, R1, 4) + load(4, R2, R1, 0) + alu_reg(R0, "-", R2) + EXIT
    frame = bytes(range(256)) * 20
    batch = run(code, context="xdp", packets=_ubpf.Packets([frame, frame[:3520], frame[:3521]]))
    assert verdicts(batch) == (3520, 3520, 3520)
    change = load(4, R2, R1, 0) + store_imm(1, R2, 0, 7) + returns(2)
    batch = run(change, context="xdp", packets=_ubpf.Packets([frame]))
    assert batch.packet(0) == b"\x07" + frame[1:]


def test_skb_context() -> None:
    length = load(4, R0, R1, 0) + EXIT
    assert verdict(run(length, context="skb", packets=FRAMES)) == 64
    assert verdict(run(length, context="skb-l3", packets=FRAMES)) == 50
    first = load(4, R2, R1, 76) + load(4, R3, R1, 80) + mov_reg(R4, R2) + alu(R4, "+", 1) \
        + jump_if_reg(R4, ">", R3, 1) + load(1, R0, R2) + EXIT  # fmt: skip
    assert verdict(run(first, context="skb", packets=FRAMES)) == 2
    assert verdict(run(first, context="skb-l3", packets=FRAMES)) == 14
    assert run(first, context="skb-l3", packets=FRAMES).packet(0) == FRAME[14:]
    protocol = load(4, R0, R1, 16) + EXIT
    assert verdict(run(protocol, context="skb", packets=FRAMES)) == 0x0008  # network order
    mark = mov(R2, 77) + store(4, R1, 8, R2) + returns(0)
    batch = run(mark, context="skb", packets=FRAMES)
    assert not batch.faults
    assert struct.unpack_from("<I", batch.context(0), 8) == (77,)


@pytest.mark.parametrize(
    ("context", "code", "kind"),
    [
        ("xdp", mov(R2, 1) + store(4, R1, 0, R2), "write"),
        ("xdp", load(2, R2, R1, 0), "read"),
        ("xdp", load(4, R2, R1, 24), "read"),
        ("xdp", load(4, R2, R1, -4), "read"),
        ("skb", mov(R2, 1) + store(4, R1, 0, R2), "write"),  # len
        ("skb", load(4, R2, R1, 88), "read"),  # family
        ("skb", load(8, R2, R1, 168), "unmodelled"),  # sk
        ("skb", load(8, R2, R1, 144), "unmodelled"),  # flow_keys
        ("skb-l3", load(4, R2, R1, 72), "read"),  # tc_classid
        ("skb-l3", load(4, R2, R1, 88), "unmodelled"),  # family
        ("plain", mov(R2, 1) + store(8, R1, 0, R2), "unmodelled"),
        ("plain", load(8, R2, R1, 60), "read"),
    ],
)
def test_context_fields_that_programs_may_not_touch(context: str, code: bytes, kind: str) -> None:
    packets = PLAIN if context == "plain" else FRAMES
    batch = run(code + returns(0), context=context, packets=packets)
    assert batch.faults[0].kind == kind
    assert batch.faults[0].pc == len(code) // 8 - 1


def test_skb_fields_that_tc_programs_may_write() -> None:
    for offset in (8, 12, 32, 44, 48, 64, 72):
        batch = run(
            mov(R2, 5) + store(4, R1, offset, R2) + load(4, R0, R1, offset) + EXIT,
            context="skb",
            packets=FRAMES,
        )
        assert verdict(batch) == 5, offset


# faults


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (mov(R2, 0) + load(8, R0, R2, 16), ("read", 1, 16, 8)),
        (mov(R2, 0) + store(4, R2, 8, R2), ("write", 1, 8, 4)),
        (mov(R2, -1) + load(1, R0, R2, 0), ("read", 1, 2**64 - 1, 1)),
        (mov(R2, -1) + load(1, R0, R2, 2), ("read", 1, 1, 1)),  # over the end of memory
        (mov(R2, 1) + store_imm(8, R2, -9, 0), ("write", 1, 2**64 - 8, 8)),
    ],
)
def test_a_fault_tells_pc_address_and_size(
    code: bytes, expected: tuple[str, int, int, int]
) -> None:
    assert fault(run(code + EXIT)) == expected


def test_pcs_are_those_of_the_code_given() -> None:
    # LD_ABS becomes seven instructions, a tail call from a subprogram five.
    code = mov_reg(R6, R1) + load_abs(1, 0) + load_abs(1, 1) + mov(R2, 0) + load(8, R0, R2) + EXIT
    assert fault(run(code, context="skb", packets=FRAMES))[:2] == ("read", 4)


def test_stack_bounds() -> None:
    low = store_imm(8, R10, -512, 1) + load(8, R0, R10, -512) + EXIT
    assert verdict(run(low)) == 1
    kind, pc, address, size = fault(run(store_imm(8, R10, -520, 1) + returns(0)))
    assert (kind, pc, size) == ("write", 0, 8)
    assert address == verdict(run(mov_reg(R0, R10) + EXIT)) - 520
    assert fault(run(load(8, R0, R10, -4) + EXIT))[:2] == ("read", 0)
    assert fault(run(load(1, R0, R10, 0) + EXIT))[:2] == ("read", 0)


def test_packet_bounds() -> None:
    def at(offset: int, size: int) -> _ubpf.Batch:
        code = load(4, R2, R1, 0) + load(size, R0, R2, offset) + EXIT
        return run(code, context="xdp", packets=FRAMES)

    assert verdict(at(56, 8)) == int.from_bytes(FRAME[56:], "little")
    assert fault(at(57, 8))[0] == "read"
    assert fault(at(64, 1))[0] == "read"
    assert fault(at(-1, 1))[0] == "read"


def test_map_value_bounds_and_read_only_maps() -> None:
    world = _ubpf.World()
    values = world.add_map("values", ARRAY, 4, 12, 1)
    constants = world.add_map("constants", ARRAY, 4, 8, 1, readonly=True)
    world.map_update(constants, bytes(4), b"constant")

    def access(code: bytes, map: int = values) -> _ubpf.Batch:
        return run(wide(R1, 2, 0, 0) + code + EXIT, world=world, maps=[map])

    assert verdict(access(store_imm(4, R1, 8, 9) + load(4, R0, R1, 8))) == 9
    assert fault(access(load(8, R0, R1, 8)))[:2] == ("read", 2)  # over the value's end
    assert fault(access(load(1, R0, R1, -1)))[:2] == ("read", 2)
    assert verdict(access(load(8, R0, R1), constants)) == int.from_bytes(b"constant", "little")
    kind, pc, _, size = fault(access(store_imm(8, R1, 0, 0), constants))
    assert (kind, pc, size) == ("write", 2, 8)
    assert world.map_lookup(constants, bytes(4)) == b"constant"
    assert fault(access(atomic(8, R1, 0, R1, ADD), constants))[0] == "write"


def test_map_handles_cannot_be_followed() -> None:
    world = _ubpf.World()
    values = world.add_map("values", ARRAY, 4, 8, 1)
    code = wide(R1, 1, 0) + load(8, R0, R1) + EXIT
    assert fault(run(code, world=world, maps=[values]))[0] == "read"


def test_instruction_limit() -> None:
    world = _ubpf.World(instruction_limit=1000)
    endless = mov(R0, 0) + alu(R0, "+", 1) + jump(-2)
    batch = run(endless + EXIT, world=world)
    assert fault(batch)[0] == "limit"
    assert counts(batch)[0] == 1000
    loop = mov(R0, 0) + alu(R0, "+", 1) + jump_if(R0, "!=", 499, -2) + EXIT
    batch = run(loop, world=world)
    assert verdict(batch) == 499
    assert counts(batch)[0] == 1 + 2 * 499 + 1


def test_the_limit_holds_for_a_chain_of_tail_calls_as_a_whole() -> None:
    world = _ubpf.World(instruction_limit=100)
    slots = prog_array(world)
    loop = mov(R0, 0) + alu(R0, "+", 1) + jump_if(R0, "!=", 20, -2)
    last = world.add_program("loop", "plain", loop * 2 + EXIT, [], [0])
    world.set_program(slots, 0, last)
    batch = run(mov_reg(R6, R1) + loop + mov_reg(R1, R6) + tail_call(0, 0) + EXIT,
                world=world, maps=[slots])  # fmt: skip
    assert fault(batch)[0] == "limit"
    assert batch.faults[0].program == last


def test_unmodelled_helpers_and_kernel_functions_are_named() -> None:
    batch = run(call(999) + EXIT)
    assert fault(batch)[:2] == ("unmodelled", 0)
    assert "999" in batch.faults[0].what
    batch = run(mov(R0, 0) + insn(0x85, 0, 2, 0, 1234) + EXIT)
    assert fault(batch)[:2] == ("unmodelled", 1)
    assert "1234" in batch.faults[0].what
    # A helper that is not reached does no harm.
    assert verdict(run(mov(R0, 3) + jump(1) + call(999) + EXIT)) == 3


# stacks, calls, callbacks


def test_a_frame_of_512_bytes_is_not_clobbered_by_a_callee() -> None:
    code = (
        store_imm(8, R10, -504, 0x1234) + call_local(2) + load(8, R0, R10, -504) + EXIT
        + store_imm(8, R10, -248, 0x666) + returns(0)
    )  # fmt: skip
    assert verdict(run(code, functions=(0, 4))) == 0x1234


def test_a_callee_may_use_its_callers_stack_by_pointer_only() -> None:
    code = (
        store_imm(8, R10, -8, 41) + mov_reg(R1, R10) + call_local(1) + EXIT
        + load(8, R0, R1, -8) + alu(R0, "+", 1) + EXIT
    )  # fmt: skip
    assert verdict(run(code, functions=(0, 4))) == 42
    below = (
        call_local(1) + EXIT
        + call_local(3) + load(8, R0, R0, -8) + EXIT + insn(0x95)
        + mov_reg(R0, R10) + EXIT
    )  # fmt: skip
    # The frame of a function that has returned is no longer there.
    assert fault(run(below, functions=(0, 2, 6)))[:2] == ("read", 3)


def nested(depth: int) -> tuple[bytes, list[int]]:
    """``depth`` frames: each function calls the next."""
    code = (call_local(1) + EXIT) * (depth - 1) + returns(depth)
    return code, [2 * i for i in range(depth)]


def test_eight_frames_and_no_ninth() -> None:
    code, functions = nested(8)
    assert verdict(run(code, functions=functions)) == 8
    code, functions = nested(9)
    kind, pc, _, _ = fault(run(code, functions=functions))
    assert (kind, pc) == ("stack", 14)
    recursion = call_local(1) + EXIT + call_local(-1) + EXIT
    assert fault(run(recursion, functions=(0, 2)))[0] == "stack"


def test_registers_6_to_9_survive_a_call() -> None:
    code = (
        mov(R6, 1) + mov(R7, 2) + mov(R8, 3) + call_local(5)
        + mov_reg(R0, R6) + alu_reg(R0, "+", R7) + alu_reg(R0, "+", R8) + jump(0) + EXIT
        + mov(R6, 50) + mov(R7, 60) + mov(R8, 70) + returns(0)
    )  # fmt: skip
    assert verdict(run(code, functions=(0, 9))) == 6


def test_a_function_may_end_in_a_jump_back() -> None:
    # main: return f(); f ends in `goto -N`, as compilers emit for loops
    code = (
        call_local(1) + EXIT
        + mov(R0, 0) + jump(1) + EXIT
        + alu(R0, "+", 1) + jump_if(R0, "==", 5, -3) + jump(-3)
        + returns(9)
    )  # fmt: skip
    assert verdict(run(code, functions=(0, 2, 8))) == 5
    # ... also as the last function
    code = code[: 8 * 8]
    assert verdict(run(code, functions=(0, 2))) == 5


CALLBACK = (
    # main: r6 = 0 on the stack; bpf_loop(10, f, &sum, 0); return sum
    store_imm(8, R10, -8, 0) + mov(R1, 10) + wide(R2, 4, 7) + mov_reg(R3, R10) + alu(R3, "+", -8)
    + mov(R4, 0) + call(181) + load(8, R0, R10, -8) + EXIT
)  # fmt: skip


def loop_program(body: bytes) -> tuple[bytes, tuple[int, int]]:
    start = len(CALLBACK) // 8
    code = bytearray(CALLBACK + body)
    struct.pack_into("<i", code, 2 * 8 + 4, start - 3)  # the function's distance
    return bytes(code), (0, start)


SUM = load(8, R3, R2) + alu_reg(R3, "+", R1) + store(8, R2, 0, R3) + returns(0)


def test_bpf_loop_calls_a_function() -> None:
    code, functions = loop_program(SUM)
    assert verdict(run(code, functions=functions)) == sum(range(10))


def test_a_callback_has_a_frame_of_its_own() -> None:
    code, functions = loop_program(store_imm(8, R10, -8, 666) + SUM)
    assert verdict(run(code, functions=functions)) == sum(range(10))


def test_a_fault_in_a_callback_ends_the_run() -> None:
    code, functions = loop_program(mov(R3, 0) + load(8, R0, R3) + EXIT)
    kind, pc, address, size = fault(run(code, functions=functions))
    assert (kind, pc, address, size) == ("read", functions[1] + 1, 0, 8)


def test_callbacks_count_as_frames() -> None:
    # Seven frames and a callback are eight; the callback's own call is one too many.
    code, functions = loop_program(call_local(1) + EXIT + returns(0))
    starts = (*functions, functions[1] + 2)
    assert not run(code, functions=starts).faults
    deep = b"".join(call_local(1) + EXIT for _ in range(6))
    shifted = (0, 2, 4, 6, 8, 10, *(start + 12 for start in starts))
    assert fault(run(deep + code, functions=shifted))[0] == "stack"


# tail calls


def test_tail_call_from_the_main_function() -> None:
    world = _ubpf.World()
    slots = prog_array(world)
    world.set_program(slots, 2, world.add_program("target", "plain", returns(42), [], [0]))
    code = tail_call(0, 2) + returns(7)
    batch = run(code, world=world, maps=[slots])
    assert verdict(batch) == 42
    assert counts(batch) == (5, 1)  # three and two: a 64-bit load is one
    batch = run(tail_call(0, 1) + returns(7), world=world, maps=[slots])
    assert (verdict(batch), counts(batch)[1]) == (7, 0)
    batch = run(tail_call(0, 99) + returns(7), world=world, maps=[slots])
    assert (verdict(batch), counts(batch)[1]) == (7, 0)


def test_tail_call_from_a_function_returns_to_its_caller() -> None:
    world = _ubpf.World()
    slots = prog_array(world)
    world.set_program(slots, 0, world.add_program("target", "plain", returns(42), [], [0]))
    code = call_local(2) + alu(R0, "+", 100) + EXIT + tail_call(0, 0) + returns(7)
    assert verdict(run(code, world=world, maps=[slots], functions=(0, 3))) == 142
    empty = call_local(2) + alu(R0, "+", 100) + EXIT + tail_call(0, 1) + returns(7)
    assert verdict(run(empty, world=world, maps=[slots], functions=(0, 3))) == 107


def test_a_target_sees_the_stack_of_the_program_before() -> None:
    world = _ubpf.World()
    slots = prog_array(world)
    target = world.add_program("target", "plain", load(8, R0, R10, -8) + EXIT, [], [0])
    world.set_program(slots, 0, target)
    code = store_imm(8, R10, -8, 321) + tail_call(0, 0) + returns(7)
    assert verdict(run(code, world=world, maps=[slots])) == 321


def test_33_tail_calls_and_no_34th() -> None:
    world = _ubpf.World()
    slots = prog_array(world)
    counter = world.add_map("counter", ARRAY, 4, 8, 1)
    count = wide(R4, 2, 1, 0) + load(8, R5, R4) + alu(R5, "+", 1) + store(8, R4, 0, R5)
    code = count + tail_call(0, 0) + mov_reg(R0, R5) + EXIT
    itself = world.add_program("itself", "plain", code, [slots, counter], [0])
    world.set_program(slots, 0, itself)
    batch = world.run_batch(itself, PLAIN)
    assert verdict(batch) == 34
    assert counts(batch)[1] == 33
    # The same by calls of functions: the count is one for the whole run.
    code = call_local(1) + EXIT + code
    itself = world.add_program("sub", "plain", code, [slots, counter], [0, 2])
    world.set_program(slots, 0, itself)
    batch = world.run_batch(itself, PLAIN)
    assert not batch.faults
    assert counts(batch)[1] == 33
    assert world.map_lookup(counter, bytes(4)) == struct.pack("<Q", 68)


def test_markers() -> None:
    world = _ubpf.World()
    slots = prog_array(world)
    world.set_marker(slots, 3, 7)
    code = load(4, R2, R1, 0) + store_imm(1, R2, 0, 0x99) + tail_call(0, 3) + returns(2)
    batch = run(code, context="xdp", packets=FRAMES, world=world, maps=[slots])
    assert ended(batch) == 7
    assert counts(batch)[1] == 1
    assert batch.packet(0)[0] == 0x99
    sub = call_local(1) + EXIT + tail_call(0, 3) + returns(2)
    batch = run(sub, context="xdp", packets=FRAMES, world=world, maps=[slots], functions=(0, 2))
    assert ended(batch) == 7
    other = mov_reg(R1, R10) + tail_call(0, 3) + returns(2)
    batch = run(other, context="xdp", packets=FRAMES, world=world, maps=[slots])
    assert fault(batch)[:2] == ("jump", 4)


def test_tail_calls_that_the_kernel_would_not_load() -> None:
    world = _ubpf.World()
    slots = prog_array(world)
    values = world.add_map("values", ARRAY, 4, 8, 1)
    world.set_program(slots, 0, world.add_program("xdp", "xdp", returns(1), [], [0]))
    assert fault(run(tail_call(0, 0) + returns(2), world=world, maps=[slots]))[0] == "jump"
    assert fault(run(tail_call(0, 0) + returns(2), world=world, maps=[values]))[0] == "jump"


# LD_ABS, LD_IND


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (load_abs(2, 12), 0x0800),
        (load_abs(4, 14), 0x0E0F1011),
        (load_abs(1, 63), 63),
        (mov(R7, 10) + load_ind(2, R7, 4), 0x0E0F),
        (mov(R1, 20) + load_ind(1, R1, 0), 20),
        (load_abs(1, -0x100000), 14),  # from the network header
        (load_abs(1, -0x100000 + 5), 19),
        (load_abs(1, -0x200000), 2),  # from the link layer's
        (mov(R7, -2) + load_ind(1, R7, 16), 14),
    ],
)
def test_legacy_loads(code: bytes, expected: int) -> None:
    code = mov_reg(R6, R1) + code + alu(R0, "+", 1000) + EXIT
    assert verdict(run(code, context="skb", packets=FRAMES)) == expected + 1000


@pytest.mark.parametrize("offset", [61, 64, 1 << 20, -1, -0x1000, -0x100000 + 47, -0x300000])
def test_a_legacy_load_outside_the_packet_returns_0(offset: int) -> None:
    code = mov_reg(R6, R1) + load_abs(4, offset) + returns(1000)
    assert verdict(run(code, context="skb", packets=FRAMES)) == 0


def test_a_legacy_load_outside_ends_only_its_function() -> None:
    code = call_local(2) + alu(R0, "+", 5) + EXIT + mov_reg(R6, R1) + load_abs(4, 64) + returns(9)
    assert verdict(run(code, context="skb", packets=FRAMES, functions=(0, 3))) == 5


def test_legacy_loads_of_other_contexts() -> None:
    code = mov_reg(R6, R1) + load_abs(1, 0) + EXIT
    assert verdict(run(code, context="skb-l3", packets=FRAMES)) == 14
    with pytest.raises(ValueError, match="LD_ABS at pc 1"):
        run(code, context="xdp", packets=FRAMES)


# atomics


def test_atomics() -> None:
    def stack(size: int, operation: int, r0: int = 0) -> tuple[int, int, int]:
        """Memory, source and r0 after an operation with 5 on 40."""
        got = []
        for result in (load(8, R0, R10, -8), mov_reg(R0, R2), b""):
            code = (
                store_imm(8, R10, -8, 40) + mov(R2, 5) + mov(R0, r0)
                + atomic(size, R10, -8, R2, operation) + result + EXIT
            )  # fmt: skip
            got.append(verdict(run(code)))
        return got[0], got[1], got[2]

    for size in (4, 8):
        assert stack(size, ADD) == (45, 5, 0)
        assert stack(size, ADD | FETCH) == (45, 40, 0)
        assert stack(size, 0x40) == (40 | 5, 5, 0)
        assert stack(size, 0x50 | FETCH) == (40 & 5, 40, 0)
        assert stack(size, 0xA0) == (40 ^ 5, 5, 0)
        assert stack(size, XCHG) == (5, 40, 0)
        assert stack(size, CMPXCHG, r0=40) == (5, 5, 40)
        assert stack(size, CMPXCHG, r0=41) == (40, 5, 40)


# what is refused


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (mov(R0, 0) + insn(0xE5, 0, 0, 0, 0), "may_goto at pc 1"),
        (mov(R0, 0) + insn(0xBF, 0, 1, 1, 1), "addr_space_cast at pc 1"),
        (mov(R0, 0) + insn(0x8D, 0), "callx.* at pc 1"),
        (mov(R0, 0) + atomic(1, R10, -8, R0, ADD), "8-bit atomic.* at pc 1"),
        (mov(R0, 0) + jump(-1), "infinite loop at pc 1"),
        (mov(R0, 0) + jump(9), "out of the code at pc 1"),
        (mov(R0, 0) + insn(0xFF), "0xff at pc 1"),
        (mov(R0, 0) + insn(0xFD), "pc 1"),
        (mov(R0, 0) + wide(R1, 1, 3), "names map 3 of 0"),
        (mov(R0, 0) + insn(0x18), "incomplete 64-bit load at pc 1|LDDW|lddw"),
        (jump(1) + wide(R1, 0, 3), "into a 64-bit load at pc 0"),
        (mov(R0, 0) + call_local(0), "call at pc 1 goes to no function"),
    ],
)
def test_code_that_is_refused(code: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        run(code + EXIT)
    assert "program test" in str(caught.value)


def test_bad_arguments() -> None:
    world = _ubpf.World()
    with pytest.raises(ValueError, match="no context 'tc'"):
        world.add_program("p", "tc", returns(0), [], [0])
    with pytest.raises(ValueError, match="must start at 0"):
        world.add_program("p", "xdp", returns(0), [], [])
    with pytest.raises(ValueError, match="must ascend"):
        world.add_program("p", "xdp", returns(0) * 3, [], [0, 4, 2])
    with pytest.raises(ValueError, match="whole instructions"):
        world.add_program("p", "xdp", returns(0)[:-1], [], [0])
    with pytest.raises(ValueError, match="whole instructions"):
        world.add_program("p", "xdp", b"", [], [0])
    with pytest.raises(IndexError, match="map 0 of 0"):
        world.add_program("p", "xdp", returns(0), [0], [0])
    with pytest.raises(IndexError, match="program 0 of 0"):
        world.run_batch(0, FRAMES)
    xdp = world.add_program("p", "xdp", returns(0), [], [0])
    with pytest.raises(ValueError, match="context of 64 bytes where it has 24"):
        world.run_batch(xdp, PLAIN)
    with pytest.raises(ValueError, match="2 contexts for 1 packets"):
        _ubpf.Packets([FRAME], contexts=[b"", b""])
    with pytest.raises(ValueError, match="packet 1 has 65550 bytes"):
        _ubpf.Packets([FRAME, bytes(65_550)])


def test_the_largest_program() -> None:
    code = mov(R0, 0) + alu(R0, "+", 1) * 65_000 + EXIT
    assert verdict(run(code)) == 65_000
    with pytest.raises(ValueError, match="too many instructions"):
        run(mov(R0, 0) * 65_536 + EXIT)


# batches


def test_determinism_nothing_uninitialised_is_visible() -> None:
    """Registers and stack bytes that were never written come from the fill."""
    registers = b"".join(alu_reg(R0, "^", register) for register in range(2, 10)) + EXIT
    stack = load(8, R0, R10, -512) + EXIT
    world = _ubpf.World()
    dirty = b"".join(store_imm(8, R10, -8 * i, 0x77) for i in range(1, 65)) + returns(0)
    deep = call_local(1) + EXIT + load(8, R0, R10, -512) + EXIT
    for fill in (0x00, 0xA5):
        word = int.from_bytes(bytes([fill]) * 8, "little")
        assert verdict(run(stack, world=world, fill=fill)) == word
        run(dirty, world=world, fill=fill)
        assert verdict(run(stack, world=world, fill=fill)) == word
        assert verdict(run(registers, world=world, fill=fill)) == word  # an odd number of them
        assert verdict(run(deep, world=world, fill=fill, functions=(0, 2))) == word


def test_every_packet_starts_with_the_fill_and_a_clean_headroom() -> None:
    code = load(8, R0, R10, -8) + store_imm(8, R10, -8, 99) + EXIT
    assert verdicts(run(code, packets=_ubpf.Packets([b""] * 3, contexts=bytes(8)))) == (0, 0, 0)


def test_two_worlds_of_one_seed_agree_and_the_seed_matters() -> None:
    code = call(7) + EXIT  # bpf_get_prandom_u32
    packets = _ubpf.Packets([FRAME] * 5)

    def randoms(seed: int, chosen: _ubpf.Packets = packets) -> tuple[int, ...]:
        return verdicts(run(code, context="xdp", packets=chosen, world=_ubpf.World(seed=seed)))

    assert randoms(1) == randoms(1) != randoms(2)
    assert len(set(randoms(1))) == 5
    # A packet keeps its numbers when others are left out.
    assert randoms(1, packets.select([3, 1])) == (randoms(1)[3], randoms(1)[1])


def test_maps_persist_and_can_be_restored() -> None:
    world = _ubpf.World()
    counter = world.add_map("counter", ARRAY, 4, 8, 1)
    code = wide(R1, 2, 0, 0) + mov(R2, 1) + atomic(8, R1, 0, R2, ADD) + load(8, R0, R1) + EXIT
    program = world.add_program("p", "xdp", code, [counter], [0])
    start = world.save()
    packets = _ubpf.Packets([FRAME] * 3)
    assert verdicts(world.run_batch(program, packets)) == (1, 2, 3)
    later = world.save()
    assert verdicts(world.run_batch(program, packets)) == (4, 5, 6)
    world.restore(start)
    assert verdicts(world.run_batch(program, packets)) == (1, 2, 3)
    world.restore(later)
    assert verdicts(world.run_batch(program, packets)) == (4, 5, 6)


def test_coverage_of_instructions_and_edges() -> None:
    code = (
        load(4, R2, R1, 0) + load(1, R3, R2)
        + jump_if(R3, "==", 2, 2) + mov(R0, 1) + EXIT
        + wide(R4, 0, 1) + mov(R0, 2) + EXIT
    )  # fmt: skip
    world = _ubpf.World()
    program = world.add_program("p", "xdp", code, [], [0])
    assert world.coverage(program) == (bytes(9), bytes(9))
    world.run_batch(program, FRAMES, coverage=False)
    assert world.coverage(program) == (bytes(9), bytes(9))
    world.run_batch(program, FRAMES)
    assert world.coverage(program) == (
        bytes([1, 1, 0, 0, 0, 1, 0, 1, 1]),
        bytes([0, 0, 1, 0, 0, 0, 0, 0, 0]),
    )
    world.run_batch(program, _ubpf.Packets([bytes(20)]))
    assert world.coverage(program) == (
        bytes([1, 1, 1, 1, 1, 1, 0, 1, 1]),
        bytes([0, 0, 1, 0, 0, 0, 0, 0, 0]),
    )


def test_differences() -> None:
    packets = _ubpf.Packets([FRAME, bytes(20), b"\x02" + bytes(19)])

    def edit(where: bytes, returned: int) -> _ubpf.Batch:
        """Write ``where``'s store for frames that begin with 2."""
        code = (
            load(4, R2, R1, 76) + load(1, R3, R2) + jump_if(R3, "!=", 2, len(where) // 8)
            + where + returns(returned)
        )  # fmt: skip
        return run(code, context="skb", packets=packets)

    base = edit(b"", 0)
    assert base.differences(base) == []
    assert base.differences(edit(b"", 1)) == [(0, "verdict"), (1, "verdict"), (2, "verdict")]
    assert base.differences(edit(b"", 1), limit=2) == [(0, "verdict"), (1, "verdict")]
    assert base.differences(edit(store_imm(1, R2, 6, 9), 0)) == [(0, "packet"), (2, "packet")]
    assert base.differences(edit(store_imm(1, R2, 0, 2), 0)) == []
    mark = mov(R4, 1) + store(4, R1, 8, R4)
    assert base.differences(edit(mark, 0)) == [(0, "context"), (2, "context")]
    assert edit(mark, 0).differences(edit(mark, 1), ignore=["verdict"]) == []
    null = mov(R4, 0) + load(1, R4, R4)
    assert base.differences(edit(null, 0)) == [(0, "ended"), (2, "ended")]
    assert edit(null, 0).differences(edit(null, 0)) == []
    other = mov(R4, 4) + load(1, R4, R4)
    assert edit(null, 0).differences(edit(other, 0)) == [(0, "fault"), (2, "fault")]
    with pytest.raises(ValueError, match="no dimension 'colour'"):
        base.differences(base, ignore=["colour"])
    with pytest.raises(ValueError, match="batches of 3 and 1"):
        base.differences(run(returns(0)))


def test_equal_inputs_of_two_packets_objects_are_equal() -> None:
    code = load(4, R2, R1, 0) + store_imm(1, R2, 0, 9) + returns(2)
    a = run(code, context="xdp", packets=_ubpf.Packets([FRAME]))
    b = run(code, context="xdp", packets=_ubpf.Packets([b"\x05" + FRAME[1:]]))
    assert a.differences(b) == []
    untouched = run(returns(2), context="xdp", packets=_ubpf.Packets([FRAME]))
    other = run(returns(2), context="xdp", packets=_ubpf.Packets([b"\x05" + FRAME[1:]]))
    assert untouched.differences(other) == [(0, "packet")]


# the JIT

JIT = """
import struct, sys
sys.path[:0] = {path!r}
from bpfchain.emulator import _ubpf
from emulator import test_core
_ubpf.allow_jit()
for name, code, functions, context, packets in test_core.jit_programs():
    batches = []
    for jit in (False, True):
        world = _ubpf.World()
        slots = world.add_map("slots", 3, 4, 4, 4)
        world.add_map("values", 2, 4, 8, 1)
        world.set_program(slots, 0, world.add_program("t", context, test_core.returns(42), [], [0]))
        world.set_marker(slots, 1, 5)
        program = world.add_program(name, context, code, [0, 1], list(functions))
        batch = world.run_batch(program, packets, jit=jit)
        batches.append(batch)
    a, b = batches
    differ = [d for d in a.differences(b)]
    print(name, len(a.faults), differ, struct.unpack_from("<q", b.verdicts)[0], flush=True)
"""


def jit_programs() -> list[tuple[str, bytes, Sequence[int], str, _ubpf.Packets]]:
    loop, loop_functions = loop_program(SUM)
    sub = call_local(2) + alu(R0, "+", 100) + EXIT + tail_call(0, 0) + returns(7)
    xdp = load(4, R2, R1, 0) + load(2, R0, R2, 12) + store_imm(1, R2, 0, 3) + EXIT
    frame, frame_functions = nested(8)
    clean = b"".join(alu_reg(R0, "|", register) for register in range(2, 10)) + EXIT
    return [
        ("plain", load(8, R0, R1, 8) + EXIT, (0,), "plain", PLAIN),
        ("xdp", xdp, (0,), "xdp", FRAMES),
        ("loop", loop, loop_functions, "plain", PLAIN),
        ("tail", tail_call(0, 0) + returns(7), (0,), "plain", PLAIN),
        ("empty", tail_call(0, 3) + returns(7), (0,), "plain", PLAIN),
        ("marker", tail_call(0, 1) + returns(7), (0,), "plain", PLAIN),
        ("sub", sub, (0, 3), "plain", PLAIN),
        ("nested", frame, frame_functions, "plain", PLAIN),
        ("registers", clean, (0,), "plain", PLAIN),
        ("stack", load(8, R0, R10, -8) + EXIT, (0,), "plain", PLAIN),
        ("legacy", mov_reg(R6, R1) + load_abs(4, 14) + EXIT, (0,), "skb", FRAMES),
        ("unmodelled", call(999) + EXIT, (0,), "plain", PLAIN),
        ("value", wide(R1, 2, 1, 0) + store_imm(8, R1, 0, 5) + load(8, R0, R1) + EXIT, (0,),
         "plain", PLAIN),
    ]  # fmt: skip


def test_the_jit_gives_what_the_interpreter_gives() -> None:
    done = subprocess.run(
        [sys.executable, "-c", JIT.format(path=sys.path)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = dict(re.findall(r"^(\w+) (.*)$", done.stdout, re.MULTILINE))
    values = {
        "plain": int.from_bytes(bytes(range(8, 16)), "little"), "xdp": 8, "loop": 45, "tail": 42,
        "empty": 7, "sub": 142, "nested": 8, "registers": 0, "stack": 0, "legacy": 0x0E0F1011,
        "value": 5,
    }  # fmt: skip
    assert said.pop("marker") == "0 [] 0"
    assert said.pop("unmodelled") == "1 [] 0"
    assert said == {name: f"0 [] {value}" for name, value in values.items()}


def test_the_jit_is_refused_without_leave() -> None:
    with pytest.raises(RuntimeError, match=r"child process that calls allow_jit"):
        run(returns(0), jit=True)


# threads


def test_worlds_in_threads_take_turns_and_other_threads_go_on() -> None:
    """The GIL is released: a counting thread goes on; a lock keeps worlds from each other."""
    code = (
        wide(R1, 2, 0, 0) + load(8, R2, R1) + alu(R2, "+", 1) + store(8, R1, 0, R2)
        + mov(R3, 2000) + alu(R3, "-", 1) + jump_if(R3, "!=", 0, -2)
        + load(8, R0, R1) + EXIT
    )  # fmt: skip
    packets = _ubpf.Packets([FRAME] * 500)
    totals = dict.fromkeys(range(3), 0)

    def work(name: int) -> None:
        world = _ubpf.World()
        world.add_map("v", ARRAY, 4, 8, 1)
        program = world.add_program("p", "xdp", code, [0], [0])
        for _ in range(4):
            totals[name] = verdicts(world.run_batch(program, packets))[-1]

    threads = [threading.Thread(target=work, args=(name,)) for name in totals]
    ticks = 0
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        ticks += 1
    assert set(totals.values()) == {2000}
    assert ticks > 1000

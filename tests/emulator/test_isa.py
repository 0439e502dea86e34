"""Every class of instruction, in the interpreter, the JIT and the kernel, against RFC 9669.

The expected values are in ``isa_cases``, by hand. Operands come from the packet and results go into
it, so that no verifier or compiler can work them out before.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence

import pytest

from bpfchain.emulator.interpreter import EmulatorMissingError, Machine, Packets, native
from bpfchain.emulator.jit import JitMachine
from bpfchain.emulator.link import Image, LinkedObject
from bpfchain.loader.programs import VerifierError, load_raw
from bpfchain.loader.uapi import ProgType
from emulator import isa_cases as cases
from emulator.assembly import EXIT, insn, wide

pytestmark = pytest.mark.filterwarnings("error")
PACKET = 64
OUT = 16
"""Offset of the results in the packet."""
X = 8
"""In an opcode: the source is a register."""
# r7 = data, if it has 64 bytes; r0 and r1 are its first two words
FRONT = (
    insn(0x61, 7, 1, 0) + insn(0x61, 3, 1, 4) + insn(0xBF, 4, 7) + insn(0x07, 4, imm=PACKET)
    + insn(0xBD, 4, 3, 2) + insn(0xB7, 0, imm=0) + EXIT + insn(0x79, 0, 7, 0) + insn(0x79, 1, 7, 8)
)  # fmt: skip
# the results are r0 (and r1, r2): into the packet
BACK = insn(0x7B, 7, 0, OUT) + insn(0xB7, 0, imm=2) + EXIT
BACK3 = insn(0x7B, 7, 1, OUT + 8) + insn(0x7B, 7, 2, OUT + 16) + BACK
WORD = struct.Struct("<Q")

Program = tuple[bytes, Sequence[tuple[int, int]]]
"""Instructions between ``FRONT`` and ``BACK``, and the operands that it runs on."""


@pytest.fixture(autouse=True)
def built() -> None:
    """What is tested here needs the native part."""
    try:
        native()
    except EmulatorMissingError as error:
        pytest.skip(f"{error} (unset BPFCHAIN_NO_NATIVE, run tools/setup.sh test)")


def packet(a: int, b: int) -> bytes:
    return struct.pack("<2Q", a, b).ljust(PACKET, b"\xaa")


def functions(code: bytes) -> tuple[int, ...]:
    """0, and the targets of local calls."""
    found = {0}
    for pc in range(len(code) // 8):
        if code[8 * pc] == 0x85 and code[8 * pc + 1] == 0x10:
            found.add(pc + 1 + struct.unpack_from("<i", code, 8 * pc + 4)[0])
    return tuple(sorted(found))


def run(engine: str, programs: Mapping[str, Program], back: bytes = BACK) -> dict[str, list[bytes]]:
    """Name -> the packets after."""
    if engine == "kernel":
        return dict(_in_kernel(programs, back))
    codes = {name: FRONT + body + back for name, (body, _) in programs.items()}
    images = {
        name: Image(name, "xdp", code, (), functions(code), (name,) * len(functions(code)),
                    tuple((pc, "xdp", pc) for pc in functions(code)))
        for name, code in codes.items()
    }  # fmt: skip
    kind = {"ubpf": Machine, "ubpf-jit": JitMachine}[engine]
    found = {}
    with kind([LinkedObject(images, ())], context="xdp") as machine:
        for name, (_, operands) in programs.items():
            batch = machine.run(machine.program(0, name), Packets([packet(*o) for o in operands]))
            assert batch.faults == [], (name, batch.faults)
            verdicts = {value for (value,) in struct.iter_unpack("<Q", batch.verdicts)}
            assert verdicts == {2}, name
            found[name] = [batch.packet(number) for number in range(len(operands))]
    return found


def _in_kernel(programs: Mapping[str, Program], back: bytes) -> Iterator[tuple[str, list[bytes]]]:
    for name, (body, operands) in programs.items():
        with load_raw(ProgType.XDP, FRONT + body + back) as program:
            runs = [program.test_run(packet(*o)) for o in operands]
        assert {done.retval for done in runs} == {2}, name
        yield name, [done.data_out for done in runs]


def words(data: bytes, count: int = 1) -> tuple[int, ...]:
    return struct.unpack_from(f"<{count}Q", data, OUT)


def check(engine: str, programs: Mapping[str, Program], right: Mapping[str, Sequence[int]]) -> int:
    """Every program's r0 for every pair of operands. Returns how many were compared."""
    found = run(engine, programs)
    wrong = [
        f"{name} of {a:#x}, {b:#x}: {words(data)[0]:#x}, should be {value:#x}"
        for name, (_, operands) in programs.items()
        for (a, b), data, value in zip(operands, found[name], right[name], strict=True)
        if words(data)[0] != value
    ]
    assert not wrong, "\n".join(wrong)
    return sum(map(len, right.values()))


ENGINES = pytest.mark.parametrize("engine", ["ubpf", "ubpf-jit", "kernel"])


def fits(value: int) -> int | None:
    """The signed 32-bit number that sign-extends to ``value``."""
    signed = value - (1 << 64) if value >> 63 else value
    return signed if -(1 << 31) <= signed < 1 << 31 else None


@ENGINES
@pytest.mark.parametrize("width", [64, 32])
def test_arithmetic(engine: str, width: int, kernel: None) -> None:
    programs: dict[str, Program] = {}
    right: dict[str, list[int]] = {}
    klass = 0x07 if width == 64 else 0x04
    for name, rows in cases.ALU.items():
        code, off = cases.OPS[name]
        programs[name] = insn(klass | code | X, 0, 1, off), [(row[0], row[1]) for row in rows]
        right[name] = [row[2 if width == 64 else 3] for row in rows]
        for number, row in enumerate(rows):
            imm = fits(row[1])
            if imm is None or (code in (0x30, 0x90) and imm == 0):
                continue  # a division by the constant 0 is refused by every verifier
            if code in (0x60, 0x70, 0xC0) and not 0 <= imm < width:
                continue
            programs[f"{name} {number} imm {imm}"] = (
                insn(klass | code, 0, 0, off, imm),
                [(row[0], 0)],
            )
            right[f"{name} {number} imm {imm}"] = [row[2 if width == 64 else 3]]
    assert check(engine, programs, right) > 150


@ENGINES
def test_one_operand(engine: str, kernel: None) -> None:
    programs: dict[str, Program] = {}
    right: dict[str, list[int]] = {}
    for width, klass in ((64, 0x07), (32, 0x04)):
        column = 1 if width == 64 else 2
        programs[f"neg{width}"] = insn(klass | 0x80, 0), [(row[0], 0) for row in cases.NEGATED]
        right[f"neg{width}"] = [row[column] for row in cases.NEGATED]
        for bits, rows in cases.EXTENDED.items():
            if bits == width:
                continue
            name = f"movsx{bits}{width}"
            programs[name] = insn(klass | 0xB8, 0, 1, bits), [(0x55, row[0]) for row in rows]
            right[name] = [row[column] or 0 for row in rows]
    for (op, bits), pairs in cases.SWAPS.items():
        name = f"swap {op:#x} {bits}"
        programs[name] = insn(op, 0, imm=bits), [(before, 0) for before, _ in pairs]
        right[name] = [after for _, after in pairs]
    assert check(engine, programs, right) > 40


@ENGINES
@pytest.mark.parametrize("width", [64, 32])
def test_conditions(engine: str, width: int, kernel: None) -> None:
    programs: dict[str, Program] = {}
    right: dict[str, list[int]] = {}
    klass = 0x05 if width == 64 else 0x06
    over = insn(0xB7, 0, imm=0) + insn(0x05, off=1) + insn(0xB7, 0, imm=1)
    for name, columns in cases.JUMPS.items():
        taken = [int(digit) for digit in columns[0 if width == 64 else 1]]
        jump = klass | cases.CONDITIONS[name]
        programs[name] = insn(jump | X, 0, 1, 2) + over, cases.PAIRS
        right[name] = taken
        for (a, b), value in zip(cases.PAIRS, taken, strict=True):
            imm = fits(b)
            if imm is not None:
                one = f"{name} {a:#x} imm {imm}"
                programs[one] = insn(jump, 0, 0, 2, imm) + over, [(a, 0)]
                right[one] = [value]
    assert check(engine, programs, right) > 200


@ENGINES
def test_ways_of_control(engine: str, kernel: None) -> None:
    """ja forward and back, gotol both ways, calls: arguments, the result, saved registers, exits."""
    # what is jumped over must be reachable: if r1 == 777 goto +1
    over = insn(0xB7, 0, imm=1) + insn(0x15, 1, 0, 1, 777)
    both = [(0, 0), (0, 777)]
    programs: dict[str, Program] = {
        "ja": (over + insn(0x05, off=1) + insn(0xB7, 0, imm=9), both),
        "gotol": (over + insn(0x06, imm=1) + insn(0xB7, 0, imm=9), both),
        # while (r0 < 10) r0++; by a jump back
        "back": (insn(0x35, 0, 0, 2, 10) + insn(0x07, 0, imm=1) + insn(0x05, off=-3), [(3, 0), (12, 0)]),
        "back32": (insn(0x35, 0, 0, 2, 10) + insn(0x07, 0, imm=1) + insn(0x06, imm=-3), [(3, 0)]),
        "lddw": (wide(0, 0, 0x9ABC_DEF0, 0x1234_5678), [(0, 0)]),
        "jump over lddw": (
            over + insn(0x05, off=2) + wide(0, 0, 1, 1) + insn(0x07, 0, imm=1), both,
        ),
    }  # fmt: skip
    right = {"ja": [1, 9], "gotol": [1, 9], "back": [10, 12], "back32": [10], "lddw": [cases.BIG],
             "jump over lddw": [2, 0x1_0000_0002]}  # fmt: skip
    assert check(engine, programs, right) == 10


@ENGINES
def test_local_calls(engine: str, kernel: None) -> None:
    """The callee clobbers r6 to r9 and its own stack; the caller's are as before."""
    body = (
        insn(0xB7, 6, imm=60) + insn(0xB7, 8, imm=80) + insn(0xB7, 9, imm=90)
        + insn(0x7A, 10, off=-8, imm=1000)
        + insn(0xBF, 1, 0) + insn(0xB7, 2, imm=2) + insn(0xB7, 3, imm=3) + insn(0xB7, 4, imm=4)
        + insn(0xB7, 5, imm=5)
    )  # fmt: skip
    # r0 = callee(packet word, 2, 3, 4, 5) + r6 + r8 + r9 + the stack slot
    after = (
        insn(0x0F, 0, 6) + insn(0x0F, 0, 8) + insn(0x0F, 0, 9) + insn(0x79, 1, 10, -8)
        + insn(0x0F, 0, 1)
    )  # fmt: skip
    callee = (
        insn(0xBF, 0, 1) + insn(0x0F, 0, 2) + insn(0x0F, 0, 3) + insn(0x0F, 0, 4) + insn(0x0F, 0, 5)
        + insn(0x7A, 10, off=-8, imm=7) + insn(0xB7, 6, imm=0) + insn(0xB7, 7, imm=0)
        + insn(0xB7, 8, imm=0) + insn(0xB7, 9, imm=0) + insn(0x25, 0, off=1, imm=500) + EXIT
        + insn(0x27, 0, imm=2) + EXIT
    )  # fmt: skip
    call = insn(0x85, src=1, imm=(len(after) + len(BACK)) // 8)
    programs: dict[str, Program] = {"call": (body + call + after, [(100, 0), (1000, 0)])}
    found = run(engine, programs, BACK + callee)
    assert [words(data)[0] for data in found["call"]] == [114 + 1230, 2 * 1014 + 1230]


@ENGINES
def test_loads_and_stores(engine: str, kernel: None) -> None:
    value = int.from_bytes(cases.LOADED, "little")
    programs: dict[str, Program] = {}
    right: dict[str, list[int]] = {}
    for (name, op, offset), result in cases.LOADS.items():
        programs[f"ldx{name}+{offset}"] = insn(op, 0, 7, offset), [(value, 0)]
        right[f"ldx{name}+{offset}"] = [result]
        # from the stack, by a negative offset
        programs[f"ldx{name}-{offset}"] = (
            insn(0x7B, 10, 0, -8) + insn(op, 0, 10, offset - 8), [(value, 0)]
        )  # fmt: skip
        right[f"ldx{name}-{offset}"] = [result]
    for (op, stored), after in cases.STORES.items():
        store = insn(op, 7, 1, 24) if op & 1 else insn(op, 7, off=24, imm=stored)
        programs[f"{op:#x} {stored:#x}"] = store + insn(0x79, 0, 7, 24), [(0, cases.BIG)]
        right[f"{op:#x} {stored:#x}"] = [int.from_bytes(bytes.fromhex(after), "little")]
    assert check(engine, programs, right) == 2 * len(cases.LOADS) + len(cases.STORES)


@ENGINES
@pytest.mark.parametrize("width", [64, 32])
def test_atomics(engine: str, width: int, kernel: None) -> None:
    """On the stack, where the kernel allows them; r1 is the source, r2 the memory after."""
    op = 0xDB if width == 64 else 0xC3
    around = (
        wide(3, 0, cases.BIG & cases.M32, cases.BIG >> 32) + insn(0x7B, 10, 3, -8),
        insn(0x79, 2, 10, -8),
    )
    programs: dict[str, Program] = {
        name: (around[0] + insn(op, 10, 1, -8, imm) + around[1], [(before, source)])
        for name, (imm, before, source, _, _) in cases.ATOMICS.items()
    }
    found = run(engine, programs, BACK3)
    for name, (_, _, _, of64, of32) in cases.ATOMICS.items():
        memory, source, r0 = of64 if width == 64 else of32
        got = words(found[name][0], 3)
        assert got == (r0, source, memory), f"{name}: {[hex(word) for word in got]}"


@ENGINES
def test_ordered_loads_and_stores(engine: str, kernel: None) -> None:
    """load_acquire and store_release (kernel 6.15) of all sizes, on the stack."""
    programs: dict[str, Program] = {}
    right: dict[str, list[int]] = {}
    sizes = {1: 0xD3, 2: 0xCB, 4: 0xC3, 8: 0xDB}
    for size, op in sizes.items():
        ones = insn(0x7A, 10, off=-8, imm=-1)
        programs[f"load {size}"] = (
            insn(0x7B, 10, 0, -8) + insn(0xB7, 2, imm=-1) + insn(op, 2, 10, -8, 0x100)
            + insn(0xBF, 0, 2), [(cases.BIG, 0)],
        )  # fmt: skip
        right[f"load {size}"] = [cases.BIG & (1 << 8 * size) - 1]
        programs[f"store {size}"] = (
            ones + insn(op, 10, 1, -8, 0x110) + insn(0x79, 0, 10, -8),
            [(0, cases.BIG)],
        )
        high = cases.M64 >> 8 * size << 8 * size if size < 8 else 0
        right[f"store {size}"] = [high | cases.BIG & (1 << 8 * size) - 1]
    if engine == "kernel":
        try:
            load_raw(ProgType.XDP, FRONT + programs["load 8"][0] + BACK).close()
        except VerifierError as error:
            pytest.skip(f"this kernel has no load_acquire: {error}")
    assert check(engine, programs, right) == 8


@pytest.mark.parametrize(
    ("code", "what"),
    [
        (insn(0x8D, 2), "callx"),
        (insn(0xE5), "may_goto"),
        (insn(0xBF, 0, 1, 1), "addr_space_cast"),
        (insn(0xD3, 10, 1, -8, 0), "8-bit atomic"),
        (insn(0xCB, 10, 1, -8, 0), "16-bit atomic"),
    ],
)
def test_what_ubpf_lacks_is_named(code: bytes, what: str) -> None:
    world = native().World()
    with pytest.raises(ValueError, match=what):
        world.add_program("prog", "xdp", insn(0xB7, 0) + code + EXIT, [], [0])

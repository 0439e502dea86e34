"""What is known at the exits of a function, and how far down its stack it can reach.

The programs are written by hand; the property at the end runs generated ones in a tiny interpreter.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfchain.transform.errors import RefusedError
from bpfchain.transform.flow import Flow, analyse, control_flow
from bpfchain.transform.isa import Insn
from support.tinybpf import CONTEXT, StuckError, Tiny

# an analysis that does not end must fail, not hang
pytestmark = pytest.mark.timeout(60)

EXIT = Insn(0x95)
LOOP_HELPER, LOOKUP, TAIL = 181, 1, 12


def mov(dst: int, imm: int) -> Insn:
    return Insn(0xB7, dst, imm=imm)


def mov32(dst: int, imm: int) -> Insn:
    return Insn(0xB4, dst, imm=imm)


def copy(dst: int, src: int) -> Insn:
    return Insn(0xBF, dst, src)


def add(dst: int, imm: int) -> Insn:
    return Insn(0x07, dst, imm=imm)


def add_reg(dst: int, src: int) -> Insn:
    return Insn(0x0F, dst, src)


def load(dst: int, src: int, off: int = 0) -> Insn:
    return Insn(0x79, dst, src, off)


def store(dst: int, off: int, src: int) -> Insn:
    return Insn(0x7B, dst, src, off)


def jeq(dst: int, imm: int, off: int) -> Insn:
    return Insn(0x15, dst, 0, off, imm)


def ja(off: int) -> Insn:
    return Insn(0x05, offset=off)


def call(helper: int) -> Insn:
    return Insn(0x85, imm=helper)


CALL_FUNCTION = Insn(0x85, src=1, imm=7)


def flow(
    *insns: Insn, relocated: dict[int, bool] | None = None, adjusted: set[int] | None = None
) -> Flow:
    return analyse(
        list(insns), what="p", relocated=relocated or {}, adjusted=frozenset(adjusted or ())
    )


def codes(found: Flow) -> list[tuple[int, int | None]]:
    return [(known.slot, known.code) for known in found.exits]


# -- constants ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("insn", "code"),
    [
        (mov(0, 2), 2), (mov(0, -1), -1), (mov32(0, -1), -1), (mov32(0, 7), 7),
        (mov(0, -(1 << 31)), -(1 << 31)),
    ],
)  # fmt: skip
def test_a_constant_is_known_as_its_low_half_signed(insn: Insn, code: int) -> None:
    assert codes(flow(insn, EXIT)) == [(1, code)]


def test_a_wide_constant_counts_by_its_low_half() -> None:
    assert codes(flow(Insn(0x18, imm=2), Insn(0, imm=1), EXIT)) == [(2, 2)]
    assert codes(flow(Insn(0x18, imm=-2), Insn(0, imm=0), EXIT)) == [(2, -2)]


def test_r0_on_entry_is_not_known() -> None:
    assert codes(flow(EXIT)) == [(0, None)]


def test_equal_constants_survive_a_merge_and_others_do_not() -> None:
    for one, other, expected in ((2, 2, 2), (2, 1, None)):
        found = flow(jeq(1, 0, 2), mov(0, one), ja(1), mov(0, other), EXIT)
        assert codes(found) == [(4, expected)]


def test_every_predecessor_counts_a_back_jump_too() -> None:
    """The loop comes back with another r0, found only after the exit was seen once."""
    found = flow(mov(0, 2), jeq(1, 0, 3), mov(0, 1), Insn(0x17, 1, imm=1), ja(-4), EXIT)
    assert codes(found) == [(5, None)]


def test_several_exits_each_with_its_own() -> None:
    found = flow(jeq(1, 0, 2), mov(0, 1), EXIT, jeq(1, 1, 2), mov(0, 2), EXIT, call(7), EXIT)
    assert codes(found) == [(2, 1), (5, 2), (7, None)]


def test_unreachable_exits_are_left_out() -> None:
    assert codes(flow(mov(0, 1), ja(2), mov(0, 3), EXIT, EXIT)) == [(4, 1)]


def test_copies_carry_constants() -> None:
    assert codes(flow(mov(6, 3), copy(0, 6), EXIT)) == [(2, 3)]
    # w0 = w6 of a wide constant: the low half
    wide = (Insn(0x18, 6, imm=5), Insn(0, imm=9))
    assert codes(flow(*wide, Insn(0xBC, 0, 6), EXIT)) == [(3, 5)]


@pytest.mark.parametrize(
    "last",
    [
        Insn(0x85, imm=7), Insn(0x85, src=1, imm=3), Insn(0x85, src=2, imm=3),
        Insn(0x20), Insn(0x40, src=6), Insn(0x79, 0, 1), Insn(0x61, 0, 10, -4),
        Insn(0x87), Insn(0xDC, imm=16), Insn(0xD7, imm=16), Insn(0x27, imm=3), Insn(0x67, imm=1),
        Insn(0xBF, 0, 0, 8), Insn(0xBF, 0, 6), Insn(0x0F, 0, 6),
        Insn(0xDB, 1, 0, 0, 1), Insn(0xDB, 1, 6, 0, 0xF1),
    ],
    ids=lambda insn: f"{insn.opcode:#x}",
)  # fmt: skip
def test_what_changes_r0_makes_it_unknown(last: Insn) -> None:
    assert codes(flow(copy(6, 1), mov(0, 2), last, EXIT)) == [(3, None)]


def test_calls_keep_r6_to_r9() -> None:
    assert codes(flow(mov(9, 4), call(7), copy(0, 9), EXIT)) == [(3, 4)]
    assert codes(flow(mov(5, 4), call(7), copy(0, 5), EXIT)) == [(3, None)]


def test_core_and_relocated_immediates_are_not_known() -> None:
    """The loader puts another number there."""
    assert codes(flow(mov(0, 2), EXIT, adjusted={0})) == [(1, None)]
    assert codes(flow(mov32(0, 2), EXIT, adjusted={0})) == [(1, None)]
    wide = (Insn(0x18, imm=2), Insn(0))
    assert codes(flow(*wide, EXIT, adjusted={0})) == [(2, None)]
    assert codes(flow(*wide, EXIT, relocated={0: False})) == [(2, None)]
    assert codes(flow(Insn(0x18, src=1, imm=2), Insn(0), EXIT)) == [(2, None)]


# -- the context -------------------------------------------------------------------------------


def held(found: Flow) -> list[set[int]]:
    return [set(known.context) for known in found.exits]


def test_the_context_is_followed_through_copies() -> None:
    assert held(flow(EXIT)) == [{1}]
    assert held(flow(copy(6, 1), mov(1, 0), copy(7, 6), EXIT)) == [{6, 7}]
    assert held(flow(copy(6, 1), call(7), EXIT)) == [{6}]


def test_a_changed_context_is_none() -> None:
    assert held(flow(add(1, 4), EXIT)) == [set()]
    assert held(flow(add(1, 0), EXIT)) == [set()]
    assert held(flow(Insn(0xBC, 1, 1), EXIT)) == [set()]  # w1 = w1
    assert held(flow(Insn(0xBF, 6, 1, 8), mov(1, 0), EXIT)) == [set()]  # sign extension
    assert held(flow(load(1, 1), EXIT)) == [set()]


def test_the_context_must_be_there_on_every_path() -> None:
    assert held(flow(jeq(1, 0, 2), copy(6, 1), ja(1), mov(6, 0), EXIT)) == [{1}]
    assert held(flow(jeq(1, 0, 2), copy(6, 1), ja(1), copy(6, 1), EXIT)) == [{1, 6}]


def test_a_context_that_was_spilled_is_not_taken_for_one() -> None:
    """Nothing is claimed of memory: the slot may have been written otherwise."""
    found = flow(store(10, -8, 1), mov(1, 0), load(6, 10, -8), EXIT)
    assert held(found) == [set()]


def test_a_fetching_atomic_loses_its_source() -> None:
    assert held(flow(copy(6, 1), mov(1, 0), Insn(0xDB, 10, 6, -8, 0xE1), EXIT)) == [set()]


# -- the stack ---------------------------------------------------------------------------------


def lowest(*insns: Insn, **more: object) -> int | None:
    return flow(*insns, EXIT, **more).lowest  # type: ignore[arg-type]


def test_no_stack() -> None:
    assert lowest(mov(0, 0)) == 0


def test_direct_accesses() -> None:
    assert lowest(Insn(0x7A, 10, 0, -16), Insn(0x73, 10, 1, -24)) == -24
    assert lowest(Insn(0x71, 0, 10, -1)) == -1
    assert lowest(store(10, -512, 1)) == -512


def test_pointers_moved_by_constants() -> None:
    assert lowest(copy(2, 10), add(2, -40)) == -40
    assert lowest(copy(2, 10), Insn(0x17, 2, imm=40)) == -40
    assert lowest(copy(2, 10), add(2, -40), store(2, -8, 1)) == -48
    assert lowest(copy(2, 10), add(2, -40), add(2, 32), store(2, -8, 1)) == -40
    assert lowest(mov(3, -72), add_reg(3, 10)) == -72
    assert lowest(copy(2, 10), mov(3, -72), add_reg(2, 3)) == -72


def test_a_helper_uses_its_buffer_upwards() -> None:
    assert lowest(copy(2, 10), add(2, -32), mov(3, 32), call(LOOKUP)) == -32


@pytest.mark.parametrize(
    "use",
    [
        [copy(1, 10), add(1, -8), CALL_FUNCTION],
        [copy(3, 10), mov(2, 0), mov(1, 4), mov(4, 0), call(LOOP_HELPER)],
        [copy(2, 10), load(3, 1), add_reg(2, 3)],
        [copy(2, 10), load(3, 1), Insn(0x1F, 2, 3)],
        [load(3, 1), add_reg(3, 10)],
        [copy(2, 10), Insn(0x0C, 2, 3)],
        [copy(2, 10), add(2, -513)],
        [store(10, -520, 1)],
        [copy(2, 10), add(2, -500), store(2, -16, 1)],
    ],
    ids=["callee", "callback", "variable", "variable sub", "variable first", "32 bits", "deep", "direct",
         "both"],
)  # fmt: skip
def test_what_is_not_bounded(use: list[Insn]) -> None:
    found = flow(*use, EXIT)
    assert found.lowest is None
    assert found.unbounded_at is not None


def test_a_callee_that_gets_no_stack_pointer_is_harmless() -> None:
    assert lowest(store(10, -8, 1), mov(2, 0), CALL_FUNCTION) == -8


def test_a_kfunc_takes_a_buffer_but_may_call_back() -> None:
    kfunc = Insn(0x85, src=2, imm=100)
    assert lowest(copy(1, 10), add(1, -16), kfunc) == -16
    callback = (Insn(0x18, 2, 4), Insn(0))
    assert lowest(copy(1, 10), add(1, -16), *callback, kfunc) is None
    relocated = (Insn(0x18, 2), Insn(0))
    assert lowest(copy(1, 10), add(1, -16), *relocated, kfunc, relocated={2: True}) is None


def test_core_adjusted_offsets_are_not_bounded() -> None:
    assert lowest(store(10, -8, 1), adjusted={0}) is None
    assert lowest(copy(2, 10), add(2, -8), adjusted={1}) is None


def test_a_spilled_pointer_comes_back() -> None:
    spill = [copy(2, 10), add(2, -64), store(10, -8, 2), mov(2, 0), load(3, 10, -8)]
    assert lowest(*spill) == -64
    assert lowest(*spill, store(3, -8, 1)) == -72
    # through memory of whatever kind, and whatever was loaded first
    assert lowest(copy(2, 10), add(2, -64), store(10, -8, 2), load(3, 1), store(3, -16, 1)) == -80


def test_a_load_before_the_spill_in_a_loop() -> None:
    found = flow(
        load(3, 10, -8), store(3, -8, 1), copy(2, 10), add(2, -64), store(10, -8, 2), jeq(1, 0, 1),
        ja(-7), EXIT,
    )  # fmt: skip
    assert found.lowest == -72


def test_a_pointer_that_may_be_another_value_counts() -> None:
    assert lowest(mov(2, 0), jeq(1, 0, 2), copy(2, 10), add(2, -48), store(2, -8, 1)) == -56


def test_a_loop_that_sinks_a_pointer_is_not_bounded() -> None:
    assert flow(copy(2, 10), add(2, -8), store(2, 0, 1), jeq(1, 0, -3), EXIT).lowest is None
    assert flow(copy(2, 10), Insn(0x17, 2, imm=1), jeq(1, 0, -2), EXIT).lowest is None


def test_a_loop_that_raises_a_pointer_is() -> None:
    assert flow(copy(2, 10), add(2, -64), add(2, 8), jeq(1, 0, -2), EXIT).lowest == -64


def test_a_pointer_that_sinks_through_memory_ends_too() -> None:
    """A spilled stack pointer, and a loaded number less one that is spilled: the analysis must end."""
    spill = [copy(2, 10), add(2, -64), store(10, -8, 2)]
    assert lowest(*spill, load(3, 1), add(3, -1), store(10, -16, 3)) is None
    assert lowest(store(10, -8, 10), load(1, 10, -8), add(1, -8), store(10, -8, 1)) is None


def test_registers_and_calls() -> None:
    found = flow(copy(6, 1), mov(0, 1), EXIT)
    assert found.registers >= {0, 1, 6}
    assert found.registers <= {0, 1, 6}
    assert not found.calls
    assert flow(call(5), EXIT).calls
    assert 8 in flow(Insn(0x18, 8), Insn(0), EXIT).registers
    assert 7 in flow(Insn(0x1D, 7, 1, 0), EXIT).registers
    # an LD_ABS has r6 for an implicit operand: a body with one is never patched inline
    assert 4 in flow(Insn(0x40, src=4), EXIT).registers


# -- control flow ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("insns", "message"),
    [
        ([mov(0, 1)], "p: control falls off the end behind instruction 0"),
        ([ja(5), EXIT], "p: instruction 0 leads to 6, outside the program"),
        ([ja(-2), EXIT], "p: instruction 0 leads to -1, outside the program"),
        ([ja(1), Insn(0x18), Insn(0), EXIT], "p: instruction 0 leads to 2, outside the program"),
        ([Insn(0x0D, 1), EXIT], "p: instruction 0 is an indirect jump: its targets are data"),
        ([EXIT, Insn(0x18)], None),
        ([jeq(1, 0, 0)], None),
        ([Insn(0x06, imm=1 << 30), EXIT], None),
        ([mov(11, 1), EXIT], None),
        ([copy(1, 15), EXIT], None),
        ([], None),
    ],
)
def test_what_no_verifier_takes_is_refused(insns: list[Insn], message: str | None) -> None:
    with pytest.raises(RefusedError) as caught:
        analyse(insns, what="p", relocated={})
    assert message is None or caught.value.message == message
    assert caught.value.message.startswith(("p: ", "instruction "))


def test_successors() -> None:
    insns = [jeq(1, 0, 2), Insn(0x18, 1), Insn(0), Insn(0x06, imm=0), EXIT]
    assert control_flow(insns, what="p") == [(1, 3), (3,), (), (4,), ()]
    assert control_flow([Insn(0xE5, offset=1), EXIT, EXIT], what="p") == [
        (1, 2),
        (),
        (),
    ]  # may_goto


# -- generated programs ------------------------------------------------------------------------

_scalars = st.sampled_from((0, 3, 6, 7))
_imms = st.one_of(st.integers(-4, 4), st.sampled_from((-(1 << 31), (1 << 31) - 1)))
_OPS = (0x07, 0x04, 0x17, 0x14, 0x57, 0x47, 0xA7, 0x27, 0x77, 0x67, 0xC7)
_insns = st.one_of(
    st.builds(mov, _scalars, _imms),
    st.builds(mov32, _scalars, _imms),
    st.builds(copy, _scalars, _scalars),
    st.builds(Insn, st.just(0xBC), _scalars, _scalars),
    st.builds(lambda op, dst, imm: Insn(op, dst, imm=imm & 31 if op >= 0x60 and op != 0xA7 else imm),
              st.sampled_from(_OPS), _scalars, _imms),
    st.builds(lambda dst, src, off: Insn(0x7B, dst, src, off), st.just(10), _scalars, st.integers(-8, -1).map(lambda n: 8 * n)),
    st.builds(lambda dst, off: Insn(0x79, dst, 10, off), _scalars, st.integers(-8, -1).map(lambda n: 8 * n)),
    # r8, r9 are pointers into the stack, moved by constants, spilled and filled
    st.builds(copy, st.sampled_from((8, 9)), st.just(10)),
    st.builds(copy, st.just(8), st.just(9)),
    st.builds(add, st.sampled_from((8, 9)), st.integers(-6, 2).map(lambda n: 8 * n)),
    st.builds(lambda dst, src, off: Insn(0x7B, dst, src, off), st.sampled_from((8, 9)), _scalars, st.sampled_from((-8, 0, 8))),
    st.builds(lambda src, off: Insn(0x7B, 10, src, off), st.sampled_from((8, 9)), st.sampled_from((-72, -80))),
    st.builds(lambda dst, off: Insn(0x79, dst, 10, off), st.sampled_from((8, 9)), st.sampled_from((-72, -80))),
    st.builds(lambda op, dst, imm, off: Insn(op, dst, 0, off, imm), st.sampled_from((0x15, 0x55, 0x25, 0xA5, 0x16, 0x65)),
              _scalars, _imms, st.integers(-6, 6)),
    st.builds(ja, st.integers(0, 4)),
    st.just(EXIT),
    st.builds(call, st.just(LOOKUP)),
)  # fmt: skip


@st.composite
def programs(draw: st.DrawFn) -> list[Insn]:
    body = draw(st.lists(_insns, min_size=2, max_size=24))
    front = [mov(r, 0) for r in (0, 3, 6, 7)] + [
        copy(8, 10),
        copy(9, 10),
        store(10, -72, 10),
        store(10, -80, 10),
    ]
    insns = [*front, *body, EXIT]
    for slot, insn in enumerate(insns):
        if insn.is_jump:  # inside the program, and not among the first instructions
            goal = min(max(insn.target(slot), len(front)), len(insns) - 1)
            insns[slot] = insn._replace(offset=goal - slot - 1)
    return insns


@settings(max_examples=1500, deadline=None)
@given(programs(), st.integers(0, (1 << 64) - 1))
def test_claims_hold_in_every_run(insns: list[Insn], answer: int) -> None:
    """A constant at an exit is what the run returns there; no access lies below ``lowest``; a
    register that is said to hold the context does."""
    found = flow(*insns)

    def helper(number: int, machine: Tiny, slot: int) -> int:
        for i in range(1, 6):
            machine.registers[i] = 0xBAD
        return answer

    machine = Tiny(insns, helper, other_load=lambda address, size: 0, steps=400)
    machine.registers[1] = CONTEXT
    try:
        result = machine.run()
    except StuckError:
        result = -1  # a loop: what it touched so far counts all the same
    if found.lowest is not None:
        low = min((offset for offset, _ in machine.touched), default=0)
        assert low >= found.lowest, f"touched r10{low}, claimed nothing below {found.lowest}"
    if machine.exit_slot < 0:
        return
    known = {item.slot: item for item in found.exits}
    assert machine.exit_slot in known, "an exit was said to be unreachable"
    item = known[machine.exit_slot]
    if item.code is not None:
        assert (result - item.code) % (1 << 32) == 0
    assert all(machine.registers[register] == CONTEXT for register in item.context)

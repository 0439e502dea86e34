"""The added code, run by a tiny interpreter for every code that can tell two cases apart, beside the
reference semantics (DESIGN section 2).

Nothing here looks at how the code is made: only what is called, with what, and what is returned.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpfchain.transform.codes import CODE_MAX, CODE_MIN, CodeSet
from bpfchain.transform.emit import Fragment
from bpfchain.transform.epilogue import Keep, build_epilogue, needs_epilogue
from bpfchain.transform.link import Link
from bpfchain.transform.policy import HOOKS, Hook, hook_named
from bpfchain.verify.reference import step
from support.tinybpf import CONTEXT, FRAME, Tiny

_M32 = (1 << 32) - 1
DIRTY = (0, _M32, 0xDEAD_BEEF, 1)
"""Upper halves of r0: the kernel does not look at them."""
KEEPS = (
    Keep(register=6), Keep(register=8), Keep(register=9, preamble=False), Keep(register=1),
    Keep(register=2), Keep(register=5), Keep(offset=-8), Keep(offset=-512),
)  # fmt: skip
_SLOTS, _SAVED, _VALUE = 0x5000_0000_0000, 0x5100_0000_0000, 0x5200_0000_0000
_FLAG = 1 << 32
# what clang -mcpu=v1 may emit: no JMP32 class, none of the four less-than jumps of v2
V1 = frozenset(
    [op | source | klass for op in range(0x00, 0xD0, 0x10) for source in (0, 8) for klass in (4, 7)]
    + [op | source | 5 for op in (0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70) for source in (0, 8)]
    + [0x05, 0x85, 0x95, 0x18, 0x00]
    + [base | size for base in (0x61, 0x62, 0x63) for size in (0x00, 0x08, 0x10, 0x18)]
)
V3 = V1 | {op | source | 6 for op in range(0x10, 0xE0, 0x10) for source in (0, 8)}


@dataclass(frozen=True, slots=True)
class Case:
    """One fragment to be made and run."""

    link: Link
    state: int | None
    keep: Keep | None
    jmp32: bool
    exits: tuple[int | None, ...]


def _codes(link: Link) -> list[int]:
    edges = {0, CODE_MIN, CODE_MAX, -1, 1, *link.redirect}
    for low, high in (*link.success.ranges, *link.redirect.ranges, *link.hook.legal.ranges):
        edges |= {low, high}
    near = {edge + d for edge in edges for d in (-1, 0, 1)}
    return sorted(code for code in near if CODE_MIN <= code <= CODE_MAX)


def _state_number(hook: Hook, code: int | None) -> int:
    if code is None:
        return 0
    (number,) = [
        known.state for known in hook.codes if known.value == code and known.state is not None
    ]
    return number


def _low(value: int) -> int:
    value &= _M32
    return value - (1 << 32) if value >> 31 else value


@dataclass(slots=True)
class Seen:
    """What one run of a fragment did."""

    result: int
    slots: list[int]
    saved: int
    sites: list[tuple[int, int]]
    visited: set[int]


def _run(case: Case, made: Fragment, start: int, r0: int, saved: int, lookup: bool = True) -> Seen:
    """Run with all else in registers and memory being rubbish. Tail calls fail, as where no link
    follows, and leave r0 to r5 dead."""
    slots: list[int] = []
    sites: list[tuple[int, int]] = []

    def call(helper: int, machine: Tiny, at: int) -> int:
        r = machine.registers
        if helper == 12:
            assert r[1] == CONTEXT, f"the next link would get {r[1]:#x} as its context"
            assert r[2] == _SLOTS, "the tail call is not into the slots map"
            slots.append(r[3] & _M32)  # the kernel takes the low half
            sites.append((at, r[3] & _M32))
            result = 0xBAD0_0000_0000_0001
        else:
            assert helper == 1, f"helper {helper}"
            assert r[1] == _SAVED, "the lookup is not in the map of the saved code"
            assert machine.load(r[2], 4) == 0, "the key is not 0"
            result = _VALUE if lookup else 0
        for i in range(1, 6):
            r[i] = 0xBAD0_0000_0000_0000 + i
        return result

    numbers = {"bpfchain_slots": _SLOTS, "bpfchain_saved": _SAVED}
    machine = Tiny(
        made.insns, call, maps={ref.slot: numbers[ref.target] for ref in made.references}
    )
    for i in range(8):
        machine.memory[_VALUE + i] = saved >> 8 * i & 0xFF
    machine.other_load = lambda address, size: int.from_bytes(
        bytes(machine.memory[address + i] for i in range(size)), "little"
    )
    keep = case.keep
    if keep is not None and keep.register is not None:
        machine.registers[keep.register] = CONTEXT
    elif keep is not None and keep.offset is not None:
        machine.store(FRAME + keep.offset, 8, CONTEXT)
    machine.registers[0] = r0
    result = machine.run(start)
    value = int.from_bytes(bytes(machine.memory[_VALUE + i] for i in range(8)), "little")
    return Seen(result, slots, value, sites, machine.visited)


def check(case: Case) -> None:
    """All codes through all exits of one fragment, in slots mode."""
    link, state, hook = case.link, case.state, case.link.hook
    made, entry = build_epilogue(
        link, state, keep=case.keep, exits=case.exits, code_register=7, jmp32=case.jmp32
    )
    visited: set[int] = set()
    by_index: dict[int, set[int]] = defaultdict(set)
    reference: Any = (link.success, link.redirect)
    for exit_code in case.exits:
        codes = _codes(link) if exit_code is None else [exit_code]
        for code in codes:
            goes_on, then = step(reference, state, code)
            for dirt in DIRTY:
                seen = _run(case, made, entry(exit_code), dirt << 32 | code & _M32, 0)
                if not goes_on:
                    assert seen.slots == []
                    assert _low(seen.result) == code
                    continue
                missing = code if then is None else then
                assert _low(seen.result) == missing, f"code {code}, next link missing"
                if link.ends:
                    assert seen.slots == []
                else:
                    slot = _state_number(hook, then) * 33 + link.index + 1
                    assert seen.slots == [slot], f"code {code} in state {state}"
                    if hook.returns is not None:  # the verifier must see a bounded r0
                        assert seen.result in (missing, missing & _M32) or seen.result >> 32 == dirt
                for site, index in seen.sites:
                    by_index[index].add(site)
                visited |= seen.visited
            visited |= _run(case, made, entry(exit_code), code & _M32, 0).visited
    assert visited == set(range(len(made.insns))), "instructions that nothing reaches"
    _check_calls(made, by_index)
    assert {insn.opcode for insn in made.insns} <= (V3 if case.jmp32 else V1)


def _check_calls(made: Fragment, by_index: dict[int, set[int]]) -> None:
    """Each index has one call site and each site one index: else the JIT makes a retpoline of it."""
    calls = [slot for slot, insn in enumerate(made.insns) if insn.opcode == 0x85 and insn.imm == 12]
    assert sorted(site for sites in by_index.values() for site in sites) == calls
    assert all(len(sites) == 1 for sites in by_index.values())


def _reachable(made: Fragment, start: int) -> set[int]:
    """Slots to which control could go if any conditional jump may fall either way."""
    seen: set[int] = set()
    work = [start]
    while work:
        slot = work.pop()
        if slot in seen:
            continue
        seen.add(slot)
        insn = made.insns[slot]
        if insn.wide:
            seen.add(slot + 1)
        if insn.is_jump:
            work.append(insn.target(slot))
        if insn.opcode != 0x95 and not insn.is_unconditional:
            work.append(slot + (2 if insn.wide else 1))
    return seen


def _links(hook: Hook) -> Iterator[Link]:
    """S and R that DESIGN section 2 tells apart, at both ends of the index range."""
    legal = CodeSet((hook.returns,)) if hook.returns is not None else hook.legal
    numbered = [c.value for c in hook.codes if c.state is not None and c.value in legal]
    first, last = numbered[0], numbered[-1]
    successes = {hook.success, CodeSet.any(), CodeSet(), CodeSet.excluding(numbered[0])}
    successes |= {CodeSet.of(numbered[0]), CodeSet.of(first, last)}
    redirects = {CodeSet(), CodeSet.of(first), CodeSet.of(last), CodeSet.of(*numbered)}
    for success in sorted(successes, key=lambda s: s.ranges):
        if any(code not in legal for low, high in success.ranges for code in (low, high)) and len(
            success
        ) <= len(legal):
            continue
        for redirect in sorted(redirects, key=lambda s: s.ranges):
            for index, end in ((0, False), (7, False), (31, False), (32, False), (5, True)):
                yield Link(
                    hook=hook, index=index, success=success, redirect=redirect,
                    saved=tuple(numbered) if index else (), last=end,
                )  # fmt: skip


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_every_hook(hook: Hook) -> None:
    ran = 0
    for number, link in enumerate(_links(hook)):
        for state in link.states:
            if not needs_epilogue(link, state, None):
                continue
            keep = None if link.ends else KEEPS[number % len(KEEPS)]
            check(Case(link, state, keep, bool(number % 2), (None,)))
            ran += 1
    assert ran >= 15, "almost nothing was tried"


def _known_exits(link: Link, state: int | None) -> list[int]:
    return [code for code in _codes(link) if needs_epilogue(link, state, code)]


def test_exits_whose_code_is_known() -> None:
    """They enter behind the compares, and nothing that only other codes need is there."""
    ran = 0
    for hook in (hook_named("xdp"), hook_named("tc"), hook_named("cgroup_skb/egress")):
        for link in _links(hook):
            for state in link.states:
                known = _known_exits(link, state)
                for exits in ([*known[:1]], [*known[-1:]], known, [None, *known]):
                    if exits and (None not in exits or needs_epilogue(link, state, None)):
                        keep = None if link.ends else KEEPS[ran % len(KEEPS)]
                        check(Case(link, state, keep, False, tuple(exits)))
                        ran += 1
    assert ran > 400


codes = st.one_of(
    st.integers(-3, 12), st.sampled_from((CODE_MIN, CODE_MAX)), st.integers(CODE_MIN, CODE_MAX)
)
sets = st.one_of(
    st.lists(codes, max_size=4).map(lambda values: CodeSet.of(*values)),
    st.lists(codes, max_size=4).map(lambda values: CodeSet.excluding(*values)),
    st.lists(st.tuples(codes, codes).map(lambda p: (min(p), max(p))), max_size=4).map(
        CodeSet.from_ranges
    ),
    st.just(CodeSet.any()),
)


@settings(max_examples=400, deadline=None)
@given(
    data=st.data(), success=sets, jmp32=st.booleans(), last=st.booleans(), index=st.integers(0, 32)
)
def test_any_codes(
    data: st.DataObject, success: CodeSet, jmp32: bool, last: bool, index: int
) -> None:
    """S of any shape, on hooks whose codes are all of 32 bits."""
    hook = data.draw(st.sampled_from([h for h in HOOKS if h.legal == CodeSet.any()]))
    numbered = [code.value for code in hook.codes if code.state is not None]
    redirect = CodeSet.of(*data.draw(st.sets(st.sampled_from(numbered))))
    saved = tuple(sorted(data.draw(st.sets(st.sampled_from(numbered))))) if index else ()
    link = Link(hook=hook, index=index, success=success, redirect=redirect, saved=saved, last=last)
    state = data.draw(st.sampled_from(link.states))
    if not needs_epilogue(link, state, None):
        # nothing to add: then nothing may go on, and nothing may be changed
        reference: Any = (success, redirect)
        for code in _codes(link):
            goes_on, then = step(reference, state, code)
            assert not goes_on or (link.ends and then in (None, code))
        return
    known = _known_exits(link, state)
    exits = data.draw(st.sets(st.sampled_from([None, *known]), min_size=1))
    keep = None if link.ends else data.draw(st.sampled_from(KEEPS))
    ordered = tuple(sorted(exits, key=lambda code: (code is not None, code or 0)))
    check(Case(link, state, keep, jmp32, ordered))


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_map_mode(hook: Hook) -> None:
    """The thesis's way: the saved code is in a map, which an earlier run may have left dirty."""
    ran = 0
    for number, slots in enumerate(_links(hook)):
        link = Link(
            hook=hook, index=slots.index, success=slots.success, redirect=slots.redirect,
            mode="map", last=slots.last,
        )  # fmt: skip
        if needs_epilogue(link, None, None):
            keep = None if link.ends else KEEPS[number % len(KEEPS)]
            _check_map(Case(link, None, keep, bool(number % 2), (None,)))
            ran += 1
    assert ran >= 6


def _check_map(case: Case) -> None:
    link = case.link
    made, entry = build_epilogue(
        link, None, keep=case.keep, exits=(None,), code_register=6, jmp32=case.jmp32
    )
    visited: set[int] = set()
    by_index: dict[int, set[int]] = defaultdict(set)
    reference: Any = (link.success, link.redirect)
    legal = CodeSet((link.hook.returns,)) if link.hook.returns is not None else CodeSet.any()
    numbered = [c.value for c in link.hook.codes if c.state is not None and c.value in legal]
    for before in (None, *numbered):
        value = 0 if before is None else _FLAG | before & _M32
        # what lies there when the first link starts is an earlier run's
        state = None if link.index == 0 else before
        for code in _codes(link):
            goes_on, then = step(reference, state, code)
            for dirt in DIRTY:
                seen = _run(case, made, entry(None), dirt << 32 | code & _M32, value)
                visited |= seen.visited
                for site, index in seen.sites:
                    by_index[index].add(site)
                if not goes_on:
                    assert (seen.slots, _low(seen.result)) == ([], code)
                    continue
                assert _low(seen.result) == (code if then is None else then), (
                    f"{code} after {before}"
                )
                assert seen.slots == ([] if link.ends else [link.index + 1])
                if not link.ends:
                    assert seen.saved == (0 if then is None else _FLAG | then & _M32)
            visited |= _run(case, made, entry(None), code & _M32, value, lookup=False).visited
    # the code for "neither" is kept where S and R are every code: the verifier takes that, as a jump
    # could lead there
    assert visited | _reachable(made, entry(None)) == set(range(len(made.insns)))
    calls = [slot for slot, insn in enumerate(made.insns) if insn.opcode == 0x85 and insn.imm == 12]
    assert {site for sites in by_index.values() for site in sites} == set(calls)
    assert {insn.opcode for insn in made.insns} <= (V3 if case.jmp32 else V1)


def test_lookup_that_fails_changes_no_code() -> None:
    """The verifier makes the code look at the null that a lookup in an array cannot give."""
    link = Link(
        hook=hook_named("xdp"), index=3, success=CodeSet.of(2), redirect=CodeSet.of(4), mode="map"
    )
    case = Case(link, None, Keep(register=6), False, (None,))
    made, entry = build_epilogue(link, None, keep=case.keep, exits=(None,), jmp32=False)
    for code in range(5):
        assert _low(_run(case, made, entry(None), code, 0, lookup=False).result) == code


def test_a_last_link_in_state_none_needs_nothing() -> None:
    for hook in HOOKS:
        link = Link(hook=hook, index=4, success=hook.success, last=True)
        assert not needs_epilogue(link, None, None)
        at_the_end = Link(hook=hook, index=32, success=hook.success)
        assert not needs_epilogue(at_the_end, None, None)
        assert needs_epilogue(Link(hook=hook, index=31, success=hook.success), None, None)

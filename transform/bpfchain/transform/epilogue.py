"""The added code behind a body: look at its code, go on to the next link, or end the chain.

One call site for each slot that can follow, each with a constant index, so that the JIT makes a
direct jump of it (DESIGN section 2). Only what an exit can reach is emitted: the verifier refuses
unreachable code. Every instruction is valid in ISA v1 unless JMP32 is allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from . import emit
from .codes import CODE_MAX, CODE_MIN, CodeSet
from .emit import Emitter, Fragment
from .isa import JMP, JMP32, TAIL_CALL
from .link import GoOn, Leave, Link, Outcome, Return, saved_map_name

__all__ = ["Keep", "build_epilogue", "needs_epilogue"]

FRAME_POINTER = 10
MAP_LOOKUP = 1
"""Helper number of bpf_map_lookup_elem."""
SAVED_FLAG = 1 << 32
"""In the per-CPU map: a code is saved (0 is a legal one)."""


MAP_KEY_STACK = 8
"""Bytes at the top of the stack that added code uses where the saved code is in a map."""


@dataclass(frozen=True, slots=True)
class Keep:
    """Where the context is when the body ends: a register, or a slot of the stack."""

    register: int | None = None
    offset: int | None = None
    """Offset from r10, of a stack slot."""
    preamble: bool = True
    """Whether an added first instruction puts it there (else the body has it there anyway)."""

    def describe(self) -> str:
        """For a person: ``r8`` or ``stack slot r10-16``."""
        return f"r{self.register}" if self.register is not None else f"stack slot r10{self.offset}"


def needs_epilogue(link: Link, state: int | None, code: int | None) -> bool:
    """Whether an exit with this code (None: not known) must be led to the epilogue."""
    if link.mode == "map":
        return code is None or code in link.success or code in link.redirect
    if code is not None:
        return not isinstance(link.classify(code, state), Leave)
    return any(not isinstance(outcome, Leave) for _, outcome in _partition(link, state))


def _partition(link: Link, state: int | None) -> list[tuple[CodeSet, Outcome]]:
    """All codes, split by what happens after them; the sets are disjoint and leave none out."""
    success = link.success.difference(link.redirect)
    parts = [(success, link.classify(success.ranges[0][0], state))] if success else []
    parts += [(CodeSet.of(code), link.classify(code, state)) for code in link.redirect]
    rest = success.union(link.redirect).complement()
    if rest:
        parts.append((rest, Leave()))
    # outcomes that are the same need not be told apart
    merged: dict[Outcome, CodeSet] = {}
    for codes, outcome in parts:
        merged[outcome] = merged.get(outcome, CodeSet()).union(codes)
    return [(codes, outcome) for outcome, codes in merged.items()]


def build_epilogue(
    link: Link,
    state: int | None,
    *,
    keep: Keep | None,
    exits: Iterable[int | None],
    code_register: int = 6,
    jmp32: bool = False,
) -> tuple[Fragment, Callable[[int | None], int]]:
    """The code for one entry program, and the slot at which an exit with a given code enters it.

    ``exits`` are the codes (None: not known) of the exits that are led here. ``code_register`` is a
    callee-saved register for the program's code where the context's own cannot serve.
    """
    builder = _MapMode if link.mode == "map" else _SlotsMode
    made = builder(link, state, keep, code_register, jmp32)
    entries: dict[int | None, str] = {}
    for code in sorted(set(exits), key=lambda c: (c is not None, c or 0)):
        entries[code] = made.enter(code)
    fragment = made.finish()
    return fragment, lambda code: fragment.labels[entries[code]]


class _SlotsMode:
    """The saved code is which slot runs."""

    def __init__(
        self, link: Link, state: int | None, keep: Keep | None, code_register: int, jmp32: bool
    ) -> None:
        self.link, self.state, self.keep, self.jmp32 = link, state, keep, jmp32
        self.parts = _partition(link, state)
        self.wanted: dict[Outcome, str] = {}
        self.emitter = Emitter()
        self.default: Outcome | None = None
        self.code_register = code_register
        if keep is not None and keep.register is not None and keep.register >= 6:
            self.code_register = keep.register  # the context is loaded before it is overwritten

    def enter(self, code: int | None) -> str:
        """The label for an exit; None enters at the compares."""
        if code is not None:
            return self._want(self.link.classify(code, self.state))
        self._dispatch()
        return "dispatch"

    def _want(self, outcome: Outcome) -> str:
        return self.wanted.setdefault(outcome, f"outcome{len(self.wanted)}")

    def _dispatch(self) -> None:
        """Compare the low 32 bits of r0; what falls through is tested by nothing."""
        e = self.emitter
        e.label("dispatch")
        self.default = max(self.parts, key=lambda part: (_cost(part[0]), -_liveliness(part[1])))[1]
        tested = [part for part in self.parts if part[1] != self.default]
        tested.sort(key=lambda part: _liveliness(part[1]))
        scratch = 0
        if tested and not self.jmp32:
            scratch = 2 if self.keep is not None and self.keep.register == 1 else 1
            if any(low < 0 for codes, _ in tested for low, _ in codes.ranges):
                e.add(emit.MOV32_REG, scratch, 0)  # a number, whatever r0 is to the verifier
                e.add(emit.LSH64_IMM, scratch, imm=32)
                e.add(emit.ARSH64_IMM, scratch, imm=32)
            else:
                e.add(emit.MOV32_REG, scratch, 0)
        for codes, outcome in tested:
            for low, high in codes.ranges:
                _test(e, scratch, low, high, self._want(outcome), jmp32=self.jmp32)
        # the default's block comes right behind, so that it is reached by falling through
        self._block(self.default)

    def finish(self) -> Fragment:
        """Emit the blocks that something reaches."""
        done = {self.default}
        while pending := [outcome for outcome in self.wanted if outcome not in done]:
            for outcome in pending:
                self._block(outcome)
                done.add(outcome)
        return self.emitter.finish()

    def _block(self, outcome: Outcome) -> None:
        e = self.emitter
        e.label(self._want(outcome))
        if isinstance(outcome, GoOn):
            self._go_on(outcome)
        elif isinstance(outcome, Return):
            e.constant(0, outcome.code)
        e.exit()

    def _go_on(self, outcome: GoOn) -> None:
        e, keep = self.emitter, self.keep
        assert keep is not None, "a link that goes on keeps its context"
        missing = outcome.missing if outcome.missing is not None else self._only_code(outcome)
        register = self.code_register
        if missing is None and keep.register != register:
            e.move(register, 0)
        _load_context(e, keep)
        if missing is None and keep.register == register:
            e.move(register, 0)
        e.map(2, self.link.slots_map)
        e.constant(3, self.link.hook.slot(outcome.state, self.link.index + 1))
        e.call(TAIL_CALL)
        if missing is None:
            e.move(0, register)
        else:
            e.constant(0, missing)

    def _only_code(self, outcome: Outcome) -> int | None:
        """The code itself where only one leads to this outcome."""
        for codes, known in self.parts:
            if known == outcome and len(codes.ranges) == 1 and len(codes) == 1:
                return codes.ranges[0][0]
        return None


def _test(e: Emitter, register: int, low: int, high: int, label: str, *, jmp32: bool) -> None:
    """Jump to ``label`` if the code in ``register`` lies in an interval.

    The register holds it extended to 64 bits: by sign where an interval is negative (or with
    JMP32, which looks at 32 bits), else by zeros, where a negative code is above any interval.
    """

    def compare(opcode: int) -> int:
        return opcode & ~7 | (JMP32 if jmp32 else JMP)

    signed = low < 0 or jmp32
    above, at_least = (emit.JSGT, emit.JSGE) if signed else (emit.JGT, emit.JGE)
    if low == high:
        e.jump(label, compare(emit.JEQ), register, low)
        return
    skip = f"skip{low}_{high}_{label}"
    if high != CODE_MAX or not signed:
        e.jump(skip, compare(above), register, high)
    if low == CODE_MIN:
        e.jump(label)
    else:
        e.jump(label, compare(at_least), register, low)
    e.label(skip)


def _cost(codes: CodeSet) -> int:
    """How many compares it takes to recognise one of these codes."""
    return sum(1 if low == high else 2 for low, high in codes.ranges) + (
        CODE_MIN in codes and CODE_MAX in codes
    )


def _liveliness(outcome: Outcome) -> int:
    """Sort key: what most packets do is tested first."""
    return 0 if isinstance(outcome, GoOn | Return) else 1


def _load_context(e: Emitter, keep: Keep, register: int = 1) -> None:
    if keep.register is not None:
        e.move(register, keep.register)
    else:
        e.add(emit.LDX_DW, register, FRAME_POINTER, offset=keep.offset or 0)


class _MapMode:
    """The saved code is in a per-CPU map, as in the thesis (Algorithm 3.4): for comparison.

    r6 holds the context, r7 the program's code; the body is over, so its stack is free.
    """

    _CONTEXT, _CODE = 6, 7

    def __init__(
        self, link: Link, state: int | None, keep: Keep | None, code_register: int, jmp32: bool
    ) -> None:
        self.link, self.jmp32 = link, jmp32
        self.emitter = e = Emitter()
        self.map = saved_map_name(link.slots_map)
        e.label("enter")
        if keep is not None and keep.register == self._CODE:
            e.move(self._CONTEXT, self._CODE)
        elif keep is not None:
            _load_context(e, keep, self._CONTEXT)
        e.move(self._CODE, 0)

    def enter(self, code: int | None) -> str:
        """Every exit enters at the top: this mode does not try to be quick."""
        return "enter"

    def finish(self) -> Fragment:
        """Test the code, then one block for each way on."""
        e, link = self.emitter, self.link
        success = link.success.difference(link.redirect)
        scratch = 0
        if not self.jmp32:
            scratch = 1
            e.add(emit.MOV32_REG, scratch, 0)
            e.add(emit.LSH64_IMM, scratch, imm=32)
            e.add(emit.ARSH64_IMM, scratch, imm=32)
        for code in link.redirect:
            _test(e, scratch, code, code, f"redirect{code}", jmp32=self.jmp32)
        for low, high in success.ranges:
            _test(e, scratch, low, high, "success", jmp32=self.jmp32)
        if success != CodeSet.any():
            e.move(0, self._CODE)
            e.exit()
        if success:
            e.label("success")
            if link.index == 0 and not link.ends:
                self._save(0, "success_saved")
            self._tail_call()
            self._end_with_saved()
        for code in link.redirect:
            e.label(f"redirect{code}")
            if not link.ends:
                self._save(SAVED_FLAG | code & 0xFFFF_FFFF, f"redirect_saved{code}")
            self._tail_call()
            e.move(0, self._CODE)
            e.exit()
        return e.finish()

    def _lookup(self) -> None:
        """r0 = the one value of the map; its key 0 lies at the top of the stack."""
        e = self.emitter
        e.add(emit.ST_W, FRAME_POINTER, offset=-4, imm=0)
        e.move(2, FRAME_POINTER)
        e.add(emit.ADD64_IMM, 2, imm=-4)
        e.map(1, self.map)
        e.call(MAP_LOOKUP)

    def _save(self, value: int, label: str) -> None:
        e = self.emitter
        self._lookup()
        e.jump(label, emit.JEQ, 0, 0)
        e.wide(1, value)
        e.add(emit.STX_DW, 0, 1)
        e.label(label)

    def _tail_call(self) -> None:
        if self.link.ends:
            return
        e = self.emitter
        e.move(1, self._CONTEXT)
        e.map(2, self.link.slots_map)
        e.constant(3, self.link.index + 1)
        e.call(TAIL_CALL)

    def _end_with_saved(self) -> None:
        e = self.emitter
        if self.link.index:
            self._lookup()
            e.jump("own", emit.JEQ, 0, 0)
            e.add(emit.LDX_DW, 1, 0)
            e.jump("own", emit.JEQ, 1, 0)
            e.add(emit.MOV32_REG, 0, 1)
            bounds = self.link.hook.returns
            if bounds is not None and bounds[0] == bounds[1]:
                e.constant(0, bounds[0])
            elif bounds is not None:  # what comes from a map is unknown to the verifier
                e.add(emit.AND64_IMM, 0, imm=bounds[1])
            e.exit()
            e.label("own")
        e.move(0, self._CODE)
        e.exit()

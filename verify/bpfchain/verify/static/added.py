"""The proof of the added instructions: for every code that the program can return, and every state.

Every way into added code is followed symbolically to its end (``symbolic``), and what DESIGN section
2 demands there (``meaning``) is put to z3, negated, in one question per way. Exits that were left as
they are owe the same. Codes around every edge are then run one by one (``concrete``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from bpfchain.verify.result import Finding, Outcome
from bpfchain.verify.static import concrete
from bpfchain.verify.static import insns as i
from bpfchain.verify.static.align import Aligned, Entry, code_target, finding_at
from bpfchain.verify.static.facts import Facts
from bpfchain.verify.static.insns import FRAME, SLOT, begins
from bpfchain.verify.static.intent import Intent
from bpfchain.verify.static.meaning import Meaning, Owed, saved_domain
from bpfchain.verify.static.model import Added, Obj
from bpfchain.verify.static.symbolic import CONTEXT, Address, Code, Path, explore
from bpfchain.verify.static.values import CONTEXT as THE_CONTEXT
from bpfchain.verify.static.values import Num, Value

__all__ = ["Kept", "check_entry", "kept_by"]

MASK64 = (1 << 64) - 1


class Kept(NamedTuple):
    """Where the instructions in front of a body put the context."""

    registers: tuple[int, ...] = ()
    cells: tuple[int, ...] = ()
    """Offsets from r10."""


class _Start(NamedTuple):
    """A way into added code (or out of the program): ``slot`` -1 is an exit that was left."""

    slot: int
    at: int
    """Slot in OUT's section of the body's exit."""
    registers: frozenset[int] = frozenset()
    """Registers that hold the context."""
    cells: frozenset[int] = frozenset()
    low: int = 0
    high: int = MASK64
    """What the program returned lies between these, unsigned."""

    @property
    def key(self) -> tuple[object, ...]:
        return (self.slot, self.registers, self.cells, self.low, self.high)


def kept_by(out: Obj, entry: Entry, intent: Intent) -> tuple[Kept, list[Finding]]:
    """Run the instructions in front of a body in place: r1 must reach it as it was."""
    code = _code(out, entry, intent)
    registers: list[Any] = [None] * 11
    registers[1], registers[FRAME] = CONTEXT, Address("frame")
    start = Path(entry.start, registers, {})
    findings: list[Finding] = []
    for path in explore(code, start, stores=True, saved_map=""):
        if path.ends != "body" or path.called or path.ran_body:
            rule, message = path.fault if path.ends == "fault" else ("preamble", "it ends there")
            findings.append(_finding(out, entry, path.slot, rule, f"before the body: {message}"))
            continue
        if path.registers[1] != CONTEXT:
            findings.append(
                _finding(
                    out, entry, entry.start, "preamble", "r1 does not reach the body unchanged"
                )
            )
        kept = Kept(
            tuple(n for n in range(2, FRAME) if path.registers[n] == CONTEXT),
            tuple(at for at, cell in path.cells.items() if cell == (8, CONTEXT)),
        )
        if any(n % 8 for n in kept.cells) or len(path.cells) != len(kept.cells):
            findings.append(
                _finding(out, entry, entry.start, "context-slot", "the slot is not 8-aligned")
            )
        extra = [n for n in (0, *range(2, FRAME)) if path.registers[n] not in (None, CONTEXT)]
        if extra or len(kept.registers) + len(kept.cells) > 1:
            findings.append(
                _finding(out, entry, entry.start, "preamble", "it does more than keep the context")
            )
        return kept, findings
    return Kept(), findings


def check_entry(
    out: Obj, aligned: Aligned, entry: Entry, intent: Intent, facts: Facts
) -> tuple[list[Finding], int]:
    """Prove one entry. Returns the findings and how many ways into added code were proved.

    ``facts`` are of the body as it runs in this entry, with the context kept.
    """
    work = _Entry(out, aligned, entry, intent)
    work.encodings()
    if work.findings:
        return work.findings, 0
    starts = work.starts(facts)
    for start in starts:
        work.prove(start)
    work.unreached(starts)
    return work.findings, len(starts)


def _code(out: Obj, entry: Entry, intent: Intent) -> Code:
    insns = out.insns(entry.section)
    flags = begins(insns[entry.start : entry.end])
    inside = range(entry.body, entry.body + entry.length) if entry.inline else range(0)
    allowed = frozenset(
        slot for slot in range(entry.start, entry.end)
        if flags[slot - entry.start] and slot not in inside
    )  # fmt: skip
    maps: dict[int, str] = {}
    calls: set[int] = set()
    for slot in allowed:
        item = out.relocation_at(entry.section, slot)
        if insns[slot].code == i.CALL:
            target = code_target(out, entry.section, slot)
            if (
                insns[slot].src == i.CALL_FUNCTION
                and not entry.inline
                and target == (entry.body_section, entry.body * SLOT)
            ):
                calls.add(slot)
        elif item is not None:
            maps[slot] = out.symbols[item.symbol].name
    body = entry.body if entry.inline else -1
    return Code(insns, allowed, maps, frozenset(calls), body)


def _finding(
    out: Obj, entry: Entry, slot: int, rule: str, message: str, outcome: Outcome = Outcome.NOT_EQUAL
) -> Finding:
    slot = min(max(slot, 0), len(out.insns(entry.section)) - 1)
    return finding_at(out, entry.section, slot, rule, message, outcome=outcome)


def _constant(value: Value) -> tuple[int, int]:
    """What a code is known to lie between: a constant is trusted, a range is not needed."""
    known = isinstance(value, Num) and value.low == value.high
    return (value.low, value.high) if known and isinstance(value, Num) else (0, MASK64)


class _Entry:
    """One entry being proved."""

    def __init__(self, out: Obj, aligned: Aligned, entry: Entry, intent: Intent) -> None:
        self.out, self.aligned, self.entry, self.intent = out, aligned, entry, intent
        self.code = _code(out, entry, intent)
        self.findings: list[Finding] = []
        self.said: set[tuple[str, int]] = set()

    def encodings(self) -> None:
        """Added instructions are such as the RFC knows, and what they do not use is 0."""
        for slot in sorted(self.code.allowed):
            insn = self.code.insns[slot]
            after = self.code.insns[slot + 1] if slot + 1 < len(self.code.insns) else None
            if not i.well_formed(insn, after):
                self._say(
                    "encoding", slot, f"{tuple(insn)} is no instruction that added code may hold"
                )

    def starts(self, facts: Facts) -> list[_Start]:
        """Where control comes from: the body's exits, or the wrapper's beginning."""
        entry = self.entry
        if not entry.inline:
            thrown = [_Start(-1, entry.start)] if facts.throws else []
            return [_Start(entry.start, entry.start, frozenset({1})), *thrown]
        found: dict[tuple[object, ...], _Start] = {}
        for slot, state in facts.exits.items():
            low, high = _constant(state.registers[0])
            at = entry.body + slot
            if slot in entry.exits:
                goal = i.target(self.code.insns[at], at)
                start = _Start(
                    goal, at,
                    frozenset(n for n in range(1, FRAME) if state.registers[n] is THE_CONTEXT),
                    frozenset(o for o, v in state.frames[0].cells.items() if v is THE_CONTEXT),
                    low, high,
                )  # fmt: skip
            else:
                start = _Start(-1, at, low=low, high=high)
            found.setdefault(start.key, start)
        if facts.throws:  # in a function of its own too: past every exit
            found[-2, -1] = _Start(-1, entry.body)
        for slot, value in facts.leaves:
            low, high = _constant(value)
            found.setdefault((-2, slot), _Start(-1, entry.body + slot, low=low, high=high))
        return list(found.values())

    def prove(self, start: _Start) -> None:
        """One way in: all codes symbolically, the telling ones concretely."""
        returned: Any = start.low
        if start.low != start.high:
            import z3

            returned = z3.BitVec("returned", 64)
        paths = list(self._paths(start, returned))
        for path in paths:
            if path.ends != "exit":
                rule, message = (
                    path.fault if path.ends == "fault" else ("jump", "it runs the body again")
                )
                self._say(rule, path.slot, message)
            elif not self.entry.inline and start.slot >= 0 and not path.ran_body:
                self._say("body", path.slot, "the program does not run")
        good = [path for path in paths if path.ends == "exit"]
        if len(good) != len(paths) or any(rule == "body" for rule, _ in self.said):
            return
        # the verifier lets no program in whose codes are out of the hook's range: none else can come
        ranged = self.intent.hook.returns is not None
        wrong = self._refute(good, start, returned, ranged=ranged)
        for path, (rule, _, message), example in wrong:
            text = f"{message}{example}"
            place = path.called.slot if path.called is not None and rule != "result" else path.slot
            self._say(rule, start.at if start.slot < 0 else place, text)
        if not wrong:
            self._run_codes(start, ranged=ranged)

    def _paths(self, start: _Start, returned: Any) -> Iterable[Path]:
        """Every path from the start to where the link ends."""
        saved: Any = None
        if self.intent.mode == "map":
            import z3

            saved = z3.BitVec("saved", 64)
        registers: list[Any] = [None] * 11
        registers[FRAME] = Address("frame")
        for register in start.registers:
            registers[register] = CONTEXT
        cells: dict[int, tuple[int, Any]] = dict.fromkeys(start.cells, (8, CONTEXT))
        if self.entry.inline:
            registers[0] = returned
        path = Path(start.slot, registers, cells, saved=saved)
        if start.slot < 0:
            registers[0] = returned
            path.ends = "exit"
            return [path]
        return explore(
            self.code, path, stores=self.intent.mode == "map",
            saved_map=self.intent.saved_map, body_result=returned,
        )  # fmt: skip

    def _refute(
        self, paths: list[Path], start: _Start, returned: Any, *, ranged: bool
    ) -> list[tuple[Path, Owed, str]]:
        """What is owed and does not hold, with an example."""
        import z3

        intent, state = self.intent, self.entry.state
        value = z3.BitVecVal(returned, 64) if isinstance(returned, int) else returned
        saved = z3.BitVec("saved", 64)
        known: list[Any] = []
        bounds = intent.hook.returns
        if ranged and bounds is not None:
            known += [z3.UGE(value, bounds[0]), z3.ULE(value, bounds[1])]
        meaning = Meaning(intent, state, value, saved)
        debts: list[tuple[Path, Owed, Any]] = []
        for path in paths:
            for debt in meaning.owed(path, ranged=ranged):
                term = z3.BoolVal(debt[1]) if isinstance(debt[1], bool) else debt[1]
                if not z3.is_true(term):
                    debts.append((path, debt, z3.And(*path.conditions, z3.Not(term))))
        if not debts:
            return []
        # the verifier does not know what is in the map: the range must not hang on it
        loose = z3.Or(*(term for _, debt, term in debts if debt[0] == "range"))
        strict = z3.Or(*(term for _, debt, term in debts if debt[0] != "range"))
        if intent.mode == "map":
            strict = z3.And(saved_domain(saved, intent), strict)
        solver = z3.SolverFor("QF_BV")
        solver.add(*known, z3.Or(loose, strict))
        answer = solver.check()
        if answer == z3.unknown:
            self._say("solver", start.at, "z3 does not decide", Outcome.INCONCLUSIVE)
        if answer != z3.sat:
            return []
        model = solver.model()
        code = i.signed(model.eval(value, model_completion=True).as_long(), 32)
        example = f", for code {code}"
        if state is not None:
            example += f" in the state where {intent.hook.name_of(state)} is saved"
        return [
            (path, debt, example)
            for path, debt, term in debts
            if z3.is_true(model.eval(term, model_completion=True))
        ]

    def _run_codes(self, start: _Start, *, ranged: bool) -> None:
        """The same by running codes: the proof must not hang on the encoding alone."""
        intent, state = self.intent, self.entry.state
        bounds = intent.hook.returns
        registers = dict.fromkeys(start.registers, concrete.CONTEXT)
        cells = dict.fromkeys(start.cells, concrete.CONTEXT)
        for returned in self._values(start):
            if ranged and bounds is not None and not bounds[0] <= returned <= bounds[1]:
                continue
            for saved, fails in self._maps():
                wanted = concrete.expected(intent, state, returned, saved, lookup_fails=fails)
                try:
                    if start.slot < 0:
                        got = concrete.Outcome(i.signed(returned, 32), None, saved)
                    else:
                        if self.entry.inline:
                            registers[0] = returned
                        got = concrete.run(
                            self.code.insns, start.slot, intent=intent, order=self.out.order,
                            maps=self.code.maps, registers=registers, cells=cells,
                            body=self.code.body, body_calls=self.code.calls_body,
                            body_result=returned, saved=saved, lookup_fails=fails,
                        )  # fmt: skip
                except concrete.Stuck as stuck:
                    self._say(
                        "result", start.at, f"run with code {i.signed(returned, 32)}: {stuck}"
                    )
                    return
                if got != wanted:
                    self._say(
                        "result", start.at,
                        f"run with code {i.signed(returned, 32)}: {got} and not {wanted}",
                    )  # fmt: skip
                    return

    def _values(self, start: _Start) -> Iterator[int]:
        if start.low == start.high:
            yield start.low
            return
        for value in concrete.interesting(self.intent):
            if start.low <= value <= start.high:
                yield value

    def _maps(self) -> Iterator[tuple[int, bool]]:
        """What the saved code's map can hold, and whether a lookup fails."""
        yield 0, False
        if self.intent.mode == "map":
            yield 0, True
            for code in self.intent.hook.codes[:8]:
                if code.value in self.intent.hook.legal:
                    yield 1 << 32 | code.value & 0xFFFF_FFFF, False

    def unreached(self, starts: list[_Start]) -> None:
        """Added instructions to which no way leads: the kernel refuses them."""
        slots = self.aligned.alignment.origins.get(self.entry.section, ())
        visited = set(range(self.entry.start, self.entry.body)) if self.entry.inline else set()
        work = [start.slot for start in starts if start.slot >= 0]
        while work:
            slot = work.pop()
            if slot in self.code.allowed and slot not in visited:
                visited.add(slot)
                work += i.successors(self.code.insns, slot)
        for slot in sorted(self.code.allowed - visited):
            if isinstance(slots[slot], Added) and not self.findings:
                self._say("unreached", slot, "an added instruction that nothing reaches")
                return

    def _say(
        self, rule: str, slot: int, message: str, outcome: Outcome = Outcome.NOT_EQUAL
    ) -> None:
        if (rule, slot) not in self.said and len(self.findings) < 12:
            self.said.add((rule, slot))
            self.findings.append(_finding(self.out, self.entry, slot, rule, message, outcome))

"""DESIGN section 2 as z3 predicates: what a path through the added code owes, for all codes at once.

``code`` is the low 32 bits of what the program returned. The predicates are built from the sets of
codes as ranges, so nothing is sampled; ``concrete`` checks them against ``verify.reference``.
"""

from __future__ import annotations

from typing import Any

from bpfchain.transform.codes import CODE_MAX, CODE_MIN, CodeSet
from bpfchain.verify.static.intent import Intent
from bpfchain.verify.static.symbolic import CONTEXT, Address, Called, Path, is_

__all__ = ["Meaning", "Owed", "member", "saved_domain"]

Owed = tuple[str, Any, str]
"""A rule, what must hold (a bool or a z3 term), and what it means if it does not."""


def member(code: Any, codes: CodeSet) -> Any:
    """Whether the code (a z3 term of 32 bits) is in the set."""
    import z3

    if not codes:
        return z3.BoolVal(False)
    # the shorter of both: "everything but 2" is one compare
    outside = codes.complement()
    if len(outside.ranges) < len(codes.ranges):
        return z3.Not(_any_of(code, outside)) if outside else z3.BoolVal(True)
    return _any_of(code, codes)


def _any_of(code: Any, codes: CodeSet) -> Any:
    import z3

    parts = []
    for low, high in codes.ranges:
        if low == high:
            parts.append(code == low)
        elif low == CODE_MIN:
            parts.append(code <= high)
        elif high == CODE_MAX:
            parts.append(code >= low)
        else:
            parts.append(z3.And(code >= low, code <= high))
    return parts[0] if len(parts) == 1 else z3.Or(*parts)


def saved_domain(saved: Any, intent: Intent) -> Any:
    """What the saved code's map can hold when the link starts: nothing (0), or a code of the hook with
    bit 32 set (a saved 0 is not nothing)."""
    import z3

    low = z3.Extract(31, 0, saved)
    flagged = z3.Extract(63, 32, saved) == 1
    return z3.Or(saved == 0, z3.And(flagged, member(low, intent.hook.legal)))


class Meaning:
    """The predicates of one link in one state, for one returned value; terms are built once."""

    def __init__(self, intent: Intent, state: int | None, returned: Any, saved: Any) -> None:
        """``returned`` and ``saved`` (what the saved code's map held) are z3 terms of 64 bits."""
        import z3

        self.intent, self.state, self.saved = intent, state, saved
        self.code = code = z3.simplify(z3.Extract(31, 0, returned))
        self.redirect = member(code, intent.redirect)
        self.onward = member(code, intent.success.union(intent.redirect))
        self.ended = z3.Not(self.onward)
        # the result in slots mode: the saved code where one is saved, else the code
        self.result = code
        if intent.mode == "slots" and state is not None:
            kept = z3.And(self.onward, z3.Not(self.redirect))
            self.result = z3.If(kept, z3.BitVecVal(state, 32), code)
        self.slot = z3.BitVecVal(intent.index + 1, 32)
        if intent.mode == "slots":
            next_index, hook = intent.index + 1, intent.hook
            self.slot = z3.BitVecVal(hook.slot(state, next_index), 32)
            for redirected in intent.redirect:
                slot = z3.BitVecVal(hook.slot(redirected, next_index), 32)
                self.slot = z3.If(code == redirected, slot, self.slot)

    def owed(self, path: Path, *, ranged: bool) -> list[Owed]:
        """What must hold at the end of a path. ``ranged``: the hook bounds the result too."""
        import z3

        result = path.registers[0]
        if isinstance(result, Address):
            return [("result", False, "the result is a pointer")]
        found: list[Owed] = []
        if path.called is not None:
            found += self._call(path.called)
        elif not self.intent.ends:
            found.append(("exit-unpatched", self.ended, "the chain ends where it must go on"))
        if self.intent.mode == "map" and path.called is None:
            same = z3.simplify(_wide(path.saved) == self.saved)
            found.append(("saved-code", same, "the saved code changes where the chain ends"))
        what = "the result is not the code, or the saved one where one is saved"
        if path.called is not None:
            what = "where no link follows, " + what
        wide = _wide(result)
        low = z3.simplify(z3.Extract(31, 0, wide))
        found.append(("result", low == self._wanted(path), what))
        bounds = self.intent.hook.returns
        if ranged and bounds is not None:
            inside = z3.And(z3.UGE(wide, bounds[0]), z3.ULE(wide, bounds[1]))
            found.append(("range", inside, "the result is outside of what the kernel allows"))
        return found

    def _wanted(self, path: Path) -> Any:
        import z3

        if self.intent.mode == "slots" or path.lost or self.intent.index == 0:
            return self.result
        own = z3.Or(self.redirect, self.ended, self.saved == 0)
        return z3.If(own, self.code, z3.Extract(31, 0, self.saved))

    def _call(self, called: Called) -> list[Owed]:
        """A tail call was made: rightly, with the right registers."""
        import z3

        intent = self.intent
        wrongly = "the chain goes on after a code that ends it"
        if intent.ends:
            wrongly = "a tail call behind the last link"
        slots = Address("map", intent.slots_map)
        found: list[Owed] = [
            ("tail-call", False if intent.ends else self.onward, wrongly),
            ("context", is_(called.r1, CONTEXT), "r1 does not hold the context at the tail call"),
            (
                "slot-map", is_(called.r2, slots),
                f"r2 does not hold {intent.slots_map} at the tail call",
            ),
        ]  # fmt: skip
        if called.r3 is None or isinstance(called.r3, Address):
            return [*found, ("slot", False, "r3 holds no slot at the tail call")]
        key = z3.simplify(z3.Extract(31, 0, _wide(called.r3)))  # the kernel takes the low 32 bits
        found.append(("slot", key == self.slot, "r3 is not the slot of the link that follows"))
        if intent.mode == "map" and not called.lost:
            now = _wide(called.saved)
            after = self.saved if intent.index else z3.BitVecVal(0, 64)
            what = "the saved code is not kept" if intent.index else "the saved code is not reset"
            kept = z3.Or(self.redirect, now == after)
            found.append(("saved-code", kept, f"{what} where the chain goes on"))
            noted = z3.Concat(z3.BitVecVal(1, 32), self.code)
            saved = z3.Or(z3.Not(self.redirect), now == noted)
            found.append(("saved-code", saved, "the redirect code is not saved"))
        return found


def _wide(value: Any) -> Any:
    import z3

    return z3.BitVecVal(value, 64) if isinstance(value, int) else value

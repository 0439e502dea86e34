"""What a link is meant to be: its place in the chain and the codes after which the chain goes on.

This is section 2 of DESIGN.md as a value: everything that the patch, its proof and the loader must
agree on. ``classify`` is the rule for one link; ``verify.reference`` composes it over a chain.
"""

from __future__ import annotations

from dataclasses import dataclass

from .codes import CODE_MAX, CODE_MIN, CodeSet
from .errors import OptionError
from .policy import LINKS_MAX, Hook

__all__ = ["SLOTS_MAP", "GoOn", "Leave", "Link", "Outcome", "Return", "saved_map_name"]

SLOTS_MAP = "bpfchain_slots"
_SAVED_MAP = "bpfchain_saved"


@dataclass(frozen=True, slots=True)
class Leave:
    """The chain ends here with the program's own r0."""


@dataclass(frozen=True, slots=True)
class Return:
    """The chain ends here with a saved code."""

    code: int


@dataclass(frozen=True, slots=True)
class GoOn:
    """The next link runs in ``state``; where there is none, ``missing`` is the result.

    ``missing`` None stands for the program's own code.
    """

    state: int | None
    missing: int | None


Outcome = Leave | Return | GoOn


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One link as intended. ``saved`` are the codes that may be saved when it starts (besides
    none); ``mode`` is ``"slots"`` or ``"map"``."""

    hook: Hook
    index: int
    success: CodeSet
    redirect: CodeSet = CodeSet()  # noqa: RUF009 - a frozen value
    saved: tuple[int, ...] = ()
    mode: str = "slots"
    last: bool = False
    slots_map: str = SLOTS_MAP

    def __post_init__(self) -> None:
        if not 0 <= self.index < LINKS_MAX:
            raise OptionError(
                f"index {self.index} is outside 0..{LINKS_MAX - 1}",
                "the kernel follows 33 tail calls and no more" if self.index > 0 else None,
            )
        names = self.hook.names
        saved = CodeSet.of(*self.saved)
        given = (("success", self.success), ("redirect", self.redirect), ("saved", saved))
        for what, codes in given:
            if CODE_MIN in codes and CODE_MAX in codes:
                continue  # any and complements say "whatever the hook returns"
            strange = codes.difference(self.hook.legal)
            if strange:
                raise OptionError(
                    f"--{what}: {strange.ranges[0][0]} is no code of {self.hook.name}",
                    f"its codes: {self.hook.legal.describe(names)}",
                )
        if len(self.redirect) > 64:
            raise OptionError("--redirect takes a finite list of codes, not any or a complement")
        if self.mode == "slots":
            for code in (*self.redirect, *self.saved):
                self.hook.state_of(code)
        if self.index == 0 and self.saved:
            raise OptionError("--saved: nothing can be saved before link 0")

    @property
    def states(self) -> tuple[int | None, ...]:
        """The states in which the link may start, none first; one entry program each."""
        return (None, *self.saved) if self.mode == "slots" else (None,)

    @property
    def ends(self) -> bool:
        """Whether no link can follow: declared the last, or at the highest index."""
        return self.last or self.index == LINKS_MAX - 1

    def classify(self, code: int, state: int | None) -> Outcome:
        """What happens after this link returned ``code`` (signed 32 bits) in ``state``.

        DESIGN section 2, rules 1 to 4 (thesis, Algorithm 3.4).
        """
        if code in self.redirect:
            return Leave() if self.ends else GoOn(code, code)
        if code in self.success:
            if self.ends:
                return Leave() if state is None else Return(state)
            return GoOn(state, state)
        return Leave()


def saved_map_name(slots_map: str) -> str:
    """The per-CPU map of ``--saved-code map`` that belongs to a slots map."""
    return _SAVED_MAP if slots_map == SLOTS_MAP else slots_map + "_c"

"""The meaning of a chain: DESIGN section 2 (thesis, Algorithm 3.4, made exact), in code.

Small enough to be checked by reading; everything that the patch emits is tested against it. It
shares no code with the patch: not ``Link.classify``, only the sets of codes.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

__all__ = ["ReferenceLink", "chain_result", "step"]

Codes = Container[int]
ReferenceLink = tuple[Codes, Codes]
"""Success codes S and redirect codes R of one link."""


def low32(value: int) -> int:
    """The code of a return value: its low 32 bits, signed."""
    code = value & 0xFFFF_FFFF
    return code - (1 << 32) if code >> 31 else code


def step(link: ReferenceLink, saved: int | None, returned: int) -> tuple[bool, int | None]:
    """One link returned: whether the chain goes on, and the saved code then (rules 1 and 2)."""
    success, redirect = link
    code = low32(returned)
    if code in redirect:
        return True, code
    if code in success:
        return True, saved
    return False, saved


def chain_result(links: Sequence[ReferenceLink], run: Callable[[int], int]) -> tuple[int, int]:
    """The result of a chain and how many links ran; ``run(i)`` gives what program i returns.

    Rules 3 and 4: the next link runs where there is one; at the end the saved code is the result
    if one is saved, else the last link's own.
    """
    saved: int | None = None
    for index, link in enumerate(links):
        returned = run(index)
        goes_on, saved = step(link, saved, returned)
        if not goes_on:
            return low32(returned), index + 1
    return (low32(returned) if saved is None else saved), len(links)

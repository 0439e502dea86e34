"""Stack of a whole call chain: what the verifier adds up over frames (check_max_stack_depth).

A tail call takes away the private stack that newer kernels give tracing programs, so the sum that
counted for nothing in the original can be what fails in the patched program.
"""

from __future__ import annotations

from .elf import SectionId
from .errors import RefusedError
from .flow import STACK_SIZE
from .program import Reach
from .request import Need
from .subject import Subject
from .targets import every_arch

__all__ = ["check_stack", "stack_need"]

_Place = tuple[SectionId, int]
_GRANULE = 16
"""To what kernels from 6.12 on round a frame."""
_ABOVE_TAIL_CALL = 256
"""Bytes of callers' frames above a function that tail-calls, at most less than this."""


def check_stack(subject: Subject, *, extra: int = 0, wrapper: int = 0) -> int | None:
    """Bytes of stack of the deepest call chain: ``extra`` more in the program's own frame, and a
    frame of ``wrapper`` bytes above it.

    None where the program's own frame is not bounded; the sum is then what it is at least. Raises RefusedError where the sum is more than a program with
    tail calls may have.
    """
    outer = -(-wrapper // _GRANULE) * _GRANULE
    total, above = _deepest(subject.reach, subject.frames, outer, extra, granule=_GRANULE, least=0)
    if total > STACK_SIZE:
        raise RefusedError(
            f"{subject.program.what}: {total} bytes of stack over its calls: with a tail call the "
            f"kernel allows {STACK_SIZE} in all",
            "attach it on its own, or make its buffers smaller",
        )
    if above >= _ABOVE_TAIL_CALL:
        raise RefusedError(
            f"{subject.program.what}: {above} bytes of stack above a function that makes tail calls: "
            f"the kernel allows less than {_ABOVE_TAIL_CALL}",
            "make the buffers of the program smaller",
        )
    return None if subject.flow.lowest is None else total


def stack_need(subject: Subject) -> tuple[Need, ...]:
    """The kernel that a wrapper around a program with a deep stack needs.

    Kernels before 6.12 round every frame up to 32 bytes, an empty one too.
    """
    body, _ = _deepest(subject.reach, subject.frames, 0, 0, granule=32, least=1)
    if body + 32 <= STACK_SIZE or body > STACK_SIZE:
        return ()
    why = f"{body} bytes of stack and a wrapper's frame of 32 on older kernels"
    return (Need("frames that are not rounded up to 32 bytes", why, every_arch("6.12")),)


def _deepest(
    reach: Reach, frames: dict[_Place, int], outer: int, extra: int, *, granule: int, least: int
) -> tuple[int, int]:
    """Bytes of the deepest chain, and at most how many lie above a function that tail-calls.

    ``outer`` bytes lie above the program's own frame, which has ``extra`` bytes more than it uses.
    """
    deepest = above_tail_call = 0
    root = next(iter(frames))
    work: list[tuple[_Place, int, int]] = [(root, outer, 0)]
    seen: dict[_Place, int] = {}
    while work:
        place, above, depth = work.pop()
        if depth > 8 or seen.get(place, -1) >= above:
            continue  # recursion the verifier refuses anyway; or a way no deeper than a known one
        seen[place] = above
        if place in reach.tail_callers and place != root:
            above_tail_call = max(above_tail_call, above)
        own = frames[place] + (extra if place == root else 0)
        total = above + -(-max(own, least) // granule) * granule
        deepest = max(deepest, total)
        work += [(callee, total, depth + 1) for callee in reach.edges.get(place, ())]
    return deepest, above_tail_call

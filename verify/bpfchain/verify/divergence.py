"""Where two runs part: the first instruction of the original that the patched program did otherwise.

By what both executed on one packet, instruction by instruction of the body, which is looked for in
the patched code where its provenance says; where it lies elsewhere nothing is named.
"""

from __future__ import annotations

from collections.abc import Iterator

from bpfchain.verify.static.intent import Intent

from .engines.protocol import Coverage
from .result import Place

__all__ = ["first_divergence"]

_LDDW, _CALL, _EXIT = 0x18, 0x85, 0x95


def first_divergence(
    original: Coverage, patched: Coverage, intent: Intent, entry: str
) -> Place | None:
    """The place in IN, or in OUT behind the body where the body did the same, as far as can be
    told. Both coverages are of one packet."""
    body = list(_aligned(original, patched, intent))
    differing = [
        a for a, b in body
        if patched.executed[b]
        and (
            not _alike(_at(original.code, a), _at(patched.code, b))
            or original.maps.get(a) != patched.maps.get(b)
        )
    ]  # fmt: skip
    if not differing:
        differing = [a for a, b in body if original.executed[a] != patched.executed[b]]
    if differing:
        section, index = original.origin[min(differing)]
        return Place("in", section, index, intent.program)
    size = min(intent.body, len(original.executed))
    ours = [b for a, b in body if a < size]
    if not ours:
        return None
    # the body did the same: the call or exit behind it that decided otherwise, or an exit inside
    others = {b for _, b in body}
    end = max(ours) + 1
    added = [
        pc for pc, seen in enumerate(patched.executed) if seen and pc >= end and pc not in others
    ]
    exits = [pc for pc in ours if patched.executed[pc] and patched.code[8 * pc] == _EXIT]
    if not (added or exits):
        return None
    section, index = patched.origin[max(added or exits)]
    return Place("out", section, index, entry)


def _at(code: bytes, pc: int) -> bytes:
    return code[8 * pc : 8 * pc + 8]


def _alike(a: bytes, b: bytes) -> bool:
    """Equal but for what linking may change: map and function references; an exit is a jump now."""
    if a == b or a[0] == _EXIT:
        return True
    if a[0] == b[0] == _LDDW or (a[0] == b[0] == _CALL and a[1] >> 4):
        return a[1] == b[1] and (a[1] >> 4) != 0
    return False


def _aligned(original: Coverage, patched: Coverage, intent: Intent) -> Iterator[tuple[int, int]]:
    """Instructions (original's, patched's) that are the same one."""
    size = min(intent.body, len(original.executed))
    if intent.strategy == "subprog":
        at = _find(patched.code, original.code[: 8 * size])
    else:
        at = intent.front
    if at is not None:
        for pc in range(min(size, len(patched.executed) - at)):
            yield pc, at + pc
    places = {place: pc for pc, place in enumerate(patched.origin)}
    for pc in range(size, len(original.executed)):
        same = places.get(original.origin[pc])
        if same is not None and original.origin[pc][0] == ".text":
            yield pc, same


def _find(code: bytes, body: bytes) -> int | None:
    """Where a moved body begins: the place whose opcodes are most alike, if half of them are."""
    opcodes, wanted = code[::8], body[::8]
    best, place = len(wanted) // 2, None
    for at in range(len(opcodes) - len(wanted) + 1):
        alike = sum(map(int.__eq__, opcodes[at : at + len(wanted)], wanted))
        if alike > best:
            best, place = alike, at
    return place

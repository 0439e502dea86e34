"""Coverage of an engine's linked code, told by the object's own instructions."""

from __future__ import annotations

from .engines.protocol import Coverage
from .result import ProgramCoverage

__all__ = ["program_coverage"]

_LDDW, _JMP, _JMP32 = 0x18, 5, 6
_PLAIN = frozenset({0x00, 0x80, 0x90, 0xE0})
"""Operations of the jump classes with one way out or none: JA, CALL, EXIT, and may_goto's JCOND."""


def program_coverage(program: str, covered: Coverage) -> ProgramCoverage:
    """Instructions and both ways out of every conditional jump, subprograms' too."""
    code, origin = covered.code, covered.origin
    instructions: dict[tuple[str, int], bool] = {}
    edges: dict[tuple[str, int, bool], bool] = {}
    at, end = 0, len(code) // 8
    while at < end:
        opcode = code[8 * at]
        place = origin[at]
        instructions[place] = bool(covered.executed[at])
        if opcode & 7 in (_JMP, _JMP32) and opcode & 0xF0 not in _PLAIN:
            edges[(*place, False)] = bool(covered.fell[at])
            edges[(*place, True)] = bool(covered.taken[at])
        at += 2 if opcode == _LDDW else 1
    section = origin[0][0] if origin else ""
    return ProgramCoverage(program=program, section=section, instructions=instructions, edges=edges)

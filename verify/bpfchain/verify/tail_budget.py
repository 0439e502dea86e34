"""Tail calls that a chain may make: its own, those of its links' programs, and the entry program's.

The kernel follows 33 in one run, and counts attempts that fail. Source: MAX_TAIL_CALL_CNT,
``___bpf_prog_run`` and the JITs (some count only those that succeed; this counts the more).
"""

from __future__ import annotations

from bpfchain.emulator.link import Image, LinkedObject
from bpfchain.transform.errors import RefusedError
from bpfchain.transform.policy import LINKS_MAX

__all__ = ["check_budget", "own_attempts"]

_PROG_ARRAY = 3
_LDDW, _CALL, _TAIL_CALL = 0x18, 0x85, 12
_JMP, _JMP32, _EXIT_OP, _CALL_OP = 5, 6, 0x90, 0x80


def check_budget(attempts: int, own: int, what: str) -> int:
    """The most tail calls that one run can attempt, with one for an entry program. Raises RefusedError
    where the kernel does not follow as many."""
    total = attempts + own + 1
    if total > LINKS_MAX:
        raise RefusedError(
            f"{what} can attempt {total} tail calls ({attempts} of the chain, {own} of its programs, "
            f"1 of an entry program): the kernel follows {LINKS_MAX}",
            "make the chain shorter",
        )
    return total


def own_attempts(obj: LinkedObject, program: str, what: str) -> int:
    """The most tail calls that the program and those it tail-calls can attempt in one run.

    Raises RefusedError for targets that are not known (an array that something else fills) and for
    calls in a loop.
    """
    return _attempts(obj, program, what, ())


def _attempts(obj: LinkedObject, program: str, what: str, path: tuple[str, ...]) -> int:
    if program in path:
        raise RefusedError(
            f"{what}: its tail calls come back to {program}: how many it makes is not known",
            "a chain needs a bound: the kernel follows 33 in one run",
        )
    image = obj.programs[program]
    sites = _sites(image)
    if not sites:
        return 0
    arrays = [obj.maps[index] for index in image.maps if obj.maps[index].type == _PROG_ARRAY]
    unknown = next((spec.name for spec in arrays if not spec.values), None)
    if unknown is not None or not arrays:
        raise RefusedError(
            f"{what}: where its tail calls through {unknown or 'an unknown array'} go is not known",
            "give the array initial values (BTF `values`), or leave the program out of the chain",
        )
    for site in sites:
        if _loops(image, site):
            section, index = image.place(site)
            raise RefusedError(
                f"{what}: its tail call at {section}+{index} is in a loop",
                "a chain needs a bound: the kernel follows 33 in one run",
            )
    count = sum(_times(image, site) for site in sites)
    targets = {name for spec in arrays for _, name in spec.values}
    return count + max(
        (_attempts(obj, name, what, (*path, program)) for name in sorted(targets)), default=0
    )


def _instructions(code: bytes) -> list[tuple[int, int, int, int, int]]:
    """(pc, opcode, source register, offset, imm) of every instruction."""
    found, at = [], 0
    while at + 8 <= len(code):
        found.append((
            at // 8, code[at], code[at + 1] >> 4,
            int.from_bytes(code[at + 2 : at + 4], "little", signed=True),
            int.from_bytes(code[at + 4 : at + 8], "little", signed=True),
        ))  # fmt: skip
        at += 16 if code[at] == _LDDW else 8
    return found


def _sites(image: Image) -> list[int]:
    return [
        pc for pc, opcode, source, _, imm in _instructions(image.code)
        if opcode == _CALL and source == 0 and imm == _TAIL_CALL
    ]  # fmt: skip


def _loops(image: Image, site: int) -> bool:
    """Whether a jump back goes over the site: it may then be reached again."""
    for pc, opcode, _, offset, imm in _instructions(image.code):
        if opcode & 7 not in (_JMP, _JMP32) or opcode & 0xF0 in (_CALL_OP, _EXIT_OP):
            continue
        step = imm if opcode == 0x06 else offset
        if step < 0 and pc + 1 + step <= site <= pc:
            return True
    return False


def _times(image: Image, site: int) -> int:
    """How often a site is reached at most: once in the program, else once for each call of any
    function (a site is taken to be reached from all of them)."""
    if len(image.functions) < 2 or site < image.functions[1]:
        return 1
    return sum(
        1
        for _, opcode, source, _, _ in _instructions(image.code)
        if opcode == _CALL and source == 1
    )

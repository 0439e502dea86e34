"""Compares two programs as libbpf handed them to the kernel: relocated, subprograms linked in.

Numbers that differ between two loads of one object (descriptors of maps) are replaced by names,
and calls are followed instead of compared by distance, because subprograms may be linked in at
another place. Every instruction that the original can reach must have its equal in the patched one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bpfchain.loader.libbpf import LibbpfError, ObjectFile
from bpfchain.loader.uapi import MapType, ProgType

WIDE, CALL, EXIT, JA, JA32 = 0x18, 0x85, 0x95, 0x05, 0x06
PSEUDO_MAP_FD, PSEUDO_MAP_VALUE, PSEUDO_FUNC, PSEUDO_CALL = 1, 2, 4, 1


@dataclass(frozen=True, slots=True)
class Insn:
    """One 8-byte instruction."""

    code: int
    registers: int
    offset: int
    imm: int

    @property
    def source(self) -> int:
        return self.registers >> 4


@dataclass(frozen=True, slots=True)
class Given:
    """What the kernel was given: the instructions, and the maps by descriptor."""

    insns: tuple[Insn, ...]
    maps: Mapping[int, str]
    said: str


OTHER_SIZES = frozenset(
    {
        MapType.RINGBUF, MapType.PERF_EVENT_ARRAY, MapType.CGROUP_STORAGE,
        MapType.PERCPU_CGROUP_STORAGE, MapType.SK_STORAGE, MapType.TASK_STORAGE,
        MapType.INODE_STORAGE,
    }
)  # fmt: skip
"""Types of maps for which 0 entries is no gap, or that libbpf sizes."""


def give(
    data: bytes, program: str, prog_type: int, log_level: int = 0, *, alone: bool = True
) -> Given:
    """Load one program of the object, the others left out, and read back what was given.

    ``prog_type`` counts where the section's name says none. Maps whose size the object leaves to
    its loader get one entry. With ``alone`` false all programs are loaded. Raises LibbpfError.
    """
    with ObjectFile.open(data, "compare") as obj:
        for one in obj.programs.values():
            one.set_autoload(one.name == program or not alone)
            if one.type == ProgType.UNSPEC:
                one.set_type(ProgType(prog_type))
        for found in obj.maps.values():
            if found.max_entries == 0 and found.type not in OTHER_SIZES:
                found.set_max_entries(1)
            if found.type == MapType.STACK_TRACE and not found.value_size:
                raise LibbpfError(f"{found.name}: its value size is the loader's to set", 22)
        said = obj.load(log_level)
        raw = obj.programs[program].instructions()
        maps = {int(one._get("fd")): one.name for one in obj.maps.values()}
    insns = []
    for at in range(0, len(raw), 8):
        offset = int.from_bytes(raw[at + 2 : at + 4], "little", signed=True)
        imm = int.from_bytes(raw[at + 4 : at + 8], "little", signed=True)
        insns.append(Insn(raw[at], raw[at + 1], offset, imm))
    return Given(tuple(insns), maps, said)


def differences(old: Given, new: Given, strategy: str) -> list[str]:
    """What of the original's reachable instructions has no equal in the patched program."""
    starts = _starts(new, strategy)
    tried = [_walk(old, new, start, strategy) for start in starts]
    return min(tried, key=len, default=["the body was not found"])


def reached(old: Given) -> int:
    """How many of the original's instructions a walk meets (for numbers in reports)."""
    return len(_meet(old, old, 0, "subprog")[1])


def _starts(new: Given, strategy: str) -> list[int]:
    """Where the body begins in the patched program."""
    if strategy != "subprog":
        return [0, 1]
    for at, insn in enumerate(new.insns[:3]):
        if insn.code == CALL and insn.source == PSEUDO_CALL:
            return [at + 1 + insn.imm]
    return []


def _walk(old: Given, new: Given, start: int, strategy: str) -> list[str]:
    return _meet(old, new, start, strategy)[0]


def _meet(old: Given, new: Given, start: int, strategy: str) -> tuple[list[str], dict[int, int]]:
    """Walk both programs in step. The pairs met, and what differs."""
    pairs: dict[int, int] = {}
    main: set[int] = set()
    said: list[str] = []
    todo: list[tuple[int, int, bool]] = [(0, start, True)]
    highest = start
    jumps: list[tuple[int, int]] = []  # exits that became jumps: where, and to where
    while todo and not said:
        o, p, in_main = todo.pop()
        while True:
            if o in pairs:
                if pairs[o] != p:
                    said.append(f"instruction {o} stands for {pairs[o]} and for {p}")
                break
            if not (0 <= p < len(new.insns) and 0 <= o < len(old.insns)):
                said.append(f"instruction {o} has no equal: {p} is outside")
                break
            pairs[o] = p
            if in_main:
                main.add(o)
                highest = max(highest, p)
            mine, theirs = old.insns[o], new.insns[p]
            if mine.code == EXIT:
                if theirs != mine:
                    if strategy == "subprog" or not in_main or theirs.code != JA:
                        said.append(f"exit {o} became {theirs} at {p}")
                    jumps.append((p, p + 1 + theirs.offset))
                break
            wide = mine.code == WIDE
            if not _same(old, new, o, p):
                said.append(f"instruction {o}: {mine} became {theirs} at {p}")
                break
            if wide:
                if mine.source == PSEUDO_FUNC:
                    todo.append((o + 1 + mine.imm, p + 1 + theirs.imm, False))
                pairs[o + 1] = p + 1
                o, p = o + 2, p + 2
                continue
            if mine.code == CALL and mine.source == PSEUDO_CALL:
                todo.append((o + 1 + mine.imm, p + 1 + theirs.imm, False))
            if mine.code == JA:
                o, p = o + 1 + mine.offset, p + 1 + theirs.offset
                continue
            if mine.code == JA32:
                o, p = o + 1 + mine.imm, p + 1 + theirs.imm
                continue
            if mine.code & 7 in (5, 6) and mine.code != CALL:
                todo.append((o + 1 + mine.offset, p + 1 + theirs.offset, in_main))
            o, p = o + 1, p + 1
    if not said:
        inside = {pairs[o] for o in main}
        said += [f"exit at {at} jumps into the body, to {to}" for at, to in jumps if to in inside]
    return said, pairs


def _same(old: Given, new: Given, o: int, p: int) -> bool:
    mine, theirs = old.insns[o], new.insns[p]
    if (mine.code, mine.registers, mine.offset) != (theirs.code, theirs.registers, theirs.offset):
        return False
    if mine.code == CALL and mine.source == PSEUDO_CALL:
        return True
    if mine.code != WIDE:
        return mine.imm == theirs.imm
    if mine.source == PSEUDO_FUNC:
        return True
    if mine.source in (PSEUDO_MAP_FD, PSEUDO_MAP_VALUE):
        if old.maps[mine.imm] != new.maps[theirs.imm]:
            return False
        return old.insns[o + 1] == new.insns[p + 1]
    return mine.imm == theirs.imm and old.insns[o + 1] == new.insns[p + 1]

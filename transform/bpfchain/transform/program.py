"""Finding a program in an object, and what it can reach: calls, callbacks, helpers, tail calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from . import isa
from . import records as r
from .btf import Btf
from .btf_ext import CORE_RELO, BtfExt
from .elf import Object, Relocation, Section, SectionId, Symbol
from .errors import RefusedError, UsageError, nearest

__all__ = ["Code", "Function", "Reach", "find_program", "programs_of", "reach_of"]


@dataclass(frozen=True, slots=True)
class Function:
    """A function: a FUNC symbol and its section."""

    symbol: Symbol
    section: Section

    @property
    def name(self) -> str:
        return self.symbol.name

    @property
    def what(self) -> str:
        """How errors name it: ``program filter (xdp)``."""
        return f"program {self.name} ({self.section.name})"


@dataclass(frozen=True, slots=True)
class Code:
    """A function's instructions and what applies to their slots."""

    insns: list[isa.Insn]
    relocations: dict[int, Relocation]
    adjusted: frozenset[int]
    """Slots with a CO-RE relocation."""


def programs_of(obj: Object) -> tuple[Function, ...]:
    """Entry programs: global functions of executable sections other than ``.text``."""
    found = []
    for section in obj.sections:
        if section.executable and section.name != ".text":
            found += [
                Function(symbol, section)
                for symbol in obj.functions(section.id)
                if symbol.bind != r.STB_LOCAL
            ]
    return tuple(found)


def find_program(obj: Object, name: str | None, taken: frozenset[str]) -> Function:
    """The program to patch. ``taken`` are names of programs that the patch has made or changed.

    Raises UsageError where a name is missing or wrong, RefusedError where there is none that can
    be patched.
    """
    programs = programs_of(obj)
    if name is not None:
        for program in programs:
            if program.name == name:
                return _checked(obj, program)
        close = nearest(name, [program.name for program in programs])
        raise UsageError(
            f"no program named {name!r}",
            f"did you mean {close}?" if close else _listing(programs),
        )
    free = [program for program in programs if program.name not in taken]
    if len(free) == 1:
        return _checked(obj, free[0])
    if not programs:
        raise _no_programs(obj)
    if not free:
        return programs[0]
    names = ", ".join(program.name for program in free)
    raise UsageError(f"it holds {len(free)} programs ({names}): choose one with --program")


def _listing(programs: tuple[Function, ...]) -> str:
    return "its programs: " + (", ".join(program.name for program in programs) or "none")


def _no_programs(obj: Object) -> RefusedError:
    for section in obj.sections:
        if section.executable and section.name != ".text" and section.data:
            symbols = obj.by_place.get(section.id, ())
            if any(s.type == r.STT_FUNC and s.bind == r.STB_LOCAL for s in symbols):
                return RefusedError(
                    f"section {section.name}: its programs are static: no loader takes them",
                    "compile without static on the program",
                )
            return RefusedError(
                f"section {section.name} holds code but no FUNC symbol",
                "compile with clang 11 or newer, which gives programs a type and size",
            )
    return RefusedError(
        "it holds no program: no executable section but .text has a global function"
    )


def _checked(obj: Object, program: Function) -> Function:
    symbol, section = program.symbol, program.section
    if not symbol.size or symbol.size % isa.INSN_SIZE or symbol.value % isa.INSN_SIZE:
        raise RefusedError(
            f"{program.what}: {symbol.size} bytes at {symbol.value} are no instructions"
        )
    if symbol.end > len(section.data):
        raise RefusedError(f"{program.what}: ends behind its section, at {symbol.end}")
    for other in obj.functions(section.id):
        if other.id != symbol.id and other.value < symbol.end and symbol.value < other.end:
            raise RefusedError(f"{program.what}: overlaps with {other.name}")
    return program


def code_of(obj: Object, function: Function, btf: Btf | None, ext: BtfExt | None) -> Code:
    """Decode a function."""
    symbol, section = function.symbol, function.section
    insns = isa.decode(section.data[symbol.value : symbol.end], obj.order, what=function.what)
    relocations: dict[int, Relocation] = {}
    for item in obj.relocations(section.id):
        if symbol.value <= item.offset < symbol.end:
            slot, rest = divmod(item.offset - symbol.value, isa.INSN_SIZE)
            if rest or slot in relocations:
                raise RefusedError(
                    f"{function.what}: relocation at {item.offset} is not understood"
                )
            relocations[slot] = item
    adjusted: frozenset[int] = frozenset()
    if btf is not None and ext is not None:
        records = ext.parts[CORE_RELO].of(btf.offsets_of(section.name))
        adjusted = frozenset(
            (record.offset - symbol.value) // isa.INSN_SIZE
            for record in records
            if symbol.value <= record.offset < symbol.end
        )
    return Code(insns, relocations, adjusted)


@dataclass(frozen=True, slots=True)
class Reach:
    """What a program can get to through its calls."""

    functions: tuple[Function, ...]
    """Functions other than the program itself, callbacks included."""
    helpers: frozenset[int]
    kfuncs: frozenset[str]
    own_tail_calls: bool
    """The program itself makes tail calls."""
    callee_tail_calls: bool
    """One of the functions does."""
    own_ld_abs: bool
    callee_ld_abs: bool
    depth: int
    """Frames of the longest call chain, the program's own included."""
    edges: dict[tuple[SectionId, int], set[tuple[SectionId, int]]]
    """Which function (section, offset) calls, or takes the address of, which."""
    tail_callers: frozenset[tuple[SectionId, int]]
    """Functions that make tail calls."""


def reach_of(obj: Object, program: Function, code: Code) -> Reach:
    """Follow calls and function addresses. Raises RefusedError for a call that nobody can follow."""
    helpers: set[int] = set()
    kfuncs: set[str] = set()
    edges: dict[tuple[SectionId, int], set[tuple[SectionId, int]]] = {}
    seen: dict[tuple[SectionId, int], Function] = {}
    tail: dict[tuple[SectionId, int], bool] = {}
    ld_abs: dict[tuple[SectionId, int], bool] = {}
    root = (program.section.id, program.symbol.value)
    work: list[tuple[Function, Code | None]] = [(program, code)]
    seen[root] = program
    while work:
        function, known = work.pop()
        key = (function.section.id, function.symbol.value)
        body = known if known is not None else code_of(obj, function, None, None)
        edges[key] = set()
        tail[key] = ld_abs[key] = False
        for slot, insn in enumerate(body.insns):
            item = body.relocations.get(slot)
            if insn.opcode == isa.CALL and insn.src == 0 and item is None:
                helpers.add(insn.imm)
                tail[key] |= insn.imm == isa.TAIL_CALL
            elif insn.opcode in isa.LD_ABS_IND:
                ld_abs[key] = True
            elif insn.opcode == isa.CALL:
                name = _extern(obj, item) if item is not None else None
                if name is not None:
                    kfuncs.add(name)
                elif insn.src == isa.PSEUDO_KFUNC_CALL:
                    kfuncs.add(f"kfunc {insn.imm}")
                else:
                    edges[key].add(_call_target(obj, function, slot, insn, item))
            elif insn.wide and item is not None:
                target = _address_target(obj, insn, item)
                if target is not None:
                    edges[key].add(target)
        for place in edges[key]:
            if place not in seen:
                callee = _function_at(obj, place, function)
                seen[place] = callee
                work.append((callee, None))
    others = tuple(function for key, function in seen.items() if key != root)
    return Reach(
        functions=others,
        helpers=frozenset(helpers),
        kfuncs=frozenset(kfuncs),
        own_tail_calls=tail[root],
        callee_tail_calls=any(flag for key, flag in tail.items() if key != root),
        own_ld_abs=ld_abs[root],
        callee_ld_abs=any(flag for key, flag in ld_abs.items() if key != root),
        depth=_depth(edges, root),
        edges=edges,
        tail_callers=frozenset(key for key, flag in tail.items() if flag),
    )


def _extern(obj: Object, item: Relocation) -> str | None:
    symbol = obj.symbol_by_id[item.symbol]
    return symbol.name if symbol.place is None else None


def _call_target(
    obj: Object, function: Function, slot: int, insn: isa.Insn, item: Relocation | None
) -> tuple[SectionId, int]:
    if item is None:
        if function.section.name != ".text":
            raise RefusedError(
                f"{function.what}: instruction {slot} calls within its section without a relocation",
                "loaders bind such a call to something else: compile functions into .text",
            )
        return function.section.id, function.symbol.value + (slot + 1 + insn.imm) * isa.INSN_SIZE
    symbol = obj.symbol_by_id[item.symbol]
    assert symbol.place is not None
    return symbol.place, symbol.value + (insn.imm + 1) * isa.INSN_SIZE


def _address_target(obj: Object, insn: isa.Insn, item: Relocation) -> tuple[SectionId, int] | None:
    symbol = obj.symbol_by_id[item.symbol]
    if symbol.place is None or not obj.by_id[symbol.place].executable:
        return None
    return symbol.place, symbol.value + insn.imm


def _function_at(obj: Object, place: tuple[SectionId, int], caller: Function) -> Function:
    for symbol in obj.functions(place[0]):
        if symbol.value == place[1]:
            return Function(symbol, obj.by_id[place[0]])
    section = obj.by_id[place[0]].name if place[0] in obj.by_id else "?"
    raise RefusedError(f"{caller.what}: refers to {section}+{place[1]}, where no function begins")


def _depth(
    edges: dict[tuple[SectionId, int], set[tuple[SectionId, int]]], root: tuple[SectionId, int]
) -> int:
    known: dict[tuple[SectionId, int], int] = {}

    def walk(key: tuple[SectionId, int], above: frozenset[tuple[SectionId, int]]) -> int:
        if key in above or len(above) > 64:
            return 1  # recursion: the verifier refuses it before depth matters
        if key not in known:
            known[key] = 1 + max((walk(k, above | {key}) for k in edges.get(key, ())), default=0)
        return known[key]

    return walk(root, frozenset())


def references_to(obj: Object, program: Function) -> Iterator[tuple[str, int]]:
    """Every place (section, offset) in the object that refers to the program."""
    place, start, end = program.section.id, program.symbol.value, program.symbol.end
    inside = frozenset(symbol.id for symbol in obj.by_place.get(place, ()))
    for section in obj.sections:
        if section.type != r.SHT_REL or section.target is None:
            continue
        target = obj.by_id[section.target]
        if target.name.startswith((".debug_", ".BTF", ".eh_frame")):
            continue
        if inside.isdisjoint(obj.relocated_symbols(section)):
            continue
        for item in obj.decode_relocations(section):
            symbol = obj.symbol_by_id[item.symbol]
            if symbol.place != place:
                continue
            at = symbol.value + _addend(obj, target, item)
            if start <= at < end or symbol.id == program.symbol.id:
                yield target.name, item.offset


def _addend(obj: Object, target: Section, item: Relocation) -> int:
    """What a relocation adds to its symbol, in bytes; it is held in the place it relocates."""
    data = target.data[item.offset : item.offset + 8]
    if len(data) < 8 and not (len(data) >= 4 and item.type == r.R_BPF_64_ABS32):
        raise RefusedError(f"section {target.name}: relocation at {item.offset} is outside of it")
    if target.executable:
        insn = isa.decode(data, obj.order)[0]
        return (insn.imm + 1) * isa.INSN_SIZE if insn.opcode == isa.CALL else insn.imm
    width = 4 if item.type in (r.R_BPF_64_ABS32, r.R_BPF_64_NODYLD32) else 8
    return int.from_bytes(data[:width], "little" if obj.order == "<" else "big")

"""Functions of an object, relocated, and put together into programs.

As libbpf: a program's own instructions first, then every subprogram at its first call, depth first.
Calls and wide loads are found by searching the opcode bytes, so that time goes by what is patched.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from struct import Struct
from typing import TYPE_CHECKING

from bpfchain.transform import isa
from bpfchain.transform import records as r
from bpfchain.transform.elf import Object, Section, SectionId, Symbol, SymbolId
from bpfchain.transform.errors import RefusedError

from .externs import Extern, Externs, missing
from .link_maps import ObjectMaps

if TYPE_CHECKING:
    from .core_relo import CoreRelocations

__all__ = ["Code", "Linked"]

PSEUDO_MAP, PSEUDO_MAP_VALUE, PSEUDO_BTF_ID = 1, 2, 3
_IMM = Struct("<i")
_WORD = Struct("<I")


@dataclass(slots=True)
class _Function:
    """A function's instructions, relocated; what still depends on the program it is put into."""

    name: str
    section: str
    first: int
    code: bytearray
    calls: list[tuple[int, tuple[int, int]]] = field(default_factory=list)
    """Instruction, and (section, offset) of the function called or whose address is loaded."""
    maps: list[tuple[int, int]] = field(default_factory=list)
    """Instruction (a wide load), and the map's index."""
    kfuncs: list[tuple[int, str]] = field(default_factory=list)
    poisoned: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Linked:
    """A program with its subprograms."""

    name: str
    section: str
    code: bytearray = field(default_factory=bytearray)
    maps: list[int] = field(default_factory=list)
    pieces: list[tuple[int, str, int]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    kfuncs: list[tuple[int, str]] = field(default_factory=list)
    poisoned: list[int] = field(default_factory=list)


class Code:
    """All code of an object. ``programs``: name -> symbol of the entry programs, in order."""

    def __init__(
        self, obj: Object, maps: ObjectMaps, externs: Externs, core: CoreRelocations | None
    ) -> None:
        self._obj, self._maps, self._externs, self._core = obj, maps, externs, core
        self._starts: dict[tuple[int, int], Symbol] = {}
        self._known: dict[tuple[int, int], _Function] = {}
        self._relocations: dict[int, list[tuple[int, int]]] = {}
        self.programs: dict[str, Symbol] = {}
        for section in obj.sections:
            if not section.executable:
                continue
            for symbol in obj.functions(section.id):
                self._starts.setdefault((section.id, symbol.value), symbol)
                if section.name != ".text" and symbol.bind != r.STB_LOCAL:
                    self.programs[symbol.name] = symbol

    def link(self, program: Symbol) -> Linked:
        """The program as a whole. Raises RefusedError where libbpf would not load it."""
        assert program.place is not None
        main = (int(program.place), program.value)
        function = self._function(main)
        linked = Linked(program.name, function.section)
        starts: dict[tuple[int, int], int] = {}
        self._append(linked, main, starts)
        return linked

    def _append(
        self, linked: Linked, at: tuple[int, int], starts: dict[tuple[int, int], int]
    ) -> None:
        # a stack of its own: programs call deeper than Python likes only when they are broken
        start = self._place(linked, at, starts)
        todo = [(start, iter(self._known[at].calls))]
        while todo:
            base, calls = todo[-1]
            for insn, target in calls:
                known = starts.get(target)
                if known is None:
                    self._function(target)
                    known = self._place(linked, target, starts)
                    todo.append((known, iter(self._known[target].calls)))
                    _IMM.pack_into(linked.code, (base + insn) * 8 + 4, known - base - insn - 1)
                    break
                _IMM.pack_into(linked.code, (base + insn) * 8 + 4, known - base - insn - 1)
            else:
                todo.pop()

    def _place(
        self, linked: Linked, at: tuple[int, int], starts: dict[tuple[int, int], int]
    ) -> int:
        function = self._known[at]
        start = starts[at] = len(linked.code) // 8
        linked.code += function.code
        linked.pieces.append((start, function.section, function.first))
        linked.names.append(function.name)
        linked.kfuncs += [(start + insn, name) for insn, name in function.kfuncs]
        linked.poisoned += [start + insn for insn in function.poisoned]
        for insn, index in function.maps:
            if index not in linked.maps:
                linked.maps.append(index)
            place = linked.maps.index(index)
            _IMM.pack_into(linked.code, (start + insn) * 8 + 4, place)
        return start

    def _function(self, at: tuple[int, int]) -> _Function:
        known = self._known.get(at)
        if known is None:
            known = self._known[at] = self._relocate(at)
        return known

    def _section_relocations(self, section: Section) -> list[tuple[int, int]]:
        """(instruction, symbol) of all relocations of the section, sorted."""
        found = self._relocations.get(section.id)
        if found is None:
            holder = self._obj.relocation_section(section.id)
            found = []
            if holder is not None:
                for offset, info in r.records_for(self._obj.order).rel.iter_unpack(holder.data):
                    if offset % 8 or offset >= section.size:
                        raise RefusedError(
                            f"section {section.name}: a relocation at {offset} is at no instruction"
                        )
                    found.append((offset // 8, info >> 32))
            found.sort()
            self._relocations[section.id] = found
        return found

    def _relocate(self, at: tuple[int, int]) -> _Function:
        symbol = self._starts[at]
        section = self._obj.by_id[SectionId(at[0])]
        if not symbol.size or symbol.size % 8 or symbol.value % 8 or symbol.end > len(section.data):
            raise RefusedError(
                f"section {section.name}: {symbol.name}: {symbol.size} bytes at {symbol.value} are "
                "no instructions"
            )
        first, count = symbol.value // 8, symbol.size // 8
        function = _Function(
            symbol.name, section.name, first, bytearray(section.data[symbol.value : symbol.end])
        )
        if self._core is not None:
            function.poisoned = self._core.apply(function.code, section.name, first)
        relocated = set()
        relocations = self._section_relocations(section)
        for i in range(bisect_left(relocations, (first, -1)), len(relocations)):
            insn, target = relocations[i]
            if insn >= first + count:
                break
            relocated.add(insn - first)
            self._relocate_one(
                function, section, insn - first, self._obj.symbol_by_id[SymbolId(target)]
            )
        self._plain_calls(function, section, relocated, at)
        function.calls.sort()
        return function

    def _plain_calls(
        self, function: _Function, section: Section, relocated: set[int], at: tuple[int, int]
    ) -> None:
        """Calls that the compiler resolved itself: the distance is that in the section."""
        code = function.code
        opcodes = code[::8]
        insn = opcodes.find(isa.CALL)
        while insn >= 0:
            if code[insn * 8 + 1] >> 4 == isa.PSEUDO_CALL and insn not in relocated:
                if section.name != ".text":
                    raise RefusedError(
                        f"section {section.name}: {function.name}: the call at instruction {insn} "
                        "has no relocation: libbpf would take it for one of .text",
                        "compile subprograms as static functions without SEC()",
                    )
                (distance,) = _IMM.unpack_from(code, insn * 8 + 4)
                offset = at[1] + (insn + distance + 1) * 8
                function.calls.append((insn, self._callee(function, section, at[0], offset, insn)))
            insn = opcodes.find(isa.CALL, insn + 1)

    def _callee(
        self, function: _Function, section: Section, where: int, offset: int, insn: int
    ) -> tuple[int, int]:
        if (where, offset) not in self._starts:
            name = self._obj.by_id[SectionId(where)].name
            raise RefusedError(
                f"section {section.name}: {function.name}: instruction {insn} refers to no function:"
                f" {name}+{offset}"
            )
        return where, offset

    def _relocate_one(
        self, function: _Function, section: Section, insn: int, symbol: Symbol
    ) -> None:
        code, at = function.code, insn * 8
        opcode = code[at]
        if opcode not in (isa.CALL, isa.LDDW):
            raise RefusedError(
                f"section {section.name}: {function.name}: instruction {insn} (opcode {opcode:#x}) "
                f"is relocated against {symbol.name}, and can not be"
            )
        (imm,) = _IMM.unpack_from(code, at + 4)
        if symbol.place is None:
            extern = self._externs.by_symbol.get(symbol.id)
            if extern is None:
                raise missing(section.name, symbol)
            self._extern(function, insn, extern)
            return
        place, target = int(symbol.place), self._obj.by_id[symbol.place]
        if target.executable:
            if opcode == isa.CALL:
                offset = symbol.value + (imm + 1) * 8
            else:
                offset = symbol.value + imm
                self._pseudo(code, at, isa.PSEUDO_FUNC, 0, 0)
            function.calls.append((insn, self._callee(function, section, place, offset, insn)))
            return
        if opcode == isa.CALL:
            raise RefusedError(
                f"section {section.name}: {function.name}: instruction {insn} calls {symbol.name}, "
                f"which is in {target.name}"
            )
        data = self._maps.data.get(place)
        if data is not None:
            self._pseudo(code, at, PSEUDO_MAP_VALUE, 0, symbol.value + imm)
            function.maps.append((insn, data))
            return
        index = self._maps.at.get((place, symbol.value))
        if index is None:
            raise RefusedError(
                f"section {section.name}: {function.name}: instruction {insn} refers to "
                f"{symbol.name} in {target.name}, which is no map and no global data"
            )
        self._pseudo(code, at, PSEUDO_MAP, 0, 0)
        function.maps.append((insn, index))

    def _extern(self, function: _Function, insn: int, extern: Extern) -> None:
        code, at = function.code, insn * 8
        if code[at] == isa.CALL:
            if extern.kind != "function":
                raise RefusedError(f"{function.name}: calls {extern.name}, which is no function")
            code[at + 1] = isa.PSEUDO_KFUNC_CALL << 4 | code[at + 1] & 15
            _IMM.pack_into(code, at + 4, 0)
            function.kfuncs.append((insn, extern.name))
        elif extern.kind == "kconfig":
            assert self._maps.kconfig is not None
            self._pseudo(code, at, PSEUDO_MAP_VALUE, 0, extern.value)
            function.maps.append((insn, self._maps.kconfig))
        else:
            typed = extern.kind in ("typed", "function") and extern.value
            low, high = extern.value & 0xFFFF_FFFF, extern.value >> 32 & 0xFFFF_FFFF
            self._pseudo(code, at, PSEUDO_BTF_ID if typed else 0, low, high)

    @staticmethod
    def _pseudo(code: bytearray, at: int, source: int, low: int, high: int) -> None:
        code[at + 1] = source << 4 | code[at + 1] & 15
        _WORD.pack_into(code, at + 4, low & 0xFFFF_FFFF)
        _WORD.pack_into(code, at + 12, high & 0xFFFF_FFFF)

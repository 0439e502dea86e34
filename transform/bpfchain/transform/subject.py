"""What a patch works on: the object as read, the program in it, and what was found out about both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from .btf import Btf, read_btf
from .btf_ext import CORE_RELO, FUNC_INFO, LINE_INFO, BtfExt, read_btf_ext
from .elf import Object, SectionId
from .flow import Flow, analyse
from .isa import JMP32
from .link import Link
from .program import Code, Function, Reach, code_of

__all__ = ["Subject", "entry_names", "flow_of", "read_types"]


@dataclass(frozen=True)
class Subject:
    """The object and one program of it."""

    obj: Object
    btf: Btf | None
    ext: BtfExt | None
    program: Function
    code: Code
    reach: Reach
    flow: Flow

    @cached_property
    def functions(self) -> tuple[tuple[Function, Code], ...]:
        """The functions that the program can reach, decoded."""
        return tuple(
            (function, code_of(self.obj, function, self.btf, self.ext))
            for function in self.reach.functions
        )

    @cached_property
    def frames(self) -> dict[tuple[SectionId, int], int]:
        """Each function's own stack in bytes, by section and offset; the program first."""
        frames = {(self.program.section.id, self.program.symbol.value): self.flow.depth}
        for function, code in self.functions:
            place = (function.section.id, function.symbol.value)
            frames[place] = flow_of(self.obj, function, code).depth
        return frames

    @cached_property
    def func_type(self) -> int | None:
        """The program's FUNC type id, by func_info."""
        if self.btf is None or self.ext is None:
            return None
        names = self.btf.offsets_of(self.program.section.name)
        for record in self.ext.parts[FUNC_INFO].of(names):
            if record.offset == self.program.symbol.value:
                return int.from_bytes(record.rest[:4], "little" if self.obj.order == "<" else "big")
        return None

    @cached_property
    def has_lines(self) -> bool:
        """Whether the program has line info: a record at its first instruction."""
        if self.btf is None or self.ext is None:
            return False
        names = self.btf.offsets_of(self.program.section.name)
        records = self.ext.parts[LINE_INFO].of(names)
        return any(record.offset == self.program.symbol.value for record in records)

    @property
    def has_core(self) -> bool:
        """Whether the object has CO-RE relocations."""
        return self.ext is not None and bool(self.ext.parts[CORE_RELO].packed)

    @property
    def uses_jmp32(self) -> bool:
        """Whether the program already asks for a host that knows the JMP32 class."""
        return any(insn.klass == JMP32 for insn in self.code.insns)

    @property
    def makes_tail_calls(self) -> bool:
        """Whether the program or a function it calls makes tail calls of its own."""
        return self.reach.own_tail_calls or self.reach.callee_tail_calls


def read_types(obj: Object) -> tuple[Btf | None, BtfExt | None]:
    """Decode .BTF and .BTF.ext, None for what the object does not have."""
    types, extra = obj.section(".BTF"), obj.section(".BTF.ext")
    if types is None or not types.data:
        return None, None
    btf = read_btf(types.data, obj.order)
    return btf, read_btf_ext(extra.data, obj.order) if extra is not None and extra.data else None


def flow_of(obj: Object, function: Function, code: Code) -> Flow:
    """Dataflow of one function of the object."""
    relocated = {}
    for slot, item in code.relocations.items():
        symbol = obj.symbol_by_id[item.symbol]
        in_code = symbol.place is not None and obj.by_id[symbol.place].executable
        relocated[slot] = in_code and code.insns[slot].wide
    return analyse(code.insns, what=function.what, relocated=relocated, adjusted=code.adjusted)


def entry_names(program: str, link: Link) -> dict[int | None, str]:
    """The entry program of each state: ``NAME``, ``NAME__redirect`` …"""
    names = {}
    for state in link.states:
        suffix = ""
        if state is not None:
            suffix = "__" + link.hook.name_of(state).lower().replace("-", "m")
        names[state] = program + suffix
    return names

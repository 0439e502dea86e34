"""Deliberate faults in a patched object, for tests of the proof: each one a patch that must not pass.

Written against the subject ``tests/verify/subjects/codes.c`` patched as link 1 (inline, two entries,
context in a stack slot) and, where a fault needs another shape, against another subject of
``SUBJECTS``. Faults edit the object through the transformer's own model: tests may, the checker may
not. ``dynamic`` says whether running can show the fault at all; where not, why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from struct import Struct

from bpfchain.transform import btf_ext, isa
from bpfchain.transform.btf_ext import Record, read_btf_ext, write_btf_ext
from bpfchain.transform.elf import Object, Relocation, Section
from bpfchain.transform.elf_edit import change_section, drop_sections
from bpfchain.transform.elf_read import read_object
from bpfchain.transform.elf_write import write_object
from bpfchain.transform.isa import Insn
from bpfchain.transform.request import Request

__all__ = ["FAULTS", "SUBJECTS", "Fault"]

SUBJECTS: dict[str, Request] = {
    "slots": Request(
        index=1, success="PASS,TX", redirect="REDIRECT,DROP", saved="REDIRECT", strategy="inline"
    ),
    "subprog": Request(
        index=1, success="PASS,TX", redirect="REDIRECT,DROP", saved="REDIRECT", strategy="subprog"
    ),
    "map": Request(index=0, success="PASS,TX", redirect="REDIRECT,DROP", saved_code="map"),
    "plain": Request(index=0),
}
"""How the subject is patched, by name."""

_LINE = Struct("<III")


class Editor:
    """A patched object being damaged."""

    def __init__(self, data: bytes) -> None:
        self.obj: Object = read_object(data)

    def section(self, name: str) -> Section:
        found = self.obj.section(name)
        assert found is not None, name
        return found

    def insns(self, name: str = "xdp") -> list[Insn]:
        return list(isa.decode(self.section(name).data, self.obj.order))

    def put(self, insns: list[Insn], name: str = "xdp") -> None:
        self.set_data(name, isa.encode(insns, self.obj.order))

    def set_data(self, name: str, data: bytes) -> None:
        self.obj = change_section(self.obj, self.section(name).id, data)

    def change(self, where: Callable[[Insn], bool], nth: int = 0, *, name: str = "xdp",
               **fields: int) -> int:  # fmt: skip
        """Change the nth instruction that fits; its index."""
        insns = self.insns(name)
        index = [i for i, insn in enumerate(insns) if where(insn)][nth]
        assert insns[index]._replace(**fields) != insns[index], "the fault changes nothing"
        insns[index] = insns[index]._replace(**fields)
        self.put(insns, name)
        return index

    def tail_calls(self) -> list[int]:
        return [i for i, insn in enumerate(self.insns()) if insn == Insn(isa.CALL, imm=12)]

    def before_call(self, nth: int, back: int, **fields: int) -> None:
        """Change the instruction ``back`` slots before the nth tail call."""
        insns = self.insns()
        index = self.tail_calls()[nth] - back
        assert insns[index]._replace(**fields) != insns[index], "the fault changes nothing"
        insns[index] = insns[index]._replace(**fields)
        self.put(insns)

    def relocations(self, name: str = "xdp") -> list[Relocation]:
        return list(self.obj.relocations(self.section(name).id))

    def put_relocations(self, relocations: list[Relocation], name: str = "xdp") -> None:
        rel = self.obj.relocation_section(self.section(name).id)
        assert rel is not None
        self.obj = change_section(self.obj, rel.id, self.obj.encode_relocations(relocations))

    def symbol(self, name: str) -> int:
        return next(symbol.id for symbol in self.obj.symbols if symbol.name == name)

    def change_symbol(self, name: str, **fields: int) -> None:
        symbols = tuple(
            replace(s, **fields) if s.name == name else s  # type: ignore[arg-type]
            for s in self.obj.symbols
        )
        assert symbols != self.obj.symbols, "the fault changes nothing"
        self.obj = replace(self.obj, symbols=symbols, _decoded={})

    def records(self, kind: int, change: Callable[[list[Record]], list[Record]]) -> None:
        """Change the records of one kind of the section with the programs."""
        ext = read_btf_ext(self.section(".BTF.ext").data, self.obj.order)
        part = ext.parts[kind]
        blocks = []
        done = False
        for string, block in part.packed:
            packed = block
            found = list(part._decode(packed))
            if not done and max(rec.offset for rec in found) > 0x100:  # xdp, not .text
                changed = change(found)
                assert changed != found, "the fault changes nothing"
                word = Struct("<I")
                packed = b"".join(word.pack(rec.offset) + rec.rest for rec in changed)
                done = True
            blocks.append((string, packed))
        assert done
        parts = list(ext.parts)
        parts[kind] = replace(part, packed=tuple(blocks))
        a, b, c = parts
        self.set_data(".BTF.ext", write_btf_ext(replace(ext, parts=(a, b, c))))

    def finish(self) -> bytes:
        return write_object(self.obj)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault: what it does to which subject, and whether running can show it."""

    name: str
    do: Callable[[Editor], None]
    subject: str = "slots"
    dynamic: bool = True
    why_not: str = ""

    def apply(self, data: bytes) -> bytes:
        """The damaged object. AssertionError where the subject has not the shape it needs."""
        editor = Editor(data)
        self.do(editor)
        damaged = editor.finish()
        assert damaged != data, "the fault changes nothing"
        return damaged


def is_jump_on(imm: int, *opcodes: int) -> Callable[[Insn], bool]:
    return lambda insn: insn.opcode in opcodes and insn.imm == imm


JEQ, JGT, JGE, JSGT = 0x15, 0x25, 0x35, 0x65
MOV_IMM, MOV_REG, MOV32_REG, LDX_DW, STX_DW = 0xB7, 0xBF, 0xBC, 0x79, 0x7B


def exit_unpatched(e: Editor) -> None:
    """The body's exit, patched to a jump, is an exit again."""
    e.change(lambda i: i == Insn(isa.JA), 0, opcode=isa.EXIT)


def exit_unpatched_in_state(e: Editor) -> None:
    e.change(lambda i: i == Insn(isa.JA), 1, opcode=isa.EXIT)


def jump_off_by_one(e: Editor) -> None:
    e.change(lambda i: i == Insn(isa.JA), 0, offset=1)


def body_jump_off_by_one(e: Editor) -> None:
    e.change(is_jump_on(4, JGT), 0, offset=0)


def wrong_slot(e: Editor) -> None:
    e.before_call(0, 1, imm=3)


def own_slot(e: Editor) -> None:
    e.before_call(0, 1, imm=1)


def wrong_state(e: Editor) -> None:
    """A code of R goes on in the state of another."""
    e.before_call(1, 1, imm=167)


def state_lost(e: Editor) -> None:
    """The entry of a saved REDIRECT goes on as if nothing were saved."""
    e.before_call(3, 1, imm=2)


def context_clobbered(e: Editor) -> None:
    e.before_call(0, 4, offset=-16)


def context_from_another_register(e: Editor) -> None:
    e.before_call(0, 4, opcode=MOV_REG, src=6, offset=0)


def context_of_state_entry(e: Editor) -> None:
    e.before_call(3, 4, offset=-16)


def context_slot_over_buffer(e: Editor) -> None:
    """Kept and reloaded consistently, but where the body has its key."""
    insns = e.insns()
    changed = [
        i._replace(offset=-16) if i.offset == -24 and i.opcode in (LDX_DW, STX_DW) else i
        for i in insns
    ]
    assert changed != insns
    e.put(changed)


def s_and_r_swapped(e: Editor) -> None:
    """Compares of a code of R lead to where those of S lead, and the other way round."""
    insns = e.insns()
    first = next(i for i, x in enumerate(insns) if x.opcode == JGE and x.imm == 2)
    second = next(i for i, x in enumerate(insns) if i > first and x.opcode == JEQ and x.imm == 1)
    a, b = first + insns[first].offset, second + insns[second].offset
    insns[first] = insns[first]._replace(offset=b - first)
    insns[second] = insns[second]._replace(offset=a - second)
    e.put(insns)


def code_of_s_missing(e: Editor) -> None:
    e.change(is_jump_on(3, JGT), 0, imm=2)


def code_of_r_missing(e: Editor) -> None:
    e.change(is_jump_on(4, JEQ), 0, imm=5)


def foreign_code_goes_on(e: Editor) -> None:
    e.change(is_jump_on(2, JGE), 0, imm=0)


def signed_compare(e: Editor) -> None:
    """A negative code passes for one of S."""
    e.change(is_jump_on(3, JGT), 0, opcode=JSGT)
    e.change(is_jump_on(2, JGE), 0, opcode=0xB5, imm=3)  # jle


def upper_half_counts(e: Editor) -> None:
    e.change(lambda i: i.opcode == MOV32_REG and i.dst == 1 and i.src == 0, 0, opcode=MOV_REG)


def result_of_empty_slot(e: Editor) -> None:
    """A code of R at the end of the chain becomes another."""
    insns = e.insns()
    index = e.tail_calls()[1] + 1
    insns[index] = insns[index]._replace(imm=2)
    e.put(insns)


def saved_not_returned(e: Editor) -> None:
    """State REDIRECT, the chain ends: the link's own code instead of the saved one."""
    insns = e.insns()
    index = e.tail_calls()[3] + 1
    assert insns[index].imm == 4
    insns[index] = insns[index]._replace(imm=2)
    e.put(insns)


def result_register(e: Editor) -> None:
    """After a failed tail call, a register that the call left undefined."""
    insns = e.insns()
    index = e.tail_calls()[0] + 1
    assert insns[index] == Insn(MOV_REG, 0, 6)
    insns[index] = insns[index]._replace(src=7)
    e.put(insns)


def body_constant(e: Editor) -> None:
    e.change(lambda i: i == Insn(MOV_IMM, 0, imm=2), 0, imm=0)


def body_register(e: Editor) -> None:
    e.change(lambda i: i.opcode == 0x71 and i.dst == 2 and i.src == 7 and i.offset == 5, 0, src=6)


def body_of_state_entry(e: Editor) -> None:
    e.change(lambda i: i == Insn(MOV_IMM, 0, imm=2), 1, imm=0)


def body_stack_offset(e: Editor) -> None:
    e.change(lambda i: i.opcode == 0x63 and i.offset == -16, 0, offset=-8)


def relocation_to_wrong_map(e: Editor) -> None:
    relocations = e.relocations()
    seen, other = e.symbol("seen"), e.symbol("bytes")
    index = next(i for i, rel in enumerate(relocations) if rel.symbol == seen)
    relocations[index] = replace(relocations[index], symbol=other)  # type: ignore[arg-type]
    e.put_relocations(relocations)


def relocation_of_slots_to_a_map(e: Editor) -> None:
    relocations = e.relocations()
    slots, other = e.symbol("bpfchain_slots"), e.symbol("bytes")
    index = next(i for i, rel in enumerate(relocations) if rel.symbol == slots)
    relocations[index] = replace(relocations[index], symbol=other)  # type: ignore[arg-type]
    e.put_relocations(relocations)


def relocation_lost(e: Editor) -> None:
    relocations = e.relocations()
    e.put_relocations([rel for i, rel in enumerate(relocations) if i != 1])


def relocation_shifted(e: Editor) -> None:
    relocations = e.relocations()
    seen = e.symbol("seen")
    index = next(i for i, rel in enumerate(relocations) if rel.symbol == seen)
    relocations[index] = replace(relocations[index], offset=relocations[index].offset - 8)
    e.put_relocations(relocations)


def core_record_not_moved(e: Editor) -> None:
    e.records(
        btf_ext.CORE_RELO,
        lambda recs: [replace(recs[0], offset=recs[0].offset - 8), *recs[1:]],
    )


def core_record_lost(e: Editor) -> None:
    e.records(btf_ext.CORE_RELO, lambda recs: recs[:-1])


def line_record_shifted(e: Editor) -> None:
    e.records(
        btf_ext.LINE_INFO,
        lambda recs: [*recs[:5], replace(recs[5], offset=recs[5].offset + 8), *recs[6:]],
    )


def line_record_of_another_line(e: Editor) -> None:
    def change(recs: list[Record]) -> list[Record]:
        file, line, column = _LINE.unpack(recs[5].rest)
        changed = replace(recs[5], rest=_LINE.pack(file, line, column + (3 << 10)))
        return [*recs[:5], changed, *recs[6:]]

    e.records(btf_ext.LINE_INFO, change)


def func_info_of_another_type(e: Editor) -> None:
    def change(recs: list[Record]) -> list[Record]:
        return [replace(recs[0], rest=recs[-1].rest), *recs[1:]]

    e.records(btf_ext.FUNC_INFO, change)


def map_value_size(e: Editor) -> None:
    """The type that gives ``bytes`` its value size is the key's."""
    _map_member(e, "bytes", "value", "key")


def slots_too_few(e: Editor) -> None:
    """max_entries of the chain's map."""
    data = bytearray(e.section(".BTF").data)
    wanted, wrong = Struct("<I").pack(8 * 33), Struct("<I").pack(33)
    hits = list(_aligned(data, wanted))
    assert len(hits) == 1, hits
    data[hits[0] : hits[0] + 4] = wrong
    e.set_data(".BTF", bytes(data))


def constant_data_changed(e: Editor) -> None:
    section = e.section(".rodata")
    e.set_data(".rodata", bytes([section.data[0] ^ 4]) + section.data[1:])


def license_changed(e: Editor) -> None:
    e.set_data("license", b"MIT\0")


def section_dropped(e: Editor) -> None:
    e.obj = drop_sections(e.obj, {e.section(".BTF.ext").id})


def call_of_another_function(e: Editor) -> None:
    e.change(lambda i: i.opcode == isa.CALL and i.src == 1, 0, imm=0)


def symbol_too_short(e: Editor) -> None:
    symbol = next(s for s in e.obj.symbols if s.name == "codes")
    e.change_symbol("codes", size=symbol.size - 8)


def entries_swapped(e: Editor) -> None:
    """The entry of nothing saved has the name of the other, and the other way round."""
    a = next(s for s in e.obj.symbols if s.name == "codes")
    b = next(s for s in e.obj.symbols if s.name == "codes__redirect")
    e.change_symbol("codes", value=b.value, size=b.size)
    e.obj = replace(
        e.obj,
        symbols=tuple(
            replace(s, value=a.value, size=a.size) if s.name == "codes__redirect" else s
            for s in e.obj.symbols
        ),
        _decoded={},
    )


def index_of_provenance(e: Editor) -> None:
    data = e.section(".bpfchain").data
    assert b"\0index=1\0" in data
    e.set_data(".bpfchain", data.replace(b"\0index=1\0", b"\0index=2\0"))


def success_of_provenance(e: Editor) -> None:
    import re

    data = e.section(".bpfchain").data
    changed = re.sub(rb"\0success=[^\0]*", b"\0success=2", data)
    assert changed != data
    e.set_data(".bpfchain", changed)


def extra_write(e: Editor) -> None:
    """An instruction of the patch writes to the packet's context instead of reading its own."""
    e.before_call(0, 4, opcode=STX_DW, dst=10, src=6, offset=-8)


def wrapper_calls_another(e: Editor) -> None:
    """The wrapper's call goes to another function of .text."""
    e.change(lambda i: i.opcode == isa.CALL and i.src == 1, 0, imm=-1)


def wrapper_passes_wrong_context(e: Editor) -> None:
    insns = e.insns()
    index = e.tail_calls()[0] - 4
    assert insns[index].opcode == MOV_REG
    insns[index] = insns[index]._replace(src=10)
    e.put(insns)


def moved_body_constant(e: Editor) -> None:
    e.change(lambda i: i == Insn(MOV_IMM, 0, imm=2), 0, name=".text", imm=0)


def c_not_reset(e: Editor) -> None:
    """Link 0 must forget what an earlier packet saved: its reset stores "0 is saved"."""
    insns = e.insns()
    at = _constants_stored(insns)[0]
    assert (insns[at].imm, insns[at + 1].imm) == (0, 0), "link 0 resets first"
    insns[at + 1] = insns[at + 1]._replace(imm=1)
    e.put(insns)


def saved_map_wrong_code(e: Editor) -> None:
    """The value written to the per-CPU map is another code's."""
    insns = e.insns()
    at = _constants_stored(insns)[1]
    insns[at] = insns[at]._replace(imm=insns[at].imm ^ 1)
    e.put(insns)


def _constants_stored(insns: list[Insn]) -> list[int]:
    """Places of ``ldimm64`` that are no relocation: what map mode stores."""
    return [
        i for i, insn in enumerate(insns[:-2])
        if insn.opcode == isa.LDDW and insns[i + 2] == Insn(STX_DW, 0, insn.dst)
    ]  # fmt: skip


def _map_member(e: Editor, map_name: str, member: str, other: str) -> None:
    """Give the anonymous struct of a BTF map's member the type of another member."""
    from bpfchain.transform.btf import read_btf

    btf = read_btf(e.section(".BTF").data, e.obj.order)
    data = bytearray(e.section(".BTF").data)
    word = Struct("<I")
    header = word.unpack_from(data, 4)[0]
    types_at = header + word.unpack_from(data, 8)[0]
    strings_at = header + word.unpack_from(data, 16)[0]

    def text(offset: int) -> str:
        end = data.index(0, strings_at + offset)
        return data[strings_at + offset : end].decode()

    at = types_at
    types: dict[int, tuple[int, int, int, int]] = {}
    number = 1
    extra = {1: 4, 3: 12, 14: 4, 17: 4}
    each = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
    while at < types_at + word.unpack_from(data, 12)[0]:
        name, info, size = Struct("<III").unpack_from(data, at)
        kind, vlen = info >> 24 & 31, info & 0xFFFF
        types[number] = (at, name, kind, size)
        at += 12 + extra.get(kind, 0) + each.get(kind, 0) * vlen
        number += 1
    assert btf is not None
    variable = next(t for t in types.values() if t[2] == 14 and text(t[1]) == map_name)
    struct_at = types[variable[3]][0]
    vlen = word.unpack_from(data, struct_at + 4)[0] & 0xFFFF
    members = {}
    for index in range(vlen):
        place = struct_at + 12 + 12 * index
        members[text(word.unpack_from(data, place)[0])] = place
    data[members[member] + 4 : members[member] + 8] = data[members[other] + 4 : members[other] + 8]
    e.set_data(".BTF", bytes(data))


def _aligned(data: bytes | bytearray, wanted: bytes) -> Iterator[int]:
    at = data.find(wanted)
    while at >= 0:
        if at % 4 == 0:
            yield at
        at = data.find(wanted, at + 1)


FAULTS: tuple[Fault, ...] = (
    Fault("exit unpatched", exit_unpatched),
    Fault("exit unpatched in a state's entry", exit_unpatched_in_state),
    Fault("epilogue jump off by one", jump_off_by_one),
    Fault("body jump off by one", body_jump_off_by_one),
    Fault("wrong slot", wrong_slot),
    Fault("own slot", own_slot),
    Fault("constant of a state wrong", wrong_state),
    Fault("state lost", state_lost),
    Fault("context clobbered", context_clobbered),
    Fault("context from another register", context_from_another_register),
    Fault("context of a state's entry", context_of_state_entry),
    Fault("context slot over a buffer", context_slot_over_buffer),
    Fault("S and R exchanged", s_and_r_swapped),
    Fault("a code of S missing", code_of_s_missing),
    Fault("a code of R missing", code_of_r_missing),
    Fault("a foreign code goes on", foreign_code_goes_on),
    Fault("signed compare", signed_compare, dynamic=False,
          why_not="the subject returns no negative code"),
    Fault("upper half counts", upper_half_counts, dynamic=False,
          why_not="the subject returns no code with a dirty upper half"),
    Fault("result of an empty slot", result_of_empty_slot),
    Fault("saved code not returned", saved_not_returned),
    Fault("result register", result_register),
    Fault("body constant", body_constant),
    Fault("body register", body_register),
    Fault("body of a state's entry", body_of_state_entry),
    Fault("body stack offset", body_stack_offset),
    Fault("relocation to the wrong map", relocation_to_wrong_map),
    Fault("slots relocation to a map", relocation_of_slots_to_a_map),
    Fault("relocation lost", relocation_lost),
    Fault("relocation shifted", relocation_shifted),
    Fault("CO-RE record not moved", core_record_not_moved, dynamic=False,
          why_not="without --btf local offsets stand in the instructions"),
    Fault("CO-RE record lost", core_record_lost, dynamic=False,
          why_not="without --btf local offsets stand in the instructions"),
    Fault("line record shifted", line_record_shifted, dynamic=False, why_not="lines do not run"),
    Fault("line record of another line", line_record_of_another_line, dynamic=False,
          why_not="lines do not run"),
    Fault("func_info of another type", func_info_of_another_type, dynamic=False,
          why_not="types do not run"),
    Fault("map value size", map_value_size),
    Fault("too few slots", slots_too_few, dynamic=False,
          why_not="runs fill the slots that they need in a map of the hook's size"),
    Fault("constant data changed", constant_data_changed),
    Fault("license changed", license_changed, dynamic=False, why_not="the emulator asks no license"),
    Fault("section dropped", section_dropped, dynamic=False, why_not="BTF.ext does not run"),
    Fault("call of another function", call_of_another_function),
    Fault("symbol too short", symbol_too_short, dynamic=False,
          why_not="whether the cut program can be run at all is the linker's matter"),
    Fault("entries swapped", entries_swapped),
    Fault("index of the provenance", index_of_provenance),
    Fault("S of the provenance", success_of_provenance),
    Fault("extra write", extra_write),
    Fault("wrapper calls another function", wrapper_calls_another, "subprog"),
    Fault("wrapper passes a wrong context", wrapper_passes_wrong_context, "subprog"),
    Fault("constant of a moved body", moved_body_constant, "subprog"),
    Fault("C not reset", c_not_reset, "map"),
    Fault("C of another code", saved_map_wrong_code, "map"),
)  # fmt: skip

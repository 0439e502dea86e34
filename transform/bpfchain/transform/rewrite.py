"""Carrying out a plan on the object: sections laid out anew, symbols, BTF, BTF.ext, the chain's map."""

from __future__ import annotations

from dataclasses import dataclass, replace

from . import records as r
from .btf import Btf, Kind, write_btf
from .btf_ext import BtfExt, write_btf_ext
from .btf_maps import (
    PERCPU_ARRAY,
    PROG_ARRAY,
    MapDefinition,
    add_map,
    find_map,
    set_initial_entries,
    static_clone,
)
from .elf import Object, SectionId, SymbolId
from .elf_edit import add_section, add_symbol, change_section, drop_sections, section_symbol
from .epilogue import needs_epilogue
from .errors import RefusedError
from .inline import END_LINE, KEEP_LINE
from .isa import INSN_SIZE
from .layout import Copy, Layout, Piece, apply_layouts, relayout_btf_ext
from .link import Link, saved_map_name
from .plan import Plan, choose_plan
from .program import Function
from .provenance import read_provenance
from .refuse import check_map_count
from .request import Cost, Need, Request
from .stack import check_stack
from .subject import Subject, entry_names
from .subprog import BODY, CALL_LINE

__all__ = ["Patch", "patch_object"]


@dataclass(frozen=True, slots=True)
class Patch:
    """A patched object, and what is to be told of it."""

    obj: Object
    btf: Btf | None
    strategy: str
    why: str
    keep: str | None
    after: Cost
    debug: str
    needs: tuple[Need, ...] = ()
    changed: frozenset[SectionId] = frozenset()
    """Executable sections that were laid out anew."""
    front: int = 0
    """Added instructions before the body in the entry of state none."""


def patch_object(subject: Subject, link: Link, request: Request) -> Patch:
    """Patch the subject's program into the link. Raises RefusedError where no strategy fits."""
    # a failed legacy packet load leaves the program with code 0, a tail call with any
    codes: list[int | None] = [known.code for known in subject.flow.exits]
    codes += [0] * subject.reach.own_ld_abs + [None] * subject.reach.own_tail_calls
    nothing_goes_on = not any(
        needs_epilogue(link, state, code) for state in link.states for code in codes
    )
    if nothing_goes_on and link.states == (None,):
        return _unpatched(subject, link, request)
    obj, btf, maps = _add_maps(subject.obj, _types(subject), link, request)
    obj, text = _text_section(obj)
    with_symbol, text_symbol = section_symbol(obj, text)

    def resolve(name: str) -> tuple[int, SymbolId]:
        return (r.R_BPF_64_32, text_symbol) if name == BODY else (r.R_BPF_64_64, maps[name])

    check_map_count(subject, added=len(maps))
    plan = choose_plan(subject, link, request, resolve, len(obj.by_id[text].data))
    if plan.strategy == "subprog":
        obj = with_symbol
    elif subject.obj.section(".text") is None:
        obj = drop_sections(obj, [text])
    work = _Work(subject, link, request, plan, text)
    return work.carry_out(obj, btf, maps)


def _types(subject: Subject) -> Btf:
    return subject.btf or Btf(subject.obj.order, (), b"\0")


def _text_section(obj: Object) -> tuple[Object, SectionId]:
    text = obj.section(".text")
    if text is not None:
        return obj, text.id
    return add_section(obj, ".text", b"", flags=r.SHF_ALLOC | r.SHF_EXECINSTR, align=8)


def _unpatched(subject: Subject, link: Link, request: Request) -> Patch:
    """A link of which no code goes on, in state none: the program is right as it stands."""
    obj, btf = subject.obj, subject.btf
    if request.pin:
        obj, btf, maps = _add_maps(obj, _types(subject), link, request)
        slot = link.hook.slot(None, link.index)
        obj = set_initial_entries(
            obj, maps[link.slots_map], [(slot, subject.program.symbol.id)], slot + 1
        )
    if btf is not None:
        obj = with_types(obj, btf, subject.ext)
    why = (
        "nothing to patch: the last link of a chain returns its own code"
        if link.ends
        else "nothing to patch: after none of its codes does the chain go on"
    )
    debug = "kept" if _debug_sections(obj) else "none"
    cost = Cost(len(subject.code.insns), check_stack(subject))
    return Patch(obj, btf, "none", why, None, cost, debug)


def _add_maps(
    obj: Object, btf: Btf, link: Link, request: Request
) -> tuple[Object, Btf, dict[str, SymbolId]]:
    """The chain's PROG_ARRAY, and the per-CPU map where the saved code lives in one."""
    room = None
    if request.pin:
        room = max(link.hook.slot(state, link.index) for state in link.states) + 1
    wanted = []
    if request.pin or not link.ends:
        wanted.append(
            MapDefinition(
                link.slots_map, PROG_ARRAY, 4, 4, link.hook.slots, pinned=request.pin, initial=room
            )
        )
    if link.mode == "map":
        name = saved_map_name(link.slots_map)
        wanted.append(MapDefinition(name, PERCPU_ARRAY, 4, 8, 1, pinned=request.pin))
    symbols = {}
    for definition in wanted:
        found = find_map(obj, btf, definition.name)
        if found is None:
            obj, btf, symbols[definition.name] = add_map(obj, btf, definition)
            continue
        symbols[definition.name], numbers = found
        if not read_provenance(obj):
            raise RefusedError(
                f"the name {definition.name} of the chain's map is taken in this object",
                "give the map another name with --slots-map",
            )
        if numbers != dict(definition.numbers()) or request.pin:
            raise RefusedError(
                f"map {definition.name} of another link in this object is defined otherwise, or pinned",
                "give the second chain's map another name with --slots-map",
            )
    return obj, btf, symbols


@dataclass(slots=True)
class _Work:
    """One plan being carried out."""

    subject: Subject
    link: Link
    request: Request
    plan: Plan
    text: SectionId

    def carry_out(self, obj: Object, btf: Btf, maps: dict[str, SymbolId]) -> Patch:
        subject, link, plan = self.subject, self.link, self.plan
        debug = _debug_sections(obj)
        obj = drop_sections(obj, debug)
        names = entry_names(subject.program.name, link)
        btf, entry_layout, spans = self._entries(btf, names)
        layouts = [entry_layout]
        body_name = f"{subject.program.name}__body"
        if plan.strategy == "subprog":
            if any(symbol.name == body_name for symbol in obj.symbols):
                raise RefusedError(f"the name {body_name} of the body's function is taken")
            btf, body_layout = self._body(obj, btf, body_name)
            layouts.append(body_layout)
        before, done = obj, tuple(layouts)
        obj = apply_layouts(obj, done)
        obj = _place_entries(obj, subject.program, spans)
        if plan.strategy == "subprog":
            start = len(before.by_id[self.text].data)
            obj, _ = add_symbol(
                obj, body_name, self.text, start, subject.program.symbol.size,
                bind=r.STB_LOCAL, type=r.STT_FUNC,
            )  # fmt: skip
        btf, ext = _relocated_ext(subject, btf, before, done)
        obj = with_types(obj, btf, ext)
        if self.request.pin:
            ids = {symbol.name: symbol.id for symbol in obj.symbols}
            entries = [(link.hook.slot(state, link.index), ids[n]) for state, n in names.items()]
            room = max(slot for slot, _ in entries) + 1
            obj = set_initial_entries(obj, maps[link.slots_map], entries, room)
        keep = next((entry.keep for entry in plan.entries if entry.keep is not None), None)
        told = None
        if keep is not None:
            told = keep.describe() + ("" if keep.preamble else " (the program's own)")
        count = plan.entries[0].size // INSN_SIZE
        if plan.strategy == "subprog":
            count += len(subject.code.insns)
        return Patch(
            obj, btf, plan.strategy, plan.why, told, Cost(count, plan.stack),
            "dropped" if debug else "none", plan.needs,
            frozenset(layout.section for layout in done),
            plan.entries[0].front if plan.strategy == "inline" else 0,
        )  # fmt: skip

    def _entries(
        self, btf: Btf, names: dict[int | None, str]
    ) -> tuple[Btf, Layout, list[tuple[str, int, int]]]:
        """The program's section: what is before it, its entries, what is behind."""
        program, func = self.subject.program, self.subject.func_type
        section, start, end = program.section, program.symbol.value, program.symbol.end
        functions: list[tuple[int, int]] = []
        spans: list[tuple[str, int, int]] = []
        pieces: list[Piece] = [Copy(section.id, 0, start)] if start else []
        at = start
        for (state, name), entry in zip(names.items(), self.plan.entries, strict=True):
            spans.append((name, at, entry.size))
            if func is not None:
                kind = func
                if state is not None:
                    known = btf.type(func)
                    btf, kind = btf.with_type(Kind.FUNC, name, known.size_or_type, vlen=known.vlen)
                functions.append((at, kind))
            pieces += entry.pieces
            at += entry.size
        if end < len(section.data):
            pieces.append(Copy(section.id, end, len(section.data)))
        return btf, Layout(section.id, tuple(pieces), tuple(functions)), spans

    def _body(self, obj: Object, btf: Btf, name: str) -> tuple[Btf, Layout]:
        """``.text``: what is there, and the body at its end (prepending would break callbacks)."""
        program, func = self.subject.program, self.subject.func_type
        size = len(obj.by_id[self.text].data)
        functions: tuple[tuple[int, int], ...] = ()
        if func is not None:
            btf, clone = static_clone(btf, btf.type(func), name)
            functions = ((size, clone),)
        body = Copy(
            program.section.id, program.symbol.value, program.symbol.end, carry_functions=False
        )
        there = (Copy(self.text, 0, size),) if size else ()
        return btf, Layout(self.text, (*there, body), functions)


def _relocated_ext(
    subject: Subject, btf: Btf, before: Object, layouts: tuple[Layout, ...]
) -> tuple[Btf, BtfExt | None]:
    ext = subject.ext
    if ext is None:
        return btf, None
    for layout in layouts:
        btf, _ = btf.with_string(before.by_id[layout.section].name)
    lines = {}
    if subject.has_lines:
        btf, file = btf.with_string("bpfchain")
        for text in (KEEP_LINE, END_LINE, CALL_LINE):
            btf, line = btf.with_string(text)
            lines[text] = (file, line)
    return btf, relayout_btf_ext(ext, btf, before, layouts, lines)


def _place_entries(obj: Object, program: Function, spans: list[tuple[str, int, int]]) -> Object:
    """The program's symbol covers its entry; entries for further states get symbols of their own."""
    (_, start, size), *further = spans
    placed = tuple(
        replace(symbol, place=program.section.id, value=start, size=size)
        if symbol.id == program.symbol.id
        else symbol
        for symbol in obj.symbols
    )
    obj = replace(obj, symbols=placed)
    for name, at, length in further:
        obj, _ = add_symbol(
            obj, name, program.section.id, at, length, bind=r.STB_GLOBAL, type=r.STT_FUNC
        )
    return obj


def _debug_sections(obj: Object) -> list[SectionId]:
    """DWARF, whose line tables count instructions that now stand elsewhere."""
    return [section.id for section in obj.sections if section.name.startswith(".debug_")]


def with_types(obj: Object, btf: Btf, ext: BtfExt | None) -> Object:
    """The object with these types; sections that already hold the same stay as they are.

    Relocations of changed BTF sections go: loaders pass over them, and the values that they would
    relocate are final in an object whose sections all begin at 0.
    """
    for name, data in ((".BTF", write_btf(btf)), (".BTF.ext", write_btf_ext(ext) if ext else None)):
        section = obj.section(name)
        if data is None or (section is not None and section.data == data):
            continue
        if section is None:
            if btf.types:  # the kernel takes no BTF without types
                obj, _ = add_section(obj, name, data, align=4)
            continue
        stale = obj.relocation_section(section.id)
        if stale is not None:
            obj = drop_sections(obj, [stale.id])
        obj = change_section(obj, section.id, data)
    return obj

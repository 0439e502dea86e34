"""The transformation: a compiled object in, the same object with one program as a link of a chain out.

Reads like DESIGN section 3: look at the program, refuse early, choose a strategy, lay the code out
anew, add the chain's map, say what was done.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from . import records as r
from .btf import Btf, Kind, read_btf, write_btf
from .btf_ext import FUNC_INFO, BtfExt, read_btf_ext, write_btf_ext
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
from .elf_read import read_object
from .elf_write import write_object
from .errors import BpfchainError, RefusedError, UsageError
from .flow import Flow, analyse
from .inline import END_LINE, KEEP_LINE, Entry, check_inline, inline_entry
from .isa import INSN_SIZE, JMP32
from .layout import Copy, Layout, Piece, apply_layouts, relayout_btf_ext
from .legacy import convert_legacy_maps
from .link import Link, saved_map_name
from .policy import hook_of_section
from .program import Code, Function, Reach, code_of, find_program, reach_of
from .provenance import Provenance, read_provenance, with_provenance
from .refuse import check_hazards, check_program
from .report import cost_of, license_of, maps_of, redirects_of
from .request import Cost, EntryProgram, Need, Patched, Request
from .subprog import BODY, CALL_LINE, check_subprog, wrapper_entry
from .targets import check_targets, mixed_calls_need
from .version import VERSION

__all__ = ["transform_object"]


@dataclass(frozen=True, slots=True)
class _Subject:
    """What the patch works on: the object as read and converted, and the program in it."""

    obj: Object
    btf: Btf | None
    ext: BtfExt | None
    program: Function
    code: Code
    reach: Reach


def transform_object(data: bytes, request: Request) -> Patched:
    """Make one program of the object a link.

    Raises RefusedError where that could change what the program does or could not load, UsageError
    where the request makes no sense. The same input and request give the same bytes.
    """
    obj = read_object(data)
    if obj.symtab is None:
        raise RefusedError("it has no symbol table", "patch before stripping all symbols")
    earlier = read_provenance(obj)
    btf, ext = _read_types(obj)
    taken = frozenset(
        name for entry in earlier for name in _entry_names(entry.program, entry.link).values()
    )
    program = find_program(obj, request.program, taken)
    if program.name in taken:
        raise _already(program, earlier)
    link = _link_of(request, program)
    code = code_of(obj, program, btf, ext)
    reach = reach_of(obj, program, code)
    check_program(obj, program, code, reach, btf)
    redirects = redirects_of(link.hook, reach)
    warnings = check_hazards(link, program, redirects, request.allow)
    _check_names(obj, program, link)

    converted, new_btf, legacy = convert_legacy_maps(obj, btf or Btf(obj.order, (), b"\0"))
    if legacy:
        btf = new_btf
        warnings += (f"legacy maps converted to BTF: {', '.join(legacy)}",)
    subject = _Subject(converted, btf, ext, program, code, reach)
    flow = analyse(
        code.insns,
        what=program.what,
        relocated=_relocated(obj, code),
        adjusted=code.adjusted,
    )
    patch = _patch(subject, flow, link, request)
    obj = with_provenance(
        patch.obj,
        Provenance(
            program=program.name, link=link, strategy=patch.strategy, debug=patch.debug,
            input_sha256=hashlib.sha256(data).hexdigest(), tool=VERSION, keep=patch.keep,
        ),
    )  # fmt: skip
    return Patched(
        data=write_object(obj),
        link=link,
        program=program.name,
        section=program.section.name,
        entries=tuple(
            EntryProgram(name, state, link.hook.slot(state, link.index))
            for state, name in _entry_names(program.name, link).items()
        ),
        strategy=patch.strategy,
        why=patch.why,
        keep=patch.keep,
        before=cost_of(code, flow, 0, 0),
        after=patch.after,
        frags=program.section.name.removeprefix("?").startswith("xdp.frags"),
        debug=patch.debug,
        license=license_of(obj),
        maps=maps_of(obj, patch.btf),
        needs=patch.needs,
        redirects=redirects,
        tail_calls=reach.own_tail_calls or reach.callee_tail_calls,
        pinned=request.pin,
        allowed=tuple(sorted(request.allow)),
        warnings=warnings,
    )


def _already(program: Function, earlier: tuple[Provenance, ...]) -> RefusedError:
    entry = next(
        e for e in earlier if program.name in _entry_names(e.program, e.link).values()
    )
    return RefusedError(
        f"{program.name} is already link {entry.link.index} of a chain "
        f"(patched by bpfchain {entry.tool} from sha256 {entry.input_sha256[:12]}…)",
        "patch the original, or see `bpfchain inspect`",
    )


def _read_types(obj: Object) -> tuple[Btf | None, BtfExt | None]:
    types, extra = obj.section(".BTF"), obj.section(".BTF.ext")
    if types is None or not types.data:
        return None, None
    btf = read_btf(types.data, obj.order)
    return btf, read_btf_ext(extra.data, obj.order) if extra is not None and extra.data else None


def _link_of(request: Request, program: Function) -> Link:
    from .codes import CodeSet

    hook = hook_of_section(program.section.name, request.hook, what=program.what)
    names = hook.names

    def codes(text: str | None, option: str, default: CodeSet) -> CodeSet:
        return default if text is None else CodeSet.parse(text, names, what=option)

    redirect = codes(request.redirect, "--redirect", CodeSet())
    saved = codes(request.saved, "--saved", CodeSet())
    for option, given in (("--redirect", redirect), ("--saved", saved)):
        if len(given) > hook.states * 8:
            raise UsageError(f"{option} takes a list of codes, not any or a complement")
    if saved and request.saved_code == "map":
        raise UsageError("--saved is for slots: with --saved-code map the saved code is in a map")
    link = Link(
        hook=hook,
        index=request.index,
        success=codes(request.success, "--success", hook.success),
        redirect=redirect,
        saved=tuple(sorted(saved, key=hook.state_of)),
        mode=request.saved_code,
        last=request.last,
        slots_map=request.slots_map,
    )
    if link.mode == "map" and hook.nests and "nested-runs" not in request.allow:
        raise RefusedError(
            f"--saved-code map: runs on {hook.name} can nest or be preempted, and would then share "
            "one saved code",
            "use slots (the default), or take the risk with --allow nested-runs",
        )
    return link


def _relocated(obj: Object, code: Code) -> dict[int, bool]:
    """Slots that a relocation changes, and whether it gives the address of a function."""
    result = {}
    for slot, item in code.relocations.items():
        symbol = obj.symbol_by_id[item.symbol]
        function = symbol.place is not None and obj.by_id[symbol.place].executable
        result[slot] = function and code.insns[slot].wide
    return result


def _entry_names(program: str, link: Link) -> dict[int | None, str]:
    """The entry program of each state: ``NAME``, ``NAME__redirect`` …"""
    names = {}
    for state in link.states:
        suffix = "" if state is None else "__" + link.hook.name_of(state).lower().replace("-", "m")
        names[state] = program + suffix
    return names


def _check_names(obj: Object, program: Function, link: Link) -> None:
    present = {symbol.name for symbol in obj.symbols}
    for state, name in _entry_names(program.name, link).items():
        if state is not None and name in present:
            raise RefusedError(f"the name {name} of an entry program is taken in this object")
    name = link.slots_map
    if not 1 <= len(name) <= 15 or not name.replace("_", "a").isalnum() or not name.isascii():
        raise UsageError(f"--slots-map: {name!r} is no map name: 1 to 15 letters, digits and _")
    if len(saved_map_name(name)) > 15 and link.mode == "map":
        raise UsageError(f"--slots-map: {name!r} is too long for --saved-code map: 13 at most")


@dataclass(frozen=True, slots=True)
class _Patch:
    """A patched object, and what is to be told of it."""

    obj: Object
    btf: Btf | None
    strategy: str
    why: str
    keep: str | None
    after: Cost
    debug: str
    needs: tuple[Need, ...]


@dataclass(frozen=True, slots=True)
class _Plan:
    """The entries of one strategy, before anything is laid out."""

    strategy: str
    why: str
    entries: tuple[Entry, ...]
    needs: tuple[Need, ...]


def _patch(subject: _Subject, flow: Flow, link: Link, request: Request) -> _Patch:
    from .epilogue import needs_epilogue

    if not any(
        needs_epilogue(link, state, known.code) for state in link.states for known in flow.exits
    ) and link.states == (None,):
        return _unpatched(subject, flow, link, request)
    obj, btf = subject.obj, subject.btf
    maps_btf = btf or Btf(obj.order, (), b"\0")
    obj, maps_btf, symbols = _add_maps(obj, maps_btf, link, request)
    text = obj.section(".text")
    if text is None:
        obj, text_id = add_section(
            obj, ".text", b"", flags=r.SHF_ALLOC | r.SHF_EXECINSTR, align=8
        )
        text = obj.by_id[text_id]
    with_text, text_symbol = section_symbol(obj, text.id)

    def resolve(name: str) -> tuple[int, SymbolId]:
        return (r.R_BPF_64_32, text_symbol) if name == BODY else (r.R_BPF_64_64, symbols[name])

    plan = _choose(subject, flow, link, request, resolve, len(text.data))
    if plan.strategy == "subprog":
        obj = with_text
    elif subject.obj.section(".text") is None:
        obj = drop_sections(obj, [text.id])
    return _lay_out(replace(subject, obj=obj, btf=maps_btf), flow, link, request, plan, symbols, text.id)


def _unpatched(subject: _Subject, flow: Flow, link: Link, request: Request) -> _Patch:
    """A last link in state none: the program itself is right as it stands."""
    obj, btf = subject.obj, subject.btf
    changed = obj is not subject.obj or subject.obj.section(".BTF") is None
    if request.pin:
        obj, added, symbols = _add_maps(obj, btf or Btf(obj.order, (), b"\0"), link, request)
        entries = [(link.hook.slot(None, link.index), subject.program.symbol.id)]
        obj = set_initial_entries(obj, symbols[link.slots_map], entries, entries[0][0] + 1)
        btf, changed = added, True
    debug = "kept" if _debug_sections(obj) else "none"
    if btf is not None and (changed or btf != _read_types(obj)[0]):
        obj = _with_types(obj, btf, subject.ext)
    cost = cost_of(subject.code, flow, 0, 0)
    why = "nothing to patch: no code of it goes on" if not link.ends else (
        "nothing to patch: the last link of a chain returns its own code"
    )
    return _Patch(obj, btf, "none", why, None, cost, debug, ())


def _choose(subject, flow, link, request, resolve, text_size):  # type: ignore[no-untyped-def]
    """Build the entries by the strategy that is asked for, or by the first that can."""
    wanted = ("inline", "subprog") if request.strategy == "auto" else (request.strategy,)
    reasons: list[str] = []
    refusal: BpfchainError | None = None
    for strategy in wanted:
        try:
            build = _plan_inline if strategy == "inline" else _plan_subprog
            plan = build(subject, flow, link, request, resolve, text_size)
            check_targets(plan.needs, request.kernel, request.arch)
        except RefusedError as error:
            reasons.append(f"{strategy}: {error.message}")
            refusal = refusal or error
            continue
        if reasons:
            plan = replace(plan, why=f"{plan.why}; not {reasons[0]}")
        return plan
    if len(reasons) == 1 and refusal is not None:
        raise refusal
    raise RefusedError(f"no strategy fits: {'; '.join(reasons)}")


def _plan_inline(subject, flow, link, request, resolve, text_size):  # type: ignore[no-untyped-def]
    program, code, reach = subject.program, subject.code, subject.reach
    check_inline(program, reach)
    jmp32 = _uses_jmp32(subject)
    entries = tuple(
        inline_entry(
            program, code, flow, link, state, resolve, jmp32=jmp32, primary=number == 0
        )
        for number, state in enumerate(link.states)
    )
    keep = next((entry.keep for entry in entries if entry.keep is not None), None)
    why = "its exits can be redirected in place"
    if keep is not None:
        place = keep.describe()
        why = f"{place} is free" if keep.preamble else f"{place} holds the context at every exit"
    needs = ()
    if reach.functions and not link.ends:
        needs = (mixed_calls_need("it calls functions"),)
    return _Plan("inline", why, entries, needs)


def _plan_subprog(subject, flow, link, request, resolve, text_size):  # type: ignore[no-untyped-def]
    program, reach = subject.program, subject.reach
    check_subprog(program, reach)
    _check_body_types(subject)
    offset = text_size
    jmp32 = _uses_jmp32(subject)
    entries = tuple(
        wrapper_entry(
            link, state, resolve, body_offset=offset,
            tail_calls=reach.own_tail_calls or reach.callee_tail_calls, jmp32=jmp32,
        )
        for state in link.states
    )  # fmt: skip
    needs = ()
    if not link.ends or reach.own_tail_calls or reach.callee_tail_calls:
        needs = (mixed_calls_need("its body becomes a function"),)
    return _Plan("subprog", "the body becomes a function", entries, needs)


def _check_body_types(subject: _Subject) -> None:
    """The verifier wants to know what a function returns that tail-calls or loads legacy packets."""
    reach, program = subject.reach, subject.program
    if not (reach.own_tail_calls or reach.own_ld_abs):
        return
    what = "tail calls" if reach.own_tail_calls else "legacy packet loads (LD_ABS)"
    func = _func_type(subject)
    if func is None or subject.btf is None:
        raise RefusedError(f"{program.what}: {what} in a function need BTF: compile with -g")
    proto = subject.btf.type(subject.btf.type(func).size_or_type)
    kind = subject.btf.type(proto.size_or_type) if proto.size_or_type else None
    while kind is not None and kind.kind in (Kind.TYPEDEF, Kind.CONST, Kind.VOLATILE, Kind.TYPE_TAG):
        kind = subject.btf.type(kind.size_or_type) if kind.size_or_type else None
    if kind is None or kind.kind not in (Kind.INT, Kind.ENUM, Kind.ENUM64):
        raise RefusedError(f"{program.what}: {what} in a function need one that returns an integer")


def _func_type(subject: _Subject) -> int | None:
    """The FUNC type id of the program, by func_info."""
    if subject.btf is None or subject.ext is None:
        return None
    names = subject.btf.offsets_of(subject.program.section.name)
    for record in subject.ext.parts[FUNC_INFO].of(names):
        if record.offset == subject.program.symbol.value:
            order = "little" if subject.obj.order == "<" else "big"
            return int.from_bytes(record.rest[:4], order)  # type: ignore[arg-type]
    return None


def _uses_jmp32(subject: _Subject) -> bool:
    return any(insn.klass == JMP32 for insn in subject.code.insns)


def _add_maps(
    obj: Object, btf: Btf, link: Link, request: Request
) -> tuple[Object, Btf, dict[str, SymbolId]]:
    """The chain's PROG_ARRAY, and the per-CPU map where the saved code lives in one."""
    room = None
    if request.pin:
        room = max(link.hook.slot(state, link.index) for state in link.states) + 1
    wanted = [
        MapDefinition(
            link.slots_map, PROG_ARRAY, 4, 4, link.hook.slots, pinned=request.pin, initial=room
        )
    ]
    if link.mode == "map":
        wanted.append(
            MapDefinition(saved_map_name(link.slots_map), PERCPU_ARRAY, 4, 8, 1, pinned=request.pin)
        )
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
                f"map {definition.name} of another link in this object is defined otherwise",
                "give the second chain's map another name with --slots-map",
            )
    return obj, btf, symbols


def _lay_out(  # noqa: PLR0917
    subject: _Subject, flow: Flow, link: Link, request: Request, plan: _Plan,
    symbols: dict[str, SymbolId], text: SectionId,
) -> _Patch:  # fmt: skip
    obj, btf, program = subject.obj, subject.btf, subject.program
    assert btf is not None
    debug = "dropped" if _debug_sections(obj) else "none"
    obj = drop_sections(obj, _debug_sections(obj))
    names = _entry_names(program.name, link)
    start, end = program.symbol.value, program.symbol.end
    func = _func_type(subject)
    functions: list[tuple[int, int]] = []
    spans: list[tuple[str, int, int]] = []
    pieces: list[Piece] = []
    if start:
        pieces.append(Copy(program.section.id, 0, start))
    at = start
    for (state, name), entry in zip(names.items(), plan.entries, strict=True):
        spans.append((name, at, entry.size))
        if func is not None:
            kind = func
            if state is not None:
                known = btf.type(func)
                btf, kind = btf.with_type(Kind.FUNC, name, known.size_or_type, vlen=known.vlen)
            functions.append((at, kind))
        pieces += entry.pieces
        at += entry.size
    if end < len(program.section.data):
        pieces.append(Copy(program.section.id, end, len(program.section.data)))
    layouts = [Layout(program.section.id, tuple(pieces), tuple(functions))]
    body_name = f"{program.name}__body"
    if plan.strategy == "subprog":
        size = len(obj.by_id[text].data)
        body_functions: tuple[tuple[int, int], ...] = ()
        if func is not None:
            btf, body_type = static_clone(btf, btf.type(func), body_name)
            body_functions = ((size, body_type),)
        layouts.append(
            Layout(
                text,
                (
                    *((Copy(text, 0, size),) if size else ()),
                    Copy(program.section.id, start, end, carry_functions=False),
                ),
                body_functions,
            )
        )
        if any(symbol.name == body_name for symbol in obj.symbols):
            raise RefusedError(f"the name {body_name} of the body's function is taken in this object")
    done = tuple(layouts)
    before = obj
    obj = apply_layouts(obj, done)
    obj = _place_entries(obj, program, spans)
    if plan.strategy == "subprog":
        obj, _ = add_symbol(
            obj, body_name, text, done[1].pieces[0].size if len(done[1].pieces) > 1 else 0,
            end - start, bind=r.STB_LOCAL, type=r.STT_FUNC,
        )  # fmt: skip
    ext = subject.ext
    if ext is not None:
        for layout in done:
            btf, _ = btf.with_string(before.by_id[layout.section].name)
        lines = {}
        for text_line in (KEEP_LINE, END_LINE, CALL_LINE):
            btf, file = btf.with_string("bpfchain")
            btf, line = btf.with_string(text_line)
            lines[text_line] = (file, line)
        ext = relayout_btf_ext(ext, btf, before, done, lines)
    obj = _with_types(obj, btf, ext)
    if request.pin:
        by_name = {symbol.name: symbol.id for symbol in obj.symbols}
        entries = [(link.hook.slot(s, link.index), by_name[name]) for s, name in names.items()]
        room = max(key for key, _ in entries) + 1
        obj = set_initial_entries(obj, symbols[link.slots_map], entries, room)
    keep = next((e.keep for e in plan.entries if e.keep is not None), None)
    body = (end - start) // INSN_SIZE if plan.strategy == "subprog" else 0
    slot = 8 if keep is not None and keep.offset is not None else 0
    after = replace(
        cost_of(subject.code, flow, 0, slot), instructions=plan.entries[0].size // INSN_SIZE + body
    )
    described = None
    if keep is not None:
        described = keep.describe() + ("" if keep.preamble else " (the program's own)")
    return _Patch(obj, btf, plan.strategy, plan.why, described, after, debug, plan.needs)


def _place_entries(obj: Object, program: Function, spans: list[tuple[str, int, int]]) -> Object:
    """The program's symbol covers its entry; entries for further states get symbols of their own."""
    (_, start, size), *further = spans
    obj = replace(
        obj,
        symbols=tuple(
            replace(s, place=program.section.id, value=start, size=size)
            if s.id == program.symbol.id
            else s
            for s in obj.symbols
        ),
    )
    for name, at, length in further:
        obj, _ = add_symbol(
            obj, name, program.section.id, at, length, bind=r.STB_GLOBAL, type=r.STT_FUNC
        )
    return obj


def _debug_sections(obj: Object) -> list[SectionId]:
    """DWARF, whose line tables count instructions that now stand elsewhere."""
    return [s.id for s in obj.sections if s.name.startswith(".debug_")]


def _with_types(obj: Object, btf: Btf, ext: BtfExt | None) -> Object:
    """The object with these types. Relocations of .BTF go: loaders pass over them, and the values
    that they would relocate are final in a section that begins at 0."""
    stale = [
        s.id for s in obj.sections
        if s.type == r.SHT_REL and s.target is not None
        and obj.by_id[s.target].name in (".BTF", ".BTF.ext")
    ]  # fmt: skip
    obj = drop_sections(obj, stale)
    for name, data in ((".BTF", write_btf(btf)), (".BTF.ext", write_btf_ext(ext) if ext else None)):
        section = obj.section(name)
        if data is None:
            continue
        if section is not None:
            obj = change_section(obj, section.id, data)
        else:
            obj, _ = add_section(obj, name, data, align=4)
    return obj

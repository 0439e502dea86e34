"""Holds a patched object against its original: everything but what must change is the same.

What may change, and how: the program's section (the entry grows, what lies behind moves), ``.text``
(the body is appended, strategy subprog), ``.maps`` (one map more), the symbol and string tables,
``.BTF`` (types appended), ``.BTF.ext``; DWARF and the relocations of BTF may go; ``.bpfchain`` comes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from patched.readers import View, uleb128

EXIT, GOTO, CALL = 0x95, 0x05, 0x85
WIDE = 0x18
TABLES = {".symtab", ".strtab", ".shstrtab", ".llvm_addrsig"}
ADDED_SECTIONS = {".bpfchain", ".maps", ".BTF", ".text"}


def may_go(name: str) -> bool:
    """Whether a section may be left out: DWARF, and relocations that loaders pass over."""
    return name.startswith((".debug_", ".rel.debug_")) or name in (".rel.BTF", ".rel.BTF.ext")


def differences(
    old: View, new: View, program: str, strategy: str, slots_map: str = "bpfchain_slots"
) -> list[str]:
    """What of ``new`` is not as in ``old`` and should be, one line each.

    For a patch with one entry (nothing saved), that goes on to a next link.
    """
    said = list(_sections(old, new, program, strategy))
    said += _symbols(old, new, program, strategy, slots_map)
    said += _other_functions(old, new, program)
    said += _body(old, new, program, strategy)
    said += _tiling(old, new)
    return said


def _sections(old: View, new: View, program: str, strategy: str) -> Iterable[str]:
    place = old.function(program).section
    legacy = "maps" in old.sections and "maps" not in new.sections
    changes = {place, ".maps", ".BTF", ".BTF.ext", ".bpfchain"} | TABLES
    if strategy == "subprog":
        changes.add(".text")
    kept = []
    for name, section in old.sections.items():
        if name not in new.sections:
            if not (may_go(name) or (legacy and name == "maps")):
                yield f"section {name} is gone"
            continue
        kept.append(name)
        other = new.sections[name]
        header = (section.type, section.flags, section.align, section.entsize, section.target)
        if header != (other.type, other.flags, other.align, other.entsize, other.target):
            yield f"section {name}: its header is another: {header}"
        if name not in changes and section.target is None and section.data != other.data:
            yield f"section {name}: its bytes differ"
    if kept != [name for name in new.sections if name in old.sections]:
        yield "the sections are in another order"
    added = set(new.sections) - set(old.sections)
    allowed = ADDED_SECTIONS | {".rel" + place, ".rel.text"}
    if strategy != "subprog":
        allowed -= {".text", ".rel.text"}
    if added - allowed:
        yield f"sections {sorted(added - allowed)} are new"
    if any(may_go(name) for name in new.sections) and any(
        name.startswith(".debug_") and name not in new.sections for name in old.sections
    ):
        yield "only some of the DWARF sections are gone"
    for target, items in old.relocations.items():
        if target in changes or may_go(".rel" + target):
            continue
        mine = [(i.offset, i.type, i.symbol.kind) for i in items]
        theirs = [(i.offset, i.type, i.symbol.kind) for i in new.relocations.get(target, ())]
        if not legacy and mine != theirs:
            yield f"relocations of {target} differ"
    if not legacy and ".maps" in old.sections:
        before, after = old.sections[".maps"].data, new.sections[".maps"].data
        if after[: len(before)] != before or any(after[len(before) :]):
            yield "section .maps: not the same with zeros behind it"
        if new.relocations.get(".maps", ()) and not old.relocations.get(".maps"):
            yield "section .maps: relocations are new"
    both = ".llvm_addrsig" in old.sections and ".llvm_addrsig" in new.sections
    if both and not legacy and _addresses(old) != _addresses(new):
        yield f"section .llvm_addrsig: {_addresses(old)} became {_addresses(new)}"


def _addresses(view: View) -> object:
    """The symbols in .llvm_addrsig; its bytes where llvm-strip left it behind with stale indexes."""
    data = view.sections[".llvm_addrsig"].data
    numbers = uleb128(data)
    if view.sections[".llvm_addrsig"].link != ".symtab":
        return data
    return [view.symbols[number].kind for number in numbers]


def _symbols(old: View, new: View, program: str, strategy: str, slots_map: str) -> Iterable[str]:
    entry = old.function(program)
    before = Counter(
        s.kind
        for s in old.symbols
        if not (s.type == "STT_SECTION" and may_go(s.section)) and not may_go(s.section)
        and s.section != "maps"
    )  # fmt: skip
    after = Counter(s.kind for s in new.symbols)
    if strategy == "subprog":  # labels inside the body move with it
        for symbol in old.symbols:
            if _inside(symbol, entry):
                before[symbol.kind] -= 1
                moved = (symbol.name, ".text", *symbol.kind[2:])
                before[moved] += 1
    gone = before - after
    if +gone:
        yield f"symbols are gone: {sorted(gone)}"
    added = {(name, kind, bind) for name, _, kind, bind, _ in after - before}
    wanted = {(slots_map, "STT_OBJECT", "STB_GLOBAL")}
    if strategy == "subprog":
        wanted.add((f"{program}__body", "STT_FUNC", "STB_LOCAL"))
    if "maps" in old.sections:  # converted: the maps' symbols are of another section now
        wanted |= {(s.name, s.type, s.bind) for s in old.symbols if s.section == "maps"}
        added |= {row for row in wanted if row in added}
    extra = {row for row in added if row[1] != "STT_SECTION"}
    if extra != wanted:
        yield f"new symbols: {sorted(extra)}, not {sorted(wanted)}"
    if (".text", "STT_SECTION") not in {(s.section, s.type) for s in new.symbols} and (
        strategy == "subprog"
    ):
        yield ".text has no section symbol"
    sizes = {(s.kind): s.size for s in new.symbols if s.name}
    for symbol in old.symbols:
        if symbol.name and symbol != entry and symbol.kind in sizes:
            named = [s for s in old.symbols if s.kind == symbol.kind]
            if len(named) == 1 and sizes[symbol.kind] != symbol.size:
                yield f"symbol {symbol.name}: its size differs"
    patched_sections = {entry.section} | ({".text"} if strategy == "subprog" else set())
    for symbol in old.symbols:
        if symbol.section in patched_sections or not symbol.name or symbol.section == "maps":
            continue
        if may_go(symbol.section):
            continue
        if not any(s.kind == symbol.kind and s.value == symbol.value for s in new.symbols):
            yield f"symbol {symbol.name}: its value differs"
    first_global = next(
        (n for n, s in enumerate(new.symbols) if s.bind != "STB_LOCAL"), len(new.symbols)
    )
    if any(s.bind == "STB_LOCAL" for s in new.symbols[first_global:]):
        yield "a local symbol stands behind a global one"


def _inside(symbol: Any, entry: Any) -> bool:
    return bool(
        symbol.type == "STT_NOTYPE" and symbol.name and symbol.section == entry.section
        and entry.value <= symbol.value < entry.value + entry.size
    )  # fmt: skip


def _other_functions(old: View, new: View, program: str) -> Iterable[str]:
    for section in old.executable():
        for symbol in old.functions(section):
            if symbol.name == program:
                continue
            other = new.function(symbol.name)
            if old.code(symbol.name) != new.code(symbol.name):
                yield f"function {symbol.name}: its instructions differ"
            mine = old.references(section, symbol.value, symbol.value + symbol.size)
            theirs = new.references(other.section, other.value, other.value + other.size)
            if "maps" not in old.sections and mine != theirs:
                yield f"function {symbol.name}: its relocations differ"


def _body(old: View, new: View, program: str, strategy: str) -> Iterable[str]:
    """The body's instructions: the same, but for exits that became jumps (inline)."""
    before = old.code(program)
    entry = new.function(program)
    if strategy == "subprog":
        body = new.function(f"{program}__body")
        if body.section != ".text":
            yield f"the body is in {body.section}"
        if new.functions(".text")[-1].name != body.name:
            yield "the body is not the last function of .text"
        start = body.value
        if new.code(body.name) != before:
            yield "the body's instructions differ"
        if not before.endswith(bytes([EXIT])) and len(before) % 8:
            yield "the body is no whole number of instructions"
        place = body.section
    else:
        place = entry.section
        after = new.code(program)
        found = [at for at in (0, 8) if _same_but_exits(before, after[at : at + len(before)])]
        if not found:
            yield "the body's instructions differ"
            return
        start = entry.value + found[0]
        if len(after) <= len(before):
            yield "nothing was added"
    mine = old.references(
        old.function(program).section, old.function(program).value,
        old.function(program).value + len(before),
    )  # fmt: skip
    theirs = new.references(place, start, start + len(before))
    if "maps" not in old.sections and mine != theirs:
        yield "the body's relocations differ"
    first = old.function(program)
    for symbol in old.symbols:
        if _inside(symbol, first) and not any(
            s.name == symbol.name and s.section == place
            and s.value - start == symbol.value - first.value
            for s in new.symbols
        ):  # fmt: skip
            yield f"label {symbol.name} is elsewhere in the body"


def _same_but_exits(before: bytes, after: bytes) -> bool:
    """Whether the instructions are equal but for exits, which may be jumps behind the body."""
    if len(before) != len(after):
        return False
    at, count = 0, len(before) // 8
    while at < count:
        mine, theirs = before[8 * at : 8 * at + 8], after[8 * at : 8 * at + 8]
        if mine != theirs:
            jump = int.from_bytes(theirs[2:4], "little", signed=True)
            exits = mine[0] == EXIT and theirs[0] == GOTO and at + 1 + jump >= count
            if not exits:
                return False
        if mine[0] == WIDE:
            at += 1
            if before[8 * at : 8 * at + 8] != after[8 * at : 8 * at + 8]:
                return False
        at += 1
    return True


def _tiling(old: View, new: View) -> Iterable[str]:
    """Executable sections that functions covered without a gap are covered so still."""
    for name in new.executable():
        if (name in old.sections and not _tiled(old, name)) or not new.sections[name].data:
            continue
        if not _tiled(new, name):
            yield f"section {name} is not covered exactly by its functions"


def _tiled(view: View, section: str) -> bool:
    at = 0
    for symbol in view.functions(section):
        if symbol.value != at or not symbol.size:
            return False
        at += symbol.size
    return at == len(view.sections[section].data)


def btf_differences(
    old: list[dict[str, Any]] | None, new: list[dict[str, Any]] | None, slots_map: str
) -> list[str]:
    """What of the types is not as it was: appended ones and one member of .maps may be new."""
    if new is None:
        return ["the patched object has no BTF"]
    if old is None:
        return []
    said = []
    for mine, theirs in zip(old, new, strict=False):
        if mine == theirs:
            continue
        if mine["kind"] == theirs["kind"] == "DATASEC" and mine["name"] == ".maps":
            variables = len(mine["vars"])
            same = {**theirs, "vars": theirs["vars"][:variables]}
            same |= {"vlen": mine["vlen"], "size": mine["size"]}
            grown = theirs["vlen"] == mine["vlen"] + 1 == len(theirs["vars"])
            size_kept = mine["size"] == 0 or theirs["size"] > mine["size"]
            if same == mine and grown and size_kept:
                continue
        said.append(f"BTF type {mine['id']} was {mine}, is {theirs}")
    if len(new) < len(old):
        said.append(f"{len(old)} BTF types became {len(new)}")
    added = new[len(old) :]
    if not any(t["kind"] == "VAR" and t["name"] == slots_map for t in added):
        said.append(f"no BTF variable {slots_map}")
    return said

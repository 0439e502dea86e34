"""Accounting of BTF: every type of IN is in OUT under its id; added ones are the definitions of the
chain's maps, the FUNCs of added functions, and what these refer to.
"""

from __future__ import annotations

from bpfchain.verify.static import btf as b
from bpfchain.verify.static.btf import Btf
from bpfchain.verify.static.maps import wanted_maps
from bpfchain.verify.static.model import STT_SECTION, Unreadable
from bpfchain.verify.static.pair import LEGACY_MAPS, Pair

__all__ = ["check_types", "clone_of"]

_EMPTY = Btf((b.BtfType(0, 0, 0),), b"\0")


def check_types(pair: Pair) -> None:
    """Every rule of this module."""
    before, after = pair.btf
    if after is None:
        if before is not None:
            pair.say("btf", "section .BTF is missing")
        return
    if before is None:
        before = _EMPTY
    if before.flags != after.flags:
        pair.say("btf", f"section .BTF: flags {before.flags} became {after.flags}")
    _kept(pair, before, after)
    _added(pair, before, after)


def _kept(pair: Pair, before: Btf, after: Btf) -> None:
    count = len(before.types)
    pair.counted["types"] += count - 1
    if len(after.types) < count:
        pair.say("btf", f"section .BTF: {count - len(after.types)} types are missing")
        return
    # the same words over the same strings are the same types: most of an object
    same_strings = after.strings.startswith(before.strings)
    for type_id in range(1, count):
        if same_strings and before.types[type_id] == after.types[type_id]:
            if before.types[type_id].kind == b.DATASEC and before.name_of(type_id) == ".maps":
                _maps_section(pair, before, after, type_id)
            continue
        if before.told(type_id) == after.told(type_id):
            continue
        name = before.name_of(type_id)
        kind = before.types[type_id].kind
        if kind == b.DATASEC and name in (".maps", LEGACY_MAPS):
            _maps_section(pair, before, after, type_id)
        elif not (kind == b.VAR and _converted(pair, name) and _retargeted(before, after, type_id)):
            pair.say("btf", f"BTF type {type_id} ({name or 'without a name'}) is not what it was")


def _converted(pair: Pair, name: str) -> bool:
    """Whether this is a legacy map, whose VAR now refers to a BTF definition."""
    legacy = pair.before.named(LEGACY_MAPS)
    return legacy is not None and any(
        s.name == name and s.section == legacy.index for s in pair.before.symbols
    )


def _retargeted(before: Btf, after: Btf, type_id: int) -> bool:
    was, now = before.told(type_id), after.told(type_id)
    return (was[0], was[1], was[3]) == (now[0], now[1], now[3])


def _maps_section(pair: Pair, before: Btf, after: Btf, type_id: int) -> None:
    """The DATASEC of the maps: IN's variables, then the added ones, with the right places."""
    was, now = before.type(type_id), after.type(type_id)
    legacy = before.name_of(type_id) == LEGACY_MAPS
    if (was.info ^ now.info) & ~0xFFFF or after.name_of(type_id) != ".maps":
        pair.say("btf", f"BTF type {type_id} ({before.name_of(type_id)}) is not what it was")
        return
    old, new = list(was.members), list(now.members)
    if not legacy and new[: len(old)] != old:
        pair.say("btf", "BTF: variables of .maps are not what they were")
        return
    sized = bool(was.third) and not legacy
    _variables(pair, after, type_id, 0 if legacy else len(old), sized=sized)


def _variables(pair: Pair, after: Btf, type_id: int, first: int, *, sized: bool) -> None:
    """Entries of the DATASEC behind the first ones: one a symbol, its size, its place.

    A DATASEC of size 0 tells loaders to take places from the symbols (libbpf,
    ``btf_fixup_datasec``); then its offsets are 0 too.
    """
    section = pair.after.named(".maps")
    if section is None:
        pair.say("btf", "BTF tells of .maps, which does not exist")
        return
    datasec = after.type(type_id)
    if datasec.third != (len(section.data) if sized else 0):
        pair.say("btf", f"BTF: .maps has size {datasec.third}")
    symbols = {s.name: s for s in pair.after.symbols if s.section == section.index}
    entries = list(datasec.members)
    names = [after.name_of(var) for var, _, _ in entries]
    for (var, offset, size), name in list(zip(entries, names, strict=True))[first:]:
        symbol = symbols.get(name)
        found = after.type(var)
        if symbol is None or found.kind != b.VAR or found.tail != (b.GLOBAL,):
            pair.say("btf", f"BTF: {name} of .maps is no global variable with a symbol")
        elif (offset, size) != (symbol.value if sized else 0, symbol.size):
            pair.say("btf", f"BTF: {name} of .maps is told at {offset}, {size} bytes")
    there = sorted(name for name, s in symbols.items() if s.type != STT_SECTION)
    if sorted(names) != there:
        pair.say("btf", f"BTF tells of {len(names)} maps, and .maps holds {len(there)} symbols")


def clone_of(btf: Btf, kind: int, name: str, linkage: int | None, first: int) -> int | None:
    """The added FUNC of that name with the prototype (and linkage, where it is given) of FUNC
    ``kind``; None where there is none."""
    model = btf.type(kind)
    wanted = model.vlen if linkage is None else linkage
    for type_id in btf.ids(b.FUNC, name):
        found = btf.type(type_id)
        if type_id >= first and (found.third, found.vlen) == (model.third, wanted):
            return type_id
    return None


_INTS = {"int": (4, (1 << 24 | 32,)), "__ARRAY_SIZE_TYPE__": (4, (32,))}
"""What definitions of maps count with: size, and encoding and bits, as clang writes them."""


def _plain_shape(btf: Btf, type_id: int) -> bool:
    """Whether an added type is as the definition of a map, or a FUNC, needs it."""
    one = btf.type(type_id)
    name = btf.text(one.name_offset)
    bits = one.info & ~(0x1F << 24 | 0xFFFF)
    if bits:
        return False
    if one.kind == b.INT:
        return _INTS.get(name or "") == (one.third, one.tail) and not one.vlen
    if one.kind == b.ARRAY:
        element, index, count = one.tail
        kinds = btf.type(element).kind, btf.type(index).kind
        words = btf.type(index).third == 4 and (kinds[0] == b.PTR or btf.type(element).third == 4)
        right = kinds == ((b.INT, b.INT) if count else (b.PTR, b.INT)) and words
        return right and not (name is not None or one.vlen or one.third)
    if one.kind == b.PTR:
        return not (name is not None or one.vlen)
    if one.kind == b.FUNC_PROTO:
        plain = name is None and one.vlen == 1 and not one.tail[0]
        return plain and btf.type(one.third).kind == b.INT
    if one.kind == b.STRUCT:
        return name is None
    if one.kind == b.VAR:
        return not one.vlen
    return one.kind in (b.FUNC, b.DATASEC)


def _added(pair: Pair, before: Btf, after: Btf) -> None:
    first = len(before.types)
    intent = pair.intent
    maps = set(wanted_maps(pair))
    functions = set(list(intent.entries.values())[1:])
    if pair.shared:
        functions.add(intent.body_name)
    reached: set[int] = set()
    pending: list[int] = []
    roots: set[str] = set()
    for type_id in range(first, len(after.types)):
        kind, name = after.types[type_id].kind, after.name_of(type_id)
        right = (
            (kind == b.VAR and (name in maps or _converted(pair, name)))
            or (kind == b.FUNC and name in functions)
            or (kind == b.DATASEC and name == ".maps" and not before.ids(b.DATASEC, ".maps"))
        )
        if kind in (b.VAR, b.FUNC, b.DATASEC, b.DECL_TAG) and (not right or name in roots):
            pair.say("btf", f"BTF type {type_id} ({name or 'without a name'}) is added")
        if not _plain_shape(after, type_id):
            pair.say("btf", f"BTF type {type_id} ({name or 'without a name'}) is added, odd")
        if right:
            roots.add(name)
            pending.append(type_id)
            if kind == b.DATASEC:
                _variables(pair, after, type_id, 0, sized=False)
    # a retargeted VAR of a converted map refers to added types too
    pending += [
        i for i in range(1, min(first, len(after.types)))
        if after.types[i].kind == b.VAR and after.types[i].third >= first
    ]  # fmt: skip
    while pending:
        type_id = pending.pop()
        if type_id in reached:
            continue
        reached.add(type_id)
        try:
            pending += [one for one in after.references(type_id) if one >= first]
            if type_id >= len(after.types):
                raise Unreadable(f"section .BTF: no type {type_id}")
        except Unreadable as problem:
            pair.say("btf", str(problem))
    for type_id in range(first, len(after.types)):
        if type_id not in reached:
            name = after.name_of(type_id)
            pair.say("btf", f"BTF type {type_id} ({name or 'without a name'}) is added, not needed")
    pair.counted["types added"] += len(after.types) - first

"""Accounting of ``.maps``: every map of IN as it was, the chain's own defined as the link says.

A definition is a BTF struct whose members are pointers to arrays: the array's length is the number
(libbpf, ``parse_btf_map_def``). A member ``values`` has no size; its entries lie behind the struct.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from struct import Struct, error
from typing import Final, NamedTuple

from bpfchain.verify.static import btf as b
from bpfchain.verify.static.btf import Btf
from bpfchain.verify.static.model import (
    R_BPF_64_ABS64,
    STB_GLOBAL,
    STT_OBJECT,
    STT_SECTION,
    Added,
    Section,
    Symbol,
    Unreadable,
)
from bpfchain.verify.static.pair import LEGACY_MAPS, Pair

__all__ = ["Definition", "check_maps", "definition_of", "wanted_maps"]

PROG_ARRAY, PERCPU_ARRAY = 3, 6
PIN_BY_NAME = 1
_POINTER: Final = 8
_LEGACY_FIELDS: Final = ("type", "key_size", "value_size", "max_entries", "map_flags")


class Definition(NamedTuple):
    """A map as BTF defines it. ``size`` is the struct's, in bytes."""

    numbers: Mapping[str, int]
    size: int
    has_values: bool


def definition_of(btf: Btf, var: int) -> Definition:
    """The definition that a VAR has. Raises Unreadable where it is no map's."""
    struct_id = btf.plain(btf.type(var).third)
    struct = btf.type(struct_id)
    name = btf.name_of(var)
    if struct.kind != b.STRUCT:
        raise Unreadable(f"map {name}: its type is no struct")
    numbers: dict[str, int] = {}
    has_values = False
    for position, (name_offset, kind, bits) in enumerate(struct.members):
        member, found = btf.name(name_offset), btf.type(kind)
        if bits != position * _POINTER * 8:
            raise Unreadable(f"map {name}: member {member} is out of place")
        if member == "values" and found.kind == b.ARRAY and not found.tail[2]:
            target = btf.type(found.tail[0])
            proto = btf.type(btf.plain(target.third)) if target.kind == b.PTR else target
            has_values = position == struct.vlen - 1 and proto.kind == b.FUNC_PROTO
            if not has_values:
                raise Unreadable(f"map {name}: its initial values are no programs")
            continue
        array = btf.type(found.third) if found.kind == b.PTR else found
        if found.kind != b.PTR or array.kind != b.ARRAY or member in numbers:
            raise Unreadable(f"map {name}: member {member} is no number")
        numbers[member] = array.tail[2]
    if struct.third != _POINTER * len(numbers):
        raise Unreadable(f"map {name}: its struct has {struct.third} bytes")
    return Definition(numbers, struct.third, has_values)


def wanted_maps(pair: Pair) -> dict[str, dict[str, int]]:
    """The chain's maps that the link may use, and their numbers (but for pinning)."""
    intent = pair.intent
    slots = {"type": PROG_ARRAY, "key_size": 4, "value_size": 4, "max_entries": intent.hook.slots}
    wanted = {intent.slots_map: slots}
    if intent.mode == "map":
        saved = {"type": PERCPU_ARRAY, "key_size": 4, "value_size": 8, "max_entries": 1}
        wanted[intent.saved_map] = saved
    return wanted


def check_maps(pair: Pair) -> None:
    """Every rule of this module."""
    legacy = pair.before.named(LEGACY_MAPS)
    now = pair.after.named(".maps")
    if legacy is not None and now is not None and pair.sections.get(legacy.index) == now.index:
        floor = _converted(pair, legacy, now)
    elif legacy is not None and pair.intent.strategy != "none":
        pair.say("map", "section maps: the legacy definitions were not converted")
        return
    else:
        floor = _kept(pair, now)
    if now is not None:
        pair.counted["maps"] += sum(
            s.section == now.index and s.type != STT_SECTION for s in pair.after.symbols
        )
    added = {s.name: s for s in pair.added_symbols if now is not None and s.section == now.index}
    _space(pair, now, floor, list(added.values()))
    for name, numbers in wanted_maps(pair).items():
        _chain_map(pair, name, numbers, added.get(name))


def _kept(pair: Pair, now: Section | None) -> int:
    """The bytes of IN's section are the first of OUT's; returns how many."""
    before = pair.before.named(".maps")
    if before is None:
        return 0
    if now is None or pair.sections.get(before.index) != now.index:
        return 0  # said where sections are
    if now.data[: len(before.data)] != before.data:
        pair.say("map", "section .maps: the bytes of IN's definitions changed")
    return len(before.data)


def _space(pair: Pair, now: Section | None, floor: int, added: list[Symbol]) -> None:
    """Behind IN's definitions lie the added ones, 8-aligned, zero, without anything between."""
    if now is None:
        return
    at = floor
    for symbol in sorted(added, key=lambda s: s.value):
        at += -at % _POINTER
        if symbol.value != at:
            pair.say("map", f"map {symbol.name} is at byte {symbol.value} of .maps and not at {at}")
        at = symbol.end
    if len(now.data) != at:
        pair.say("map", f"section .maps: its {len(now.data)} bytes should be {at}")
    if any(now.data[floor:]):
        pair.say("map", "section .maps: added bytes are not zero")


def _chain_map(pair: Pair, name: str, numbers: dict[str, int], symbol: Symbol | None) -> None:
    """One of the chain's maps: added, or there already with another link of the object."""
    intent, (_, btf) = pair.intent, pair.btf
    slots = name == intent.slots_map
    there = symbol is not None or any(s.name == name for s in pair.before.symbols)
    if not there:
        if intent.strategy != "none" and not (slots and intent.ends):
            pair.say("map", f"the chain's map {name} is not defined")
        return
    if btf is None:
        pair.say("map", f"map {name} has no BTF, so no definition")
        return
    if symbol is None and not _used(pair, name):
        return  # a map of IN that this link does not use
    found = btf.ids(b.VAR, name)
    if len(found) != 1:
        pair.say("map", f"map {name}: BTF defines it {len(found)} times")
        return
    try:
        definition = definition_of(btf, found[0])
    except Unreadable as problem:
        pair.say("map", str(problem))
        return
    pinned = definition.numbers.get("pinning") == PIN_BY_NAME
    wanted = numbers | ({"pinning": PIN_BY_NAME} if pinned else {})
    if definition.numbers != wanted:
        strange = sorted(dict(definition.numbers).items() ^ wanted.items())
        pair.say(
            "map",
            f"map {name} is not as the chain's must be: {strange[0][0]} is "
            f"{definition.numbers.get(strange[0][0])} and should be {wanted.get(strange[0][0])}",
        )
    if symbol is None:
        return
    if slots and intent.ends and not pinned:
        pair.say("map", f"map {name} is added to a link that ends the chain")
    values = slots and pinned
    if definition.has_values != values:
        pair.say("map", f"map {name}: initial values and pinning belong together")
    states = [intent.hook.slot(state, intent.index) for state in intent.states]
    room = max(states) + 1 if values else 0
    if symbol.size != definition.size + _POINTER * room:
        pair.say("map", f"map {name}: its symbol has {symbol.size} bytes")
    if symbol.type != STT_OBJECT or symbol.binding != STB_GLOBAL:
        pair.say("map", f"map {name}: its symbol is not a global object")
    _values(pair, symbol, definition.size, states if values else [])


def _used(pair: Pair, name: str) -> bool:
    """Whether added code refers to a map of this name."""
    return any(
        isinstance(origin, Added)
        and (item := pair.after.relocation_at(section, slot)) is not None
        and pair.after.symbols[item.symbol].name == name
        for section, origins in pair.alignment.origins.items()
        for slot, origin in enumerate(origins)
    )


def _values(pair: Pair, symbol: Symbol, base: int, slots: list[int]) -> None:
    """Initial entries of the added map: each entry program in the slot of its state, no other."""
    wanted: dict[int, str] = {}
    for slot, name in zip(slots, pair.intent.entries.values(), strict=bool(slots)):
        wanted[symbol.value + base + _POINTER * slot] = name
    for item in pair.after.relocations.get(symbol.section, ()):
        if not symbol.value <= item.offset < symbol.end:
            continue
        program = pair.after.symbols[item.symbol]
        name = wanted.pop(item.offset, "")
        place = (item.offset - symbol.value - base) / _POINTER
        pair.counted["relocations added"] += 1
        if name != program.name or item.type != R_BPF_64_ABS64 or program.section != pair.home:
            pair.say(
                "slot",
                f"map {symbol.name}: slot {place:g} initially holds {program.name or 'a section'} "
                f"and should hold {name or 'nothing'}",
            )
    for offset, name in wanted.items():
        place = (offset - symbol.value - base) / _POINTER
        pair.say("slot", f"map {symbol.name}: slot {place:g} should initially hold {name}")


def _converted(pair: Pair, legacy: Section, now: Section) -> int:
    """Legacy definitions, five words each: the BTF ones must say the same. Returns where they end."""
    _, btf = pair.btf
    end = 0
    for symbol in pair.before.symbols:
        if symbol.section != legacy.index or symbol.type == STT_SECTION:
            continue
        found = pair.symbols.get(symbol.index)
        if found is None:
            continue  # said where symbols are
        other = pair.after.symbols[found]
        end = max(end, other.end)
        try:
            words = Struct(pair.before.order + "5I").unpack_from(legacy.data, symbol.value)
            if any(legacy.data[symbol.value + 20 : max(symbol.end, symbol.value + 20)]):
                raise Unreadable("its definition says more than five words")
            if btf is None or len(ids := btf.ids(b.VAR, symbol.name)) != 1:
                raise Unreadable(f"map {symbol.name}: BTF does not define it once")
            definition = definition_of(btf, ids[0])
        except (Unreadable, error) as problem:
            pair.say("map", f"map {symbol.name}: {problem}")
            continue
        wanted = dict(zip(_LEGACY_FIELDS, words, strict=True))
        if not wanted["map_flags"]:
            del wanted["map_flags"]
        if definition.numbers != wanted or definition.has_values:
            pair.say("map", f"map {symbol.name}: BTF defines {definition.numbers}, was {wanted}")
        form = (other.section, other.type, other.size)
        if form != (now.index, STT_OBJECT, definition.size) or other.value % _POINTER:
            pair.say("map", f"map {symbol.name}: its symbol does not fit its definition")
    spans = sorted(
        (s.value, s.end) for s in pair.after.symbols
        if s.section == now.index and s.type != STT_SECTION
    )  # fmt: skip
    if any(a[1] > c[0] for a, c in pairwise(spans)):
        pair.say("map", "section .maps: definitions overlap")
    if any(now.data):
        pair.say("map", "section .maps: bytes of converted definitions are not zero")
    return end

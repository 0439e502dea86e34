"""Accounting of symbols: each of IN is in OUT, moved by the one map and by nothing else; new ones are
the entries of further states, the body's function, the chain's maps and what relocates them.
"""

from __future__ import annotations

from bpfchain.verify.static.insns import SLOT
from bpfchain.verify.static.model import (
    STB_GLOBAL,
    STB_LOCAL,
    STT_FUNC,
    STT_OBJECT,
    STT_SECTION,
    Symbol,
)
from bpfchain.verify.static.pair import LEGACY_MAPS, Pair

__all__ = ["check_symbols"]


def check_symbols(pair: Pair) -> None:
    """Every rule of this module."""
    _kept(pair)
    _added(pair)
    _entries(pair)
    if pair.shared:
        _body(pair)


def _kept(pair: Pair) -> None:
    for symbol in pair.before.symbols:
        section = symbol.section
        known = 0 < section < len(pair.before.sections)
        found = pair.symbols.get(symbol.index)
        if found is None:
            if not known or section in pair.sections:
                pair.say("symbol", f"symbol {_named(symbol)} is missing")
            continue
        pair.counted["symbols"] += 1
        now = pair.after.symbols[found]
        if symbol.index == pair.program.symbol:
            continue  # see _entries
        if known and symbol.type != STT_SECTION and _converted(pair, section):
            continue  # its place and size are those of the converted definition (maps)
        if not known:
            wanted = (section, symbol.value)
        elif symbol.type == STT_SECTION:
            wanted = (pair.sections[section], symbol.value)
        else:
            place = pair.place(section, symbol.value)
            if place is None:
                pair.say("symbol", f"symbol {_named(symbol)}: nothing is left of what it names")
                continue
            wanted = place
        if wanted != (now.section, now.value):
            pair.say(
                "symbol",
                f"symbol {_named(symbol)} should be {_place(pair, *wanted)} and is "
                f"{_place(pair, now.section, now.value)}",
            )
        if symbol.size != now.size:
            pair.say("symbol", f"symbol {_named(symbol)}: size {symbol.size} became {now.size}")


def _converted(pair: Pair, section: int) -> bool:
    """Whether this section of IN holds legacy map definitions that became ``.maps``."""
    if pair.before.sections[section].name != LEGACY_MAPS or section not in pair.sections:
        return False
    return pair.after.sections[pair.sections[section]].name == ".maps"


def _added(pair: Pair) -> None:
    """Names of what a patch may define, each at most once."""
    intent = pair.intent
    entries = set(list(intent.entries.values())[1:])
    maps = {intent.slots_map} | ({intent.saved_map} if intent.mode == "map" else set())
    seen: set[str] = set()
    for symbol in pair.added_symbols:
        form = (symbol.type, symbol.binding, symbol.other)
        inside = 0 < symbol.section < len(pair.after.sections)
        home = pair.after.sections[symbol.section] if inside else None
        right = False
        if home is None:
            pass
        elif symbol.name in entries:
            right = form == (STT_FUNC, STB_GLOBAL, 0) and home.index == pair.home
        elif symbol.name in maps:
            right = form == (STT_OBJECT, STB_GLOBAL, 0) and home.name == ".maps"
        elif pair.shared and symbol.name == intent.body_name:
            right = form == (STT_FUNC, STB_LOCAL, 0) and home.index == pair.text
        elif pair.shared and form == (STT_SECTION, STB_LOCAL, 0):
            there = [s.type == STT_SECTION and s.section == home.index for s in pair.after.symbols]
            right = home.index == pair.text and sum(there) == 1
            right = right and not (symbol.value or symbol.size)
        key = symbol.name if symbol.type != STT_SECTION else ""
        if not right or key in seen:
            pair.say(
                "symbol",
                f"symbol {_named(symbol)} is added (type {symbol.type}, binding {symbol.binding})",
            )
        seen.add(key)


def _entries(pair: Pair) -> None:
    """The entries tile what their section grew by and the body's place, in the order of states."""
    before, after = pair.before, pair.after
    size = len(before.sections[pair.program.section].data)
    grown = len(after.sections[pair.home].data) - size
    at = pair.program.start * SLOT
    end = pair.program.end * SLOT + grown
    known = pair.symbols.get(pair.program.symbol)
    for number, name in enumerate(pair.intent.entries.values()):
        if number == 0 and known is not None:
            symbol = after.symbols[known]
        else:
            found = [s for s in pair.added_symbols if s.name == name and s.type == STT_FUNC]
            if not found:
                pair.say("symbol", f"there is no entry program {name}")
                return
            symbol = found[0]
        if (symbol.section, symbol.value) != (pair.home, at) or symbol.size <= 0:
            pair.say(
                "symbol",
                f"the entry {name} should begin at {_place(pair, pair.home, at)} and is "
                f"{_place(pair, symbol.section, symbol.value)}, {symbol.size} bytes",
            )
            return
        at = symbol.end
    if at != end:
        pair.say("symbol", f"the entries end at byte {at} and should end at {end}")


def _body(pair: Pair) -> None:
    """The body's function covers the end of ``.text``: no gap, no alias."""
    text = pair.before.named(".text")
    start = len(text.data) if text is not None else 0
    length = (pair.program.end - pair.program.start) * SLOT
    found = [s for s in pair.added_symbols if s.name == pair.intent.body_name]
    if not found:
        pair.say("symbol", f"there is no function {pair.intent.body_name}")
    elif (found[0].section, found[0].value, found[0].size) != (pair.text, start, length):
        pair.say(
            "symbol",
            f"function {found[0].name} should be at byte {start} of .text, {length} bytes, and is "
            f"{_place(pair, found[0].section, found[0].value)}, {found[0].size} bytes",
        )


def _place(pair: Pair, section: int, value: int) -> str:
    if 0 < section < len(pair.after.sections):
        return f"at byte {value} of {pair.after.sections[section].name}"
    return f"at {value} of section index {section:#x}"


def _named(symbol: Symbol) -> str:
    return symbol.name or f"number {symbol.index} (type {symbol.type})"

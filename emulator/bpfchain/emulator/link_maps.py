"""The maps that an object defines, as libbpf would create them.

BTF-defined maps (``.maps``), legacy definitions of five words (``maps``), and sections of global
data, which are arrays of one entry. Order: as libbpf's, so that reports name maps alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from struct import Struct
from typing import NamedTuple

from bpfchain.transform import records as r
from bpfchain.transform.btf import Kind
from bpfchain.transform.elf import Object, Section, Symbol
from bpfchain.transform.errors import RefusedError

from .types import Types

__all__ = ["KCONFIG", "MapSpec", "ObjectMaps", "is_data", "read_maps"]

KCONFIG = ".kconfig"
ARRAY, PROG_ARRAY, ARRAY_OF_MAPS, HASH_OF_MAPS, RINGBUF = 2, 3, 12, 13, 27
_OF_MAPS = (ARRAY_OF_MAPS, HASH_OF_MAPS)
F_RDONLY_PROG, F_MMAPABLE = 1 << 7, 1 << 10
_PAGE = 4096
_NUMBERS = {
    "type": "type", "max_entries": "max_entries", "map_flags": "flags", "key_size": "key_size",
    "value_size": "value_size",
}  # fmt: skip
_IGNORED = frozenset({"numa_node", "map_extra"})


@dataclass(frozen=True, slots=True, kw_only=True)
class MapSpec:
    """A map as the object defines it. Types, flags: the kernel's numbers; sizes in bytes."""

    name: str
    """As in the object; of a data section the section's name (``.rodata``)."""
    type: int
    key_size: int
    value_size: int
    max_entries: int
    """0 where the object leaves it to its loader."""
    flags: int = 0
    inner: MapSpec | None = None
    """The template of the maps in a map of maps."""
    values: tuple[tuple[int, str], ...] = ()
    """Initial entries of a prog array (programs) or map of maps (maps), by name."""
    contents: bytes | None = None
    """Initial value of a data section's only entry."""
    readonly: bool = False
    """Programs may not write it."""
    pinned: bool = False
    """It asks for LIBBPF_PIN_BY_NAME. A file system is the loader's business: not followed here."""

    @property
    def internal(self) -> bool:
        """Whether a section of global data became it."""
        return self.contents is not None


class ObjectMaps(NamedTuple):
    """An object's maps, and where each is defined."""

    specs: tuple[MapSpec, ...]
    at: Mapping[tuple[int, int], int]
    """(section, offset) of definitions in ``.maps`` or ``maps`` -> index."""
    data: Mapping[int, int]
    """Sections of global data -> index."""
    kconfig: int | None

    def holds_definitions(self, section: int) -> bool:
        """Whether relocations against the section mean maps."""
        return any(place == section for place, _ in self.at)


def is_data(section: Section) -> bool:
    """Whether libbpf makes a map of the section's content."""
    name = section.name
    if section.type == r.SHT_NOBITS:
        return name == ".bss" or name.startswith(".bss.")
    return section.type == r.SHT_PROGBITS and (
        name in (".data", ".rodata") or name.startswith((".data.", ".rodata."))
    )


def read_maps(obj: Object, types: Types | None, kconfig: bytes | None) -> ObjectMaps:
    """All maps; ``kconfig`` is the content of the kernel-configuration map, None without one.

    Raises RefusedError for definitions that libbpf would not take.
    """
    specs: list[MapSpec] = []
    at: dict[tuple[int, int], int] = {}
    data: dict[int, int] = {}
    section = obj.section(".maps")
    if section is not None and section.data:
        if types is None:
            raise RefusedError("section .maps: its definitions are in BTF, and there is none")
        for symbol, spec in _btf_maps(obj, section, types):
            at[section.id, symbol.value] = len(specs)
            specs.append(spec)
    for section in obj.sections:
        if section.name.startswith("maps/"):
            raise RefusedError(f"section {section.name}: legacy maps of this dialect are not read")
        if section.name == "maps" and section.data:
            for symbol, spec in _legacy_maps(obj, section):
                at[section.id, symbol.value] = len(specs)
                specs.append(spec)
    for section in obj.sections:
        if is_data(section) and section.size:
            data[section.id] = len(specs)
            content = section.data or bytes(section.size)
            specs.append(_content(section.name, content, section.name.startswith(".rodata")))
    if kconfig is not None:
        specs.append(_content(KCONFIG, kconfig, True))
    return ObjectMaps(tuple(specs), at, data, None if kconfig is None else len(specs) - 1)


def _content(name: str, content: bytes, readonly: bool) -> MapSpec:
    flags = F_MMAPABLE | (F_RDONLY_PROG if readonly else 0)
    return MapSpec(
        name=name, type=ARRAY, key_size=4, value_size=len(content), max_entries=1, flags=flags,
        contents=content, readonly=readonly,
    )  # fmt: skip


def _btf_maps(obj: Object, section: Section, types: Types) -> list[tuple[Symbol, MapSpec]]:
    symbols = {
        s.name: s for s in obj.by_place.get(section.id, ()) if s.type not in (r.STT_SECTION,)
    }
    found: list[tuple[Symbol, MapSpec]] = []
    values = _initial(obj, section)
    for sec in types.named(".maps"):
        if types.kind(sec) != Kind.DATASEC:
            continue
        for variable, _, _ in types.members(sec):
            name = types.name(variable)
            symbol = symbols.get(name)
            if symbol is None:
                raise RefusedError(f"section .maps: map {name} has types but no symbol")
            struct = types.plain(types.target(variable))
            spec, slots = _definition(types, struct, name)
            own = [(o - symbol.value, to) for o, to in values if symbol.value <= o < symbol.end]
            if own and slots is None:
                raise RefusedError(f"section .maps: map {name} takes no initial entries")
            entries = tuple((_slot(name, o, slots or 0), to) for o, to in own)
            found.append((symbol, replace(spec, values=entries)))
    return found


def _slot(name: str, offset: int, start: int) -> int:
    if offset < start or (offset - start) % 8:
        raise RefusedError(f"section .maps: map {name} has an initial entry at {offset}")
    return (offset - start) // 8


def _initial(obj: Object, section: Section) -> list[tuple[int, str]]:
    names = obj.symbol_by_id
    return [(item.offset, names[item.symbol].name) for item in obj.relocations(section.id)]


def _number(types: Types, name: str, member: int, pointed: int) -> int:
    """A number, which the definition encodes as an array's length or as an enumerator."""
    plain = types.plain(pointed)
    if types.kind(plain) == Kind.PTR:
        array = types.plain(types.target(plain))
        if types.kind(array) == Kind.ARRAY:
            return types.words(array, 3)[2]
    if types.kind(plain) in (Kind.ENUM, Kind.ENUM64) and types.vlen(plain) == 1:
        return types.enumerators(plain)[0][1]
    raise RefusedError(f"section .maps: map {name}: {types.string(member)} is no number")


def _definition(types: Types, struct: int, name: str) -> tuple[MapSpec, int | None]:
    """The map, and at which byte its initial entries begin."""
    if types.kind(struct) != Kind.STRUCT:
        raise RefusedError(f"section .maps: map {name} is defined by no struct")
    fields: dict[str, int] = {}
    inner = slots = None
    pinned = False
    for member in types.members(struct):
        word, pointed, bits = types.string(member[0]), member[1], types.bits(struct, member)[0]
        if word in _NUMBERS or word == "pinning":
            number = _number(types, name, member[0], pointed)
            if word == "pinning":
                pinned = bool(number)
            elif fields.setdefault(_NUMBERS[word], number) != number:
                raise RefusedError(f"section .maps: map {name}: {word} and its type disagree")
        elif word in ("key", "value"):
            size = types.size(types.target(types.plain(pointed)))
            if fields.setdefault(f"{word}_size", size) != size:
                raise RefusedError(f"section .maps: map {name}: {word} and {word}_size disagree")
        elif word == "values":
            slots = bits // 8
            array = types.plain(pointed)
            if types.kind(array) != Kind.ARRAY:
                raise RefusedError(f"section .maps: map {name}: values is no array")
            target = types.plain(types.target(types.plain(types.words(array, 3)[0])))
            if fields.get("type") in _OF_MAPS:
                inner, _ = _definition(types, target, f"{name}.inner")
        elif word not in _IGNORED:
            raise RefusedError(f"section .maps: map {name}: {word} is not known")
    kind = fields.pop("type", 0)
    if not kind:
        raise RefusedError(f"section .maps: map {name} has no type")
    if kind in _OF_MAPS or slots is not None:
        fields.setdefault("value_size", 4)
        fields.setdefault("key_size", 4)
    entries = fields.pop("max_entries", 0)
    if kind == RINGBUF and entries:  # libbpf rounds up to what the kernel takes
        pages = max(-(-entries // _PAGE), 1)
        entries = _PAGE << (pages - 1).bit_length()
    spec = MapSpec(
        name=name, type=kind, key_size=fields.pop("key_size", 0),
        value_size=fields.pop("value_size", 0), max_entries=entries, inner=inner, pinned=pinned,
        flags=fields.pop("flags", 0), readonly=False,
    )  # fmt: skip
    return replace(spec, readonly=bool(spec.flags & F_RDONLY_PROG)), slots


def _legacy_maps(obj: Object, section: Section) -> list[tuple[Symbol, MapSpec]]:
    """Definitions of at least five words; libbpf before 1.0 wanted the words behind them zero."""
    group = [s for s in obj.by_place.get(section.id, ()) if s.type != r.STT_SECTION]
    symbols = sorted(group, key=lambda s: s.value)
    size = len(section.data) // len(symbols) if symbols else 0
    if size < 20 or [s.value for s in symbols] != list(range(0, len(section.data), size)):
        raise RefusedError(
            f"section maps: {len(section.data)} bytes for {len(symbols)} maps are no definitions"
        )
    found = []
    for symbol in symbols:
        words = Struct(obj.order + "5I").unpack_from(section.data, symbol.value)
        if any(section.data[symbol.value + 20 : symbol.value + size]):
            raise RefusedError(
                f"section maps: map {symbol.name} says more than type, sizes, entries and flags"
            )
        kind, key, value, entries, flags = words
        spec = MapSpec(
            name=symbol.name, type=kind, key_size=key, value_size=value, max_entries=entries,
            flags=flags, readonly=bool(flags & F_RDONLY_PROG),
        )  # fmt: skip
        found.append((symbol, spec))
    return found

"""Maps that the patch adds or converts: a definition becomes BTF types, a symbol, room in ``.maps``.

The form is what ``SEC(".maps")`` of libbpf's bpf_helpers.h gives: a struct whose members encode
numbers as array lengths (libbpf, ``parse_btf_map_def``). Every loader's demands on it are listed in
research/loaders-and-verifier.md, section 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from struct import Struct

from . import records as r
from .btf import FUNC_STATIC, VAR_GLOBAL, Btf, BtfType, Kind
from .elf import Object, Relocation, SymbolId
from .elf_edit import add_section, add_symbol, change_section
from .errors import RefusedError
from .layout import new_relocation_section

__all__ = [
    "PERCPU_ARRAY", "PROG_ARRAY", "MapDefinition", "add_map", "find_map", "set_initial_entries", "static_clone",
    "struct_for",
]  # fmt: skip

PROG_ARRAY, PERCPU_ARRAY = 3, 6
PIN_BY_NAME = 1
_POINTER = 8
_INT_SIGNED_32 = 1 << 24 | 32


@dataclass(frozen=True, slots=True)
class MapDefinition:
    """A map as a loader creates it."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0
    pinned: bool = False
    initial: int | None = None
    """Slots of room for initial entries of a PROG_ARRAY; None where it has no such member."""

    def numbers(self) -> Mapping[str, int]:
        """The members of the definition that are numbers, in the order they are written."""
        members = {
            "type": self.type, "key_size": self.key_size, "value_size": self.value_size,
            "max_entries": self.max_entries,
        }  # fmt: skip
        if self.flags:
            members["map_flags"] = self.flags
        if self.pinned:
            members["pinning"] = PIN_BY_NAME
        return members


def add_map(obj: Object, btf: Btf, definition: MapDefinition) -> tuple[Object, Btf, SymbolId]:
    """The object and BTF that also define this map, and the map's symbol.

    Raises RefusedError where the name is taken.
    """
    if any(symbol.name == definition.name for symbol in obj.symbols):
        raise RefusedError(
            f"the name {definition.name} of the chain's map is taken in this object",
            "give the map another name with --slots-map",
        )
    btf, struct_id, struct_size = struct_for(btf, definition)
    btf, var_id = btf.with_type(
        Kind.VAR, definition.name, struct_id, tail=Struct(btf.order + "I").pack(VAR_GLOBAL)
    )
    section = obj.section(".maps")
    if section is None:
        obj, maps_id = add_section(obj, ".maps", b"", flags=r.SHF_WRITE | r.SHF_ALLOC, align=8)
        section = obj.by_id[maps_id]
    start = len(section.data) + -len(section.data) % 8
    size = struct_size + _POINTER * (definition.initial or 0)
    data = section.data + bytes(start - len(section.data)) + bytes(size)
    obj = change_section(obj, section.id, data)
    obj, symbol = add_symbol(
        obj, definition.name, section.id, start, size, bind=r.STB_GLOBAL, type=r.STT_OBJECT
    )
    btf = _extend_datasec(btf, var_id, start, size, len(data))
    return obj, btf, symbol


def set_initial_entries(
    obj: Object, symbol: SymbolId, entries: Iterable[tuple[int, SymbolId]], room: int
) -> Object:
    """Relocate the initial entries (key, program) of a map that was added with ``room`` for them."""
    known = obj.symbol_by_id[symbol]
    assert known.place is not None
    maps, base = known.place, known.end - _POINTER * room
    added = tuple(
        Relocation(base + _POINTER * key, r.R_BPF_64_ABS64, program)
        for key, program in sorted(entries)
    )
    holder = obj.relocation_section(maps)
    if holder is not None:
        old = obj.relocations(maps)
        return change_section(obj, holder.id, obj.encode_relocations(old + added))
    return new_relocation_section(obj, maps, added)


def struct_for(btf: Btf, definition: MapDefinition) -> tuple[Btf, int, int]:
    """The BTF with the anonymous struct of a map's definition, the struct's id and size in bytes."""
    btf, int_id = _int(btf, "int", _INT_SIGNED_32)
    btf, index_id = _int(btf, "__ARRAY_SIZE_TYPE__", 32)
    members: list[tuple[str, int]] = []
    for name, number in definition.numbers().items():
        btf, array = btf.with_type(Kind.ARRAY, tail=btf.words.pack(int_id, index_id, number))
        btf, pointer = btf.with_type(Kind.PTR, size_or_type=array)
        members.append((name, pointer))
    if definition.initial is not None:
        btf, anything = btf.with_type(Kind.PTR, size_or_type=0)
        parameter = Struct(btf.order + "II").pack(0, anything)
        btf, proto = btf.with_type(Kind.FUNC_PROTO, size_or_type=int_id, vlen=1, tail=parameter)
        btf, pointer = btf.with_type(Kind.PTR, size_or_type=proto)
        btf, array = btf.with_type(Kind.ARRAY, tail=btf.words.pack(pointer, index_id, 0))
        members.append(("values", array))
    tail = b""
    for position, (name, kind) in enumerate(members):
        btf, name_offset = btf.with_string(name)
        tail += btf.words.pack(name_offset, kind, position * _POINTER * 8)
    size = _POINTER * len(definition.numbers())
    btf, struct_id = btf.with_type(Kind.STRUCT, "", size, vlen=len(members), tail=tail)
    return btf, struct_id, size


def _int(btf: Btf, name: str, encoding: int) -> tuple[Btf, int]:
    tail = Struct(btf.order + "I").pack(encoding)
    for known in btf.find(Kind.INT, name):
        found = btf.type(known)
        if found.size_or_type == 4 and found.tail == tail:
            return btf, known
    return btf.with_type(Kind.INT, name, 4, tail=tail)


def _extend_datasec(btf: Btf, var_id: int, offset: int, size: int, section_size: int) -> Btf:
    found = btf.find(Kind.DATASEC, ".maps")
    if not found:
        tail = btf.words.pack(var_id, 0, size)
        return btf.with_type(Kind.DATASEC, ".maps", 0, vlen=1, tail=tail)[0]
    old = btf.type(found[0])
    # size 0 tells loaders to take sizes and offsets from the symbols (libbpf, btf_fixup_datasec)
    entry = btf.words.pack(var_id, offset if old.size_or_type else 0, size)
    return btf.with_changed(
        found[0],
        replace(
            old,
            vlen=old.vlen + 1,
            size_or_type=section_size if old.size_or_type else 0,
            tail=old.tail + entry,
        ),
    )


def find_map(obj: Object, btf: Btf, name: str) -> tuple[SymbolId, dict[str, int]] | None:
    """The symbol of a map defined in ``.maps``, and its numbers; None where there is none."""
    section = obj.section(".maps")
    if section is None:
        return None
    symbol = next((s for s in obj.by_place.get(section.id, ()) if s.name == name), None)
    variables = btf.find(Kind.VAR, name)
    if symbol is None or not variables:
        return None
    numbers: dict[str, int] = {}
    struct = btf.type(btf.type(variables[0]).size_or_type)
    for name_offset, kind, _ in btf.members(struct) if struct.kind == Kind.STRUCT else ():
        pointed = btf.type(kind)
        if pointed.kind == Kind.PTR and pointed.size_or_type:
            array = btf.type(pointed.size_or_type)
            if array.kind == Kind.ARRAY:
                numbers[btf.name(name_offset)] = btf.words.unpack(array.tail)[2]
    return symbol.id, numbers


def static_clone(btf: Btf, func: BtfType, name: str) -> tuple[Btf, int]:
    """A FUNC of the same prototype, static, without the original's decl tags."""
    return btf.with_type(Kind.FUNC, name, func.size_or_type, vlen=FUNC_STATIC)

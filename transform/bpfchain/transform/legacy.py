"""Legacy ``maps`` sections: plain five-word definitions become BTF-defined maps.

libbpf 1.0 and newer refuse the old section, and an object cannot have both kinds, so all maps are
converted or the object is refused. The five words are ``struct bpf_map_def`` of old
bpf_helpers.h: type, key_size, value_size, max_entries, map_flags.
"""

from __future__ import annotations

from dataclasses import replace
from struct import Struct

from . import records as r
from .btf import VAR_GLOBAL, Btf, Kind
from .btf_maps import MapDefinition, struct_for
from .elf import Object, Section, Symbol
from .errors import RefusedError

__all__ = ["convert_legacy_maps"]

_WORDS = 5
_SIZE = 4 * _WORDS


def convert_legacy_maps(obj: Object, btf: Btf) -> tuple[Object, Btf, tuple[str, ...]]:
    """The object and BTF where the section ``maps`` became ``.maps``, and the maps' names.

    Raises RefusedError where a definition is not the plain one.
    """
    for section in obj.sections:
        if section.name.startswith("maps/"):
            raise RefusedError(
                f"section {section.name}: legacy maps of this dialect are not converted"
            )
    old = obj.section("maps")
    if old is None:
        return obj, btf, ()
    if obj.section(".maps") is not None:
        raise RefusedError("it has both a legacy section maps and .maps: no loader takes both")
    symbols = _definitions(obj, old)
    moved: dict[int, Symbol] = {}
    variables: list[tuple[int, int]] = []
    data = b""
    for symbol in symbols:
        definition = _read(old, symbol, obj.order)
        btf, struct_id, size = struct_for(btf, definition)
        tail = Struct(btf.order + "I").pack(VAR_GLOBAL)
        known = [
            v for v in btf.find(Kind.VAR, symbol.name) if btf.type(v).tail == tail
        ]  # of an object that was compiled with BTF
        if known:
            var_id = known[0]
            btf = btf.with_changed(var_id, replace(btf.type(var_id), size_or_type=struct_id))
        else:
            btf, var_id = btf.with_type(Kind.VAR, symbol.name, struct_id, tail=tail)
        variables.append((var_id, size))
        moved[symbol.id] = replace(symbol, value=len(data), size=size, type=r.STT_OBJECT)
        data += bytes(size)
    tail = b"".join(btf.words.pack(var_id, 0, size) for var_id, size in variables)
    btf, name = btf.with_string(".maps")
    found = btf.find(Kind.DATASEC, "maps")
    legacy = [i for i in found if btf.name(btf.type(i).name_offset) == "maps"]
    if legacy:
        changed = replace(
            btf.type(legacy[0]), name_offset=name, size_or_type=0, vlen=len(variables), tail=tail
        )
        btf = btf.with_changed(legacy[0], changed)
    else:
        btf, _ = btf.with_type(Kind.DATASEC, ".maps", 0, vlen=len(variables), tail=tail)
    section = replace(
        old.with_data(data), name=".maps", name_offset=None, addralign=8,
        flags=r.SHF_WRITE | r.SHF_ALLOC,
    )  # fmt: skip
    obj = replace(
        obj,
        sections=tuple(section if s.id == old.id else s for s in obj.sections),
        symbols=tuple(moved.get(s.id, s) for s in obj.symbols),
    )
    return obj, btf, tuple(symbol.name for symbol in symbols)


def _definitions(obj: Object, old: Section) -> list[Symbol]:
    symbols = sorted(
        (s for s in obj.by_place.get(old.id, ()) if s.type != r.STT_SECTION), key=lambda s: s.value
    )
    for symbol in symbols:
        if symbol.bind == r.STB_LOCAL:
            raise RefusedError(f"section maps: {symbol.name} is static: no loader takes it")
    starts = [symbol.value for symbol in symbols]
    if starts != list(range(0, len(old.data), _SIZE)) or len(old.data) % _SIZE:
        raise RefusedError(
            f"section maps: {len(old.data)} bytes for {len(symbols)} maps are not plain definitions "
            f"of {_WORDS} words",
            'use BTF-defined maps: SEC(".maps")',
        )
    if obj.relocation_section(old.id) is not None:
        raise RefusedError("section maps: definitions with relocations are not converted")
    for section in obj.sections:
        if section.type == r.SHT_REL and section.target is not None:
            for item in obj.decode_relocations(section):
                used = obj.symbol_by_id[item.symbol]
                name = obj.by_id[section.target].name
                if (
                    used.place == old.id
                    and used.type == r.STT_SECTION
                    and not name.startswith((".debug_", ".BTF"))
                ):
                    raise RefusedError(
                        f"section {name}: refers to section maps without a map's name"
                    )
    return symbols


def _read(section: Section, symbol: Symbol, order: str) -> MapDefinition:
    kind, key, value, entries, flags = Struct(f"{order}{_WORDS}I").unpack_from(
        section.data, symbol.value
    )
    return MapDefinition(symbol.name, kind, key, value, entries, flags)

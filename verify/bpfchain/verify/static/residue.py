"""Stack bytes that a program reads before it wrote them, and what helpers need to know of maps for it.

Such a program sees what ran on the stack before it: alone that is mostly the same every time, in a
chain it is what the link before left there (a map key with padding that nobody cleared).
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct

from bpfchain.verify.result import Place, Residue
from bpfchain.verify.static import btf as b
from bpfchain.verify.static.btf import Btf
from bpfchain.verify.static.facts import Facts
from bpfchain.verify.static.model import STT_SECTION, Obj, Unreadable

__all__ = ["map_sizes", "residue_of"]


def residue_of(obj: Obj, facts: Facts) -> tuple[Residue, ...]:
    """What the facts say of unwritten bytes, with places in IN."""
    return tuple(
        Residue(
            Place("in", obj.sections[read.section].name, read.slot,
                  obj.function_at(read.section, read.slot)),
            read.offset, read.size, read.how,
        )
        for read in facts.unwritten
    )  # fmt: skip


def map_sizes(obj: Obj, btf: Btf | None) -> Mapping[str, tuple[int, int]]:
    """Key and value size of the maps that the object defines, by name; 0 for what is not told."""
    sizes: dict[str, tuple[int, int]] = {}
    names = {s.index: s.name for s in obj.sections}
    for symbol in obj.symbols:
        section = names.get(symbol.section, "")
        if symbol.type == STT_SECTION or not symbol.name:
            continue
        if section == "maps":  # struct bpf_map_def: type, key_size, value_size …
            data = obj.sections[symbol.section].data[symbol.value : symbol.value + 12]
            if len(data) == 12:
                _, key, value = Struct(obj.order + "3I").unpack(data)
                sizes[symbol.name] = (key, value)
        elif section == ".maps" and btf is not None:
            for var in btf.ids(b.VAR, symbol.name):
                sizes[symbol.name] = _sizes(btf, btf.type(var).third)
    return sizes


def _sizes(btf: Btf, type_id: int) -> tuple[int, int]:
    """From the definition's members: ``key_size`` is a pointer to an array of that length, ``key``
    a pointer to a type of that size."""
    found = {"key": 0, "value": 0}
    try:
        struct = btf.type(_plain(btf, type_id))
        for name_offset, kind, _ in struct.members if struct.kind == b.STRUCT else ():
            name, pointer = btf.name(name_offset), btf.type(kind)
            if pointer.kind != b.PTR:
                continue
            if name.removesuffix("_size") in found and name.endswith("_size"):
                array = btf.type(pointer.third)
                found[name.removesuffix("_size")] = array.tail[2] if array.kind == b.ARRAY else 0
            elif name in found:
                found[name] = _size_of(btf, pointer.third)
    except Unreadable:
        return 0, 0
    return found["key"], found["value"]


def _plain(btf: Btf, type_id: int) -> int:
    for _ in range(64):
        if btf.type(type_id).kind not in b.MODIFIERS:
            return type_id
        type_id = btf.type(type_id).third
    raise Unreadable("section .BTF: types that go round in a circle")


def _size_of(btf: Btf, type_id: int, depth: int = 0) -> int:
    """Bytes of a type; 0 for what has none."""
    plain = btf.type(_plain(btf, type_id))
    if plain.kind == b.PTR:
        return 8
    if plain.kind == b.ARRAY:
        return plain.tail[2] * _size_of(btf, plain.tail[0], depth + 1) if depth < 32 else 0
    if plain.kind in (b.INT, b.STRUCT, b.UNION, b.ENUM, b.ENUM64, b.FLOAT):
        return plain.third
    return 0

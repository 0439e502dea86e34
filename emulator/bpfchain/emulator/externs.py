"""What an object takes from the kernel it is loaded on: its configuration and its symbols.

libbpf reads both from the running kernel. Here they are given, so that a run depends on nothing
else; what is not given is 0 where that is a value the program must expect, and said in ``assumed``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from zlib import crc32

from bpfchain.transform import records as r
from bpfchain.transform.btf import Kind
from bpfchain.transform.elf import Object, Symbol
from bpfchain.transform.errors import RefusedError, UsageError

from .types import Types

__all__ = ["Extern", "Externs", "missing", "read_externs"]


class Extern(NamedTuple):
    """One undefined symbol. ``value``: offset in the configuration map, or the address (0: none)."""

    name: str
    kind: str
    """``kconfig``, ``typed`` (a variable of the kernel's BTF), ``address``, or ``function``."""
    value: int
    weak: bool


class Externs(NamedTuple):
    """All undefined symbols that BTF describes, by symbol; the configuration map's content."""

    by_symbol: Mapping[int, Extern]
    kconfig: bytes | None
    assumed: tuple[str, ...]
    """What was not given, one phrase each."""


_NONE = Externs({}, None, ())


def read_externs(
    obj: Object, types: Types | None, kconfig: Mapping[str, bytes], ksyms: Mapping[str, int]
) -> Externs:
    """Find the externs and give each its value.

    Raises UsageError for a given configuration value that is too long.
    """
    undefined = [
        symbol
        for symbol in obj.by_place.get(None, ())
        if symbol.special == r.SHN_UNDEF and symbol.name and symbol.bind != r.STB_LOCAL
    ]
    if not undefined or types is None:
        return _NONE
    found: dict[int, Extern] = {}
    assumed: list[str] = []
    kernel = _declared(types, ".ksyms")
    for symbol in undefined:
        if symbol.name in kernel:
            extern, said = _ksym(types, symbol, kernel[symbol.name], ksyms)
            found[symbol.id] = extern
            if said:
                assumed.append(said)
    content = _configuration(types, undefined, kconfig, found, assumed)
    return Externs(found, content, tuple(sorted(assumed)))


def _declared(types: Types, section: str) -> dict[str, int]:
    """Names in a section of externs, each with its VAR or FUNC."""
    return {
        types.name(member[0]): member[0]
        for sec in types.named(section)
        if types.kind(sec) == Kind.DATASEC
        for member in types.members(sec)
    }


def _ksym(
    types: Types, symbol: Symbol, declared: int, ksyms: Mapping[str, int]
) -> tuple[Extern, str]:
    name, weak = symbol.name, symbol.bind == r.STB_WEAK
    if types.kind(declared) == Kind.FUNC:
        kind = "function"
    else:
        kind = "typed" if types.kind(types.plain(types.target(declared))) else "address"
    if name in ksyms:
        return Extern(name, kind, ksyms[name], weak), ""
    if weak:  # as on a kernel that has no such symbol
        return Extern(name, kind, 0, weak), f"weak ksym {name} does not exist"
    if kind == "function":
        return Extern(name, kind, _address(name), weak), ""
    return Extern(name, kind, _address(name), weak), f"ksym {name} has an address of no meaning"


def _address(name: str) -> int:
    """An address that no memory is at, the same for every object that names the symbol."""
    return 0xFFFF_FFFF_8000_0000 | (crc32(name.encode()) & 0x3FFF_FFF8)


def _configuration(
    types: Types, undefined: list[Symbol], given: Mapping[str, bytes], found: dict[int, Extern],
    assumed: list[str],
) -> bytes | None:  # fmt: skip
    """The content of the configuration map, laid out as libbpf does: by alignment, size, name."""
    declared = _declared(types, ".kconfig")
    rows = []
    for symbol in undefined:
        if symbol.name in declared:
            value_type = types.target(declared[symbol.name])
            align, size = types.align(value_type), types.size(value_type)
            rows.append((-align, size, symbol.name, symbol))
    if not rows:
        return None
    content = bytearray()
    for minus_align, size, name, symbol in sorted(rows, key=lambda row: row[:3]):
        content += bytes(-len(content) % -minus_align)
        value = given.get(name)
        if value is None:
            value = b""
            assumed.append(f"kconfig {name} is 0")
        elif len(value) > size:
            raise UsageError(f"kconfig {name}: {len(value)} bytes are given, it holds {size}")
        weak = symbol.bind == r.STB_WEAK
        found[symbol.id] = Extern(name, "kconfig", len(content), weak)
        content += value.ljust(size, b"\0")
    return bytes(content)


def missing(section: str, symbol: Symbol) -> RefusedError:
    """The error for a symbol that nothing declares."""
    return RefusedError(
        f"section {section}: {symbol.name} is defined nowhere",
        "link the objects (bpftool gen object), or declare it __ksym or __kconfig",
    )

"""An object's bytes become what the kernel would see: libbpf's linking, in user space.

Programs with the subprograms they call behind them, maps, global data, externs, and (with the types
of a kernel) CO-RE. The order of functions, maps and instructions is libbpf's, which the tests
compare. A program is linked when it is asked for; most instructions are never looked at in Python.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from bpfchain.transform.elf import Object
from bpfchain.transform.elf_read import read_object
from bpfchain.transform.errors import InconclusiveError, RefusedError

from .externs import read_externs
from .link_code import Code, Linked
from .link_maps import MapSpec, read_maps
from .types import Types, read_target

if TYPE_CHECKING:
    from .core_relo import CoreRelocations

__all__ = ["Image", "LinkedObject", "MapSpec", "link_object"]

_NOTHING: Mapping[str, bytes] = MappingProxyType({})
_NO_SYMBOLS: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Image:
    """A program as it is given to the kernel, but that maps are indexes instead of descriptors."""

    name: str
    section: str
    code: bytes
    """Little-endian. LDDW pseudo sources as ``_ubpf.World.add_program`` takes them."""
    maps: tuple[int, ...]
    """Maps that the code refers to, as indexes into ``LinkedObject.maps``; imm is the place here."""
    functions: tuple[int, ...]
    """First instructions of the functions: the program's own, then its subprograms'."""
    function_names: tuple[str, ...]
    pieces: tuple[tuple[int, str, int], ...]
    """First instruction of each function here, its section, its first instruction there."""
    kfuncs: tuple[tuple[int, str], ...] = ()
    """Calls of kernel functions, which nothing models: instruction, name."""
    poisoned: tuple[int, ...] = ()
    """Instructions that an unresolved CO-RE relocation made calls of nothing."""

    def __len__(self) -> int:
        return len(self.code) // 8

    def place(self, pc: int) -> tuple[str, int]:
        """Section and instruction index in the object of an instruction of ``code``."""
        section, index = "", pc
        for start, name, first in self.pieces:
            if start > pc:
                break
            section, index = name, first + pc - start
        return section, index

    @property
    def origin(self) -> tuple[tuple[str, int], ...]:
        """``place`` of every instruction."""
        ends = [start for start, _, _ in self.pieces[1:]] + [len(self)]
        return tuple(
            (section, first + i)
            for (start, section, first), end in zip(self.pieces, ends, strict=True)
            for i in range(end - start)
        )


class Images(Mapping[str, Image]):
    """The programs of an object by name, each linked when it is first asked for."""

    def __init__(self, code: Code) -> None:
        self._code = code
        self._known: dict[str, Image] = {}

    def __getitem__(self, name: str) -> Image:
        image = self._known.get(name)
        if image is None:
            image = self._known[name] = _image(self._code.link(self._code.programs[name]))
        return image

    def __iter__(self) -> Iterator[str]:
        return iter(self._code.programs)

    def __len__(self) -> int:
        return len(self._code.programs)


@dataclass(frozen=True, slots=True)
class LinkedObject:
    """An object, ready to run."""

    programs: Mapping[str, Image]
    """By name, in the object's order. Asking for one links it: raises RefusedError where libbpf
    would not load it."""
    maps: tuple[MapSpec, ...]
    assumed: tuple[str, ...] = ()
    """What the object takes from a kernel and was not given (``kconfig CONFIG_HZ is 0``)."""
    sections: Mapping[str, str] = field(default_factory=dict)
    """Program -> its section, known without linking."""

    def map_index(self, name: str) -> int:
        """The index of the map of that name. KeyError where there is none."""
        for index, spec in enumerate(self.maps):
            if spec.name == name:
                return index
        raise KeyError(name)


def link_object(
    data: bytes,
    *,
    btf: bytes | None = None,
    kconfig: Mapping[str, bytes] = _NOTHING,
    ksyms: Mapping[str, int] = _NO_SYMBOLS,
) -> LinkedObject:
    """Link a compiled object.

    ``btf``: types of a kernel (raw BTF, or an ELF file with .BTF) to resolve CO-RE relocations
    against; None leaves the values that the compiler wrote, those of the object's own types.
    ``kconfig``: values of configuration externs, as bytes in memory (padded with zeros).
    ``ksyms``: addresses of kernel symbols. Raises RefusedError for objects that libbpf refuses,
    InconclusiveError for big-endian ones.
    """
    obj = read_object(data)
    if obj.order != "<":
        raise InconclusiveError(
            "big-endian objects cannot run here",
            "build the same source with -target bpfel to run it; the static check covers both",
        )
    return _link(obj, btf, kconfig, ksyms)


def _link(
    obj: Object, btf: bytes | None, kconfig: Mapping[str, bytes], ksyms: Mapping[str, int]
) -> LinkedObject:
    section = obj.section(".BTF")
    types = Types(section.data) if section is not None and section.data else None
    externs = read_externs(obj, types, kconfig, ksyms)
    maps = read_maps(obj, types, externs.kconfig)
    core: CoreRelocations | None = None
    if btf is not None and types is not None:
        from .core_relo import CoreRelocations

        ext = obj.section(".BTF.ext")
        if ext is not None and ext.data:
            core = CoreRelocations(types, read_target(btf), ext.data)
    code = Code(obj, maps, externs, core)
    sections = {name: obj.by_id[symbol.place].name for name, symbol in code.programs.items()
                if symbol.place is not None}  # fmt: skip
    _check_values(maps.specs, code)
    return LinkedObject(Images(code), maps.specs, externs.assumed, sections)


def _check_values(specs: tuple[MapSpec, ...], code: Code) -> None:
    names = {spec.name for spec in specs}
    for spec in specs:
        for _, to in spec.values:
            if to not in (names if spec.inner is not None else code.programs):
                raise RefusedError(f"section .maps: map {spec.name}: initial entry {to} is unknown")


def _image(linked: Linked) -> Image:
    return Image(
        name=linked.name, section=linked.section, code=bytes(linked.code),
        maps=tuple(linked.maps), functions=tuple(start for start, _, _ in linked.pieces),
        function_names=tuple(linked.names), pieces=tuple(linked.pieces),
        kfuncs=tuple(linked.kfuncs), poisoned=tuple(linked.poisoned),
    )  # fmt: skip

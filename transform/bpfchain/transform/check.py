"""Invariants of a finished object: what every loader relies on, checked before it is written.

The last line of defence of the transformer against input that no compiler makes; it asks only what
``research/loaders-and-verifier.md`` found loaders to need.
"""

from __future__ import annotations

from itertools import pairwise

from . import isa
from . import records as r
from .btf import Btf, Kind
from .btf_ext import FUNC_INFO, LINE_INFO, BtfExt
from .elf import Object, Section, SectionId
from .errors import RefusedError
from .subject import read_types

__all__ = ["check_object"]


def check_object(obj: Object, changed: frozenset[SectionId]) -> None:
    """Raise RefusedError where the object does not hold together.

    ``changed`` are the executable sections that were laid out anew; what is as it was read is as
    right as it was.
    """
    for section in obj.sections:
        target = section.target
        if target is not None and (target in changed or obj.by_id[target].name == ".maps"):
            _check_relocations(obj, section)
        if section.executable:
            _check_code(obj, section)
    btf, ext = read_types(obj)
    if btf is not None:
        _check_maps(obj, btf)
        if ext is not None:
            _check_records(obj, btf, ext, changed)


def _check_relocations(obj: Object, section: Section) -> None:
    assert section.target is not None
    target = obj.by_id[section.target]
    for item in obj.decode_relocations(section):
        width = 4 if item.type in (r.R_BPF_64_ABS32, r.R_BPF_64_NODYLD32) else 8
        if item.offset + width > len(target.data):
            raise RefusedError(
                f"section {section.name}: offset {item.offset} is outside {target.name}"
            )
        if target.executable and item.offset % isa.INSN_SIZE:
            raise RefusedError(
                f"section {section.name}: offset {item.offset} is inside an instruction"
            )


def _check_code(obj: Object, section: Section) -> None:
    if len(section.data) % isa.INSN_SIZE:
        raise RefusedError(f"section {section.name}: {len(section.data)} bytes are no instructions")
    end = 0
    for symbol in obj.functions(section.id):
        if symbol.value < end or symbol.end > len(section.data) or symbol.value % isa.INSN_SIZE:
            raise RefusedError(
                f"section {section.name}: function {symbol.name} overlaps or overruns"
            )
        end = symbol.end


def _check_maps(obj: Object, btf: Btf) -> None:
    section = obj.section(".maps")
    found = btf.find(Kind.DATASEC, ".maps")
    if section is None:
        return
    symbols = [s for s in obj.by_place.get(section.id, ()) if s.type == r.STT_OBJECT]
    for symbol in symbols:
        if symbol.end > len(section.data):
            raise RefusedError(f"section .maps: {symbol.name} ends behind the section")
    variables = btf.type(found[0]).vlen if found else 0
    if variables != len(symbols):
        raise RefusedError(
            f"section .maps: {len(symbols)} symbols, but BTF tells of {variables} maps"
        )


def _check_records(obj: Object, btf: Btf, ext: BtfExt, changed: frozenset[SectionId]) -> None:
    for section in (obj.by_id[identity] for identity in changed):
        names = btf.offsets_of(section.name)
        for number in (FUNC_INFO, LINE_INFO):
            offsets = [record.offset for record in ext.parts[number].of(names)]
            if any(b <= a for a, b in pairwise(offsets)):
                raise RefusedError(f"section .BTF.ext: two records for one place in {section.name}")
            if offsets and offsets[-1] >= len(section.data):
                raise RefusedError(f"section .BTF.ext: a record behind the end of {section.name}")
            if number == FUNC_INFO:
                starts = {symbol.value for symbol in obj.functions(section.id)}
                strange = [offset for offset in offsets if starts and offset not in starts]
                if strange:
                    raise RefusedError(
                        f"section .BTF.ext: func_info at {section.name}+{strange[0]}, "
                        "where no function begins"
                    )

"""CO-RE relocations: instructions get the numbers that another kernel's types have.

What cannot be resolved becomes a call of a helper that does not exist, so that it matters only
where it runs; libbpf does the same, with the same number.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from bpfchain.transform import isa
from bpfchain.transform.btf import Kind
from bpfchain.transform.btf_ext import CORE_RELO, read_btf_ext
from bpfchain.transform.errors import RefusedError

from . import core_spec as c
from .core_match import kinds_compatible
from .core_spec import Spec
from .types import Types, essential

__all__ = ["POISON", "CoreRelocations"]

POISON = 195896080
"""The helper number of an instruction that must not run (0xbad2310 in libbpf's words)."""

_RECORD = Struct("<IIII")
_IMM, _WORD, _OFFSET = Struct("<i"), Struct("<I"), Struct("<h")
_MASK = (1 << 64) - 1
_SIZES = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}
_SIZE_BITS = {size: bits for bits, size in _SIZES.items()}
_SIGNED = 1 << 24


@dataclass(frozen=True, slots=True)
class _Value:
    """What one place gives: the number; where it is a field's offset also the field's size and
    type; whether the compiler's number must be this one."""

    number: int
    size: int = 0
    type: int = 0
    sure: bool = True


@dataclass(frozen=True, slots=True)
class _Change:
    """What is done to an instruction. ``new`` None: it must not run."""

    old: _Value | None
    new: _Value | None
    resize: bool = True
    """Whether a load of the old size may become one of the new size."""


class CoreRelocations:
    """The records of an object's .BTF.ext, resolved against the types of a kernel."""

    def __init__(self, local: Types, target: Types, ext: bytes) -> None:
        self._local, self._target = local, target
        part = read_btf_ext(ext, "<").parts[CORE_RELO]
        self._size = part.record_size
        self._blocks: dict[str, list[bytes]] = {}
        for name, data in part.packed:
            self._blocks.setdefault(local.string(name), []).append(data)
        self._records: dict[str, list[tuple[int, int, int, int]]] = {}
        self._changes: dict[tuple[int, int, int], _Change] = {}
        self._candidates: dict[int, list[int]] = {}

    def apply(self, code: bytearray, section: str, first: int) -> list[int]:
        """Change a function's code, which begins at instruction ``first`` of its section.

        Returns the instructions (from the function's start) that must not run. Raises RefusedError
        for what libbpf would not load.
        """
        poisoned = []
        for offset, type_id, access, kind in self._of(section):
            at = offset - first * 8
            if 0 <= at < len(code):
                if at % 8:
                    raise RefusedError(f"section .BTF.ext: {section}+{offset} is no instruction")
                change = self._change(type_id, access, kind)
                try:
                    if self._patch(code, at, change):
                        poisoned.append(at // 8)
                except RefusedError as error:
                    where = f"section {section}: instruction {offset // 8}: CO-RE relocation"
                    raise error.within(where) from None
        return poisoned

    def _of(self, section: str) -> list[tuple[int, int, int, int]]:
        found = self._records.get(section)
        if found is None:
            found = []
            for data in self._blocks.get(section, ()):
                for at in range(0, len(data), self._size):
                    found.append(_RECORD.unpack_from(data, at))
            self._records[section] = found
        return found

    def _change(self, type_id: int, access: int, kind: int) -> _Change:
        key = (type_id, access, kind)
        known = self._changes.get(key)
        if known is None:
            known = self._changes[key] = self._resolve(*key)
        return known

    def _resolve(self, type_id: int, access: int, kind: int) -> _Change:
        if not c.FIELD_BYTE_OFFSET <= kind <= c.TYPE_MATCHES:
            raise RefusedError(f"section .BTF.ext: a CO-RE relocation of unknown kind {kind}")
        if kind == c.TYPE_ID_LOCAL:
            return _Change(None, _Value(type_id, sure=False))
        local = c.parse(self._local, kind, type_id, self._local.string(access))
        found: list[tuple[Spec, _Change]] = []
        for candidate in self._find_candidates(type_id):
            spec = c.find_in(local, self._target, candidate)
            if spec is not None:
                found.append((spec, self._compare(local, spec)))
        if not found:
            return self._compare(local, None)
        spec, change = found[0]
        for other, its in found[1:]:
            if other.bits != spec.bits or _number(its) != _number(change):
                raise RefusedError(
                    f"CO-RE: type {self._local.name(type_id)} is there several times in the kernel, "
                    "and they disagree"
                )
        return change

    def _find_candidates(self, type_id: int) -> list[int]:
        found = self._candidates.get(type_id)
        if found is None:
            name = self._local.name(type_id)
            if not name:
                raise RefusedError(f"CO-RE: type {type_id} has no name to be found by")
            kind = self._local.kind(type_id)
            found = self._candidates[type_id] = [
                one
                for one in self._target.flavours(essential(name))
                if kinds_compatible(kind, self._target.kind(one))
            ]
        return found

    def _compare(self, local: Spec, target: Spec | None) -> _Change:
        if local.of_field:
            old, new = _field(local, local.kind), _field(target, local.kind)
            assert old is not None
            resize = True
            if new is not None and old.size != new.size:
                resize = _may_resize(local, old, target, new)
            return _Change(old, new, resize)
        if local.of_enumerator:
            return _Change(_enumerator(local, local.kind), _enumerator(target, local.kind))
        return _Change(_type(local, local.kind), _type(target, local.kind))

    @staticmethod
    def _patch(code: bytearray, at: int, change: _Change) -> bool:
        """Change the instruction; whether it became one that must not run."""
        opcode = code[at]
        new, old = change.new, change.old
        memory = opcode & 7 in (isa.LDX, isa.ST, isa.STX)
        if new is None or (memory and not change.resize):
            _poison(code, at)
            if opcode == isa.LDDW:
                _poison(code, at + 8)
            return True
        sure = old is not None and old.sure
        expected = 0 if old is None else old.number
        if opcode & 7 in (isa.ALU32, isa.ALU64):
            if opcode & 8:
                raise RefusedError("it is on an instruction without a number")
            if sure and _IMM.unpack_from(code, at + 4)[0] != _signed32(expected):
                raise RefusedError("the compiler's number is not the one of its own types")
            _WORD.pack_into(code, at + 4, new.number & 0xFFFF_FFFF)
        elif memory:
            if sure and _OFFSET.unpack_from(code, at + 2)[0] != expected:
                raise RefusedError("the compiler's offset is not the one of its own types")
            if new.number > 0x7FFF:
                raise RefusedError(f"the offset {new.number} does not fit into an instruction")
            _OFFSET.pack_into(code, at + 2, new.number)
            if old is not None and new.size != old.size:
                if _SIZES[opcode & 0x18] != old.size or new.size not in _SIZE_BITS:
                    raise RefusedError(
                        f"a load of {_SIZES[opcode & 0x18]} bytes cannot be one of {new.size}"
                    )
                code[at] = opcode & ~0x18 | _SIZE_BITS[new.size]
        elif opcode == isa.LDDW:
            number = new.number & _MASK
            low, high = _WORD.unpack_from(code, at + 4)[0], _WORD.unpack_from(code, at + 12)[0]
            if sure and high << 32 | low != expected & _MASK:
                raise RefusedError("the compiler's number is not the one of its own types")
            _WORD.pack_into(code, at + 4, number & 0xFFFF_FFFF)
            _WORD.pack_into(code, at + 12, number >> 32)
        else:
            raise RefusedError(f"it is on an instruction of opcode {opcode:#x}")
        return False


def _poison(code: bytearray, at: int) -> None:
    code[at : at + 4] = bytes((isa.CALL, 0, 0, 0))
    _WORD.pack_into(code, at + 4, POISON)


def _signed32(number: int) -> int:
    low = number & 0xFFFF_FFFF
    return low - (1 << 32) if low >> 31 else low


def _number(change: _Change) -> int | None:
    return None if change.new is None else change.new.number


def _type(spec: Spec | None, kind: int) -> _Value:
    if spec is None:
        return _Value(0)
    if kind == c.TYPE_ID_TARGET:
        return _Value(spec.root, sure=False)
    if kind == c.TYPE_SIZE:
        return _Value(spec.types.size(spec.root))
    return _Value(1)


def _enumerator(spec: Spec | None, kind: int) -> _Value | None:
    if kind == c.ENUMVAL_EXISTS:
        return _Value(int(spec is not None))
    if spec is None:
        return None
    step = spec.steps[0]
    return _Value(spec.types.enumerators(step.type)[step.index][1])


def _field(spec: Spec | None, kind: int) -> _Value | None:
    if kind == c.FIELD_EXISTS:
        return _Value(int(spec is not None))
    if spec is None:
        return None
    types, step = spec.types, spec.steps[-1]
    if not step.name:  # an array's element, or the type itself
        size = types.size(step.type)
        if kind == c.FIELD_BYTE_OFFSET:
            return _Value(spec.bits // 8, size, step.type)
        if kind == c.FIELD_BYTE_SIZE:
            return _Value(size)
        raise RefusedError(f"CO-RE: a relocation of kind {kind} cannot be on an array's element")
    member = types.members(step.type)[step.index]
    field = types.plain(member[1])
    width = types.bits(step.type, member)[1]
    if width:
        size = types.size(field)
        start = spec.bits // 8 // size * size
        while spec.bits + width - start * 8 > size * 8:
            if size >= 8:
                raise RefusedError(f"CO-RE: bit field {step.name} does not fit into 64 bits")
            size *= 2
            start = spec.bits // 8 // size * size
        sure = False
    else:
        size = types.size(field)
        start, width, sure = spec.bits // 8, size * 8, True
    if kind == c.FIELD_BYTE_OFFSET:
        return _Value(start, size, field) if sure else _Value(start, sure=False)
    if kind == c.FIELD_BYTE_SIZE:
        return _Value(size, sure=sure)
    if kind == c.FIELD_SIGNED:
        number = types.kind(field) in (Kind.ENUM, Kind.ENUM64) and types.flag(field)
        signed = types.kind(field) == Kind.INT and types.words(field)[0] & _SIGNED
        return _Value(int(bool(number or signed)))
    if kind == c.FIELD_LSHIFT_U64:
        return _Value(64 - (spec.bits + width - start * 8), sure=sure)
    return _Value(64 - width)


def _may_resize(local: Spec, old: _Value, target: Spec | None, new: _Value) -> bool:
    """Pointers, which are of the kernel's size, and unsigned numbers may be of another size."""
    if target is None or not old.type or not new.type:
        return False
    kinds = local.types.kind(old.type), target.types.kind(new.type)
    if kinds == (Kind.PTR, Kind.PTR):
        return True
    if kinds != (Kind.INT, Kind.INT):
        return False
    words = local.types.words(old.type)[0], target.types.words(new.type)[0]
    return not (words[0] & _SIGNED or words[1] & _SIGNED)

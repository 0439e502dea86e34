"""CO-RE: a place in a type, as the compiler saw it, found again in another kernel's types.

The rules are libbpf's: documented in Documentation/bpf/llvm_reloc.rst and btf.rst of Linux, and in
"BPF CO-RE reference guide" (nakryiko.com); ``core_match`` holds the comparison of whole types.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bpfchain.transform.btf import Kind
from bpfchain.transform.errors import RefusedError

from .core_match import compatible, fields_compatible, matches
from .types import Types, essential

__all__ = [
    "ENUMVAL_EXISTS", "ENUMVAL_VALUE", "FIELD_BYTE_OFFSET", "FIELD_BYTE_SIZE", "FIELD_EXISTS",
    "FIELD_LSHIFT_U64", "FIELD_RSHIFT_U64", "FIELD_SIGNED", "TYPE_EXISTS", "TYPE_ID_LOCAL",
    "TYPE_ID_TARGET", "TYPE_MATCHES", "TYPE_SIZE", "Spec", "Step", "find_in", "parse",
]  # fmt: skip

(
    FIELD_BYTE_OFFSET, FIELD_BYTE_SIZE, FIELD_EXISTS, FIELD_SIGNED, FIELD_LSHIFT_U64,
    FIELD_RSHIFT_U64, TYPE_ID_LOCAL, TYPE_ID_TARGET, TYPE_EXISTS, TYPE_SIZE, ENUMVAL_EXISTS,
    ENUMVAL_VALUE, TYPE_MATCHES,
) = range(13)  # fmt: skip
"""``enum bpf_core_relo_kind`` of include/uapi/linux/bpf.h."""

_FIELDS = range(FIELD_BYTE_OFFSET, FIELD_RSHIFT_U64 + 1)
_ENUMERATORS = (ENUMVAL_EXISTS, ENUMVAL_VALUE)
_COMPOSITE = (Kind.STRUCT, Kind.UNION)
_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Step:
    """One access: member ``index`` of type ``type`` where it has a name, else an array's element
    of that type."""

    type: int
    index: int
    name: str = ""


@dataclass(slots=True)
class Spec:
    """The way from a type to one of its parts."""

    types: Types
    kind: int
    root: int
    steps: list[Step] = field(default_factory=list)
    bits: int = 0
    """Offset of the part in the whole."""

    @property
    def of_field(self) -> bool:
        return self.kind in _FIELDS

    @property
    def of_enumerator(self) -> bool:
        return self.kind in _ENUMERATORS


def parse(types: Types, kind: int, root: int, access: str) -> Spec:
    """The place that a record names: type ``root`` and an access string like ``0:1:2``.

    Raises RefusedError where the two do not fit.
    """
    spec = Spec(types, kind, root)
    if not (spec.of_field or spec.of_enumerator):
        return spec
    what = f"section .BTF.ext: access {access!r} to type {root} ({types.name(root)})"
    try:
        indexes = [int(part) for part in access.split(":")]
    except ValueError:
        raise RefusedError(f"{what} is no list of numbers") from None
    at = types.plain(root)
    if spec.of_enumerator:
        if types.kind(at) not in (Kind.ENUM, Kind.ENUM64) or not 0 <= indexes[0] < types.vlen(at):
            raise RefusedError(f"{what} is no enumerator")
        name = types.enumerators(at)[indexes[0]][0]
        spec.steps.append(Step(at, indexes[0], name))
        return spec
    spec.steps.append(Step(at, indexes[0]))
    spec.bits = indexes[0] * types.size(at) * 8
    for index in indexes[1:]:
        at = types.plain(at)
        if types.kind(at) in _COMPOSITE:
            if not 0 <= index < types.vlen(at):
                raise RefusedError(f"{what}: there is no member {index}")
            member = types.members(at)[index]
            spec.bits += types.bits(at, member)[0]
            if member[0]:
                spec.steps.append(Step(at, index, types.string(member[0])))
            at = member[1]
        elif types.kind(at) == Kind.ARRAY:
            element, _, length = types.words(at, 3)
            if index >= length and not _flexible(types, spec.steps[-1], length):
                raise RefusedError(f"{what}: there is no element {index}")
            at = types.plain(element)
            spec.steps.append(Step(at, index))
            spec.bits += index * types.size(at) * 8
        else:
            raise RefusedError(f"{what}: type {at} has no parts")
    return spec


def find_in(local: Spec, types: Types, root: int) -> Spec | None:
    """The same place in the type ``root`` of ``types``; None where it has none."""
    found = Spec(types, local.kind, root)
    if local.of_enumerator:
        return _find_enumerator(local, found)
    if not local.of_field:
        test = matches if local.kind == TYPE_MATCHES else compatible
        return found if test(local.types, local.root, types, root) else None
    at = root
    for number, step in enumerate(local.steps):
        at = types.plain(at)
        if step.name:
            member = _find_member(local.types, step, found, at)
            if member is None:
                return None
            at = member
            continue
        if number:  # the first step is the type itself, as if it were an array's element
            if types.kind(at) != Kind.ARRAY:
                return None
            element, _, length = types.words(at, 3)
            if step.index >= length and not _flexible(types, found.steps[-1], length):
                return None
            at = types.plain(element)
        found.steps.append(Step(at, step.index))
        found.bits += step.index * types.size(at) * 8
    return found


def _flexible(types: Types, holder: Step, length: int) -> bool:
    """Whether an array is the last member of a struct, without a length of its own."""
    return bool(holder.name) and length == 0 and holder.index == types.vlen(holder.type) - 1


def _find_enumerator(local: Spec, found: Spec) -> Spec | None:
    at = found.types.plain(found.root)
    if found.types.kind(at) not in (Kind.ENUM, Kind.ENUM64):
        return None
    wanted = essential(local.steps[0].name)
    for index, (name, _) in enumerate(found.types.enumerators(at)):
        if essential(name) == wanted:
            found.steps.append(Step(at, index, name))
            return found
    return None


def _find_member(types: Types, step: Step, found: Spec, at: int, depth: int = 0) -> int | None:
    """Go to the member of that name, also inside anonymous members; its type, None without one."""
    target = found.types
    at = target.plain(at)
    if target.kind(at) not in _COMPOSITE or depth > _DEPTH:
        return None
    for index, member in enumerate(target.members(at)):
        bits = target.bits(at, member)[0]
        name = target.string(member[0]) if member[0] else ""
        found.bits += bits
        if not name:
            inside = _find_member(types, step, found, member[1], depth + 1)
            if inside is not None:
                return inside
        elif name == step.name:
            local = types.members(step.type)[step.index][1]
            if not fields_compatible(types, local, target, member[1]):
                return None
            found.steps.append(Step(at, index, name))
            return member[1]
        found.bits -= bits
    return None

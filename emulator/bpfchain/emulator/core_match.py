"""CO-RE: whether a type of the object and a type of a kernel are one, by libbpf's three measures.

``fields_compatible``: of a field (numbers of any size do). ``compatible``: of a type that a program
asks for by name. ``matches``: member by member.
"""

from __future__ import annotations

from bpfchain.transform.btf import Kind

from .types import Types, essential

__all__ = ["compatible", "fields_compatible", "kinds_compatible", "matches"]

_ENUMS = (Kind.ENUM, Kind.ENUM64)
_COMPOSITE = (Kind.STRUCT, Kind.UNION)
_DEPTH = 32
_SIGNED = 1 << 24


def kinds_compatible(one: int, other: int) -> bool:
    """Equal, or both enumerations."""
    return one == other or (one in _ENUMS and other in _ENUMS)


def _whole(types: Types, type_id: int) -> bool:
    """Whether an INT is no bit field of the old kind, with an offset of its own."""
    return not types.words(type_id)[0] >> 16 & 0xFF


def fields_compatible(local: Types, one: int, target: Types, other: int) -> bool:
    """Whether a field of type ``one`` can be read as one of type ``other``."""
    for _ in range(_DEPTH):
        one, other = local.plain(one), target.plain(other)
        kind, theirs = local.kind(one), target.kind(other)
        if kind in _COMPOSITE and theirs in _COMPOSITE:
            return True
        if not kinds_compatible(kind, theirs):
            return False
        if kind in (Kind.PTR, Kind.FLOAT):
            return True
        if kind in (Kind.FWD, *_ENUMS):
            names = essential(local.name(one)), essential(target.name(other))
            return "" in names or names[0] == names[1]
        if kind == Kind.INT:
            return _whole(local, one) and _whole(target, other)
        if kind != Kind.ARRAY:
            return False
        one, other = local.words(one, 3)[0], target.words(other, 3)[0]
    return False


def compatible(local: Types, one: int, target: Types, other: int, depth: int = _DEPTH) -> bool:
    """Whether ``other`` is the type ``one``, whose name it has: of one kind, members not compared."""
    if not kinds_compatible(local.kind(one), target.kind(other)):
        return False
    for _ in range(depth):
        one, other = local.plain(one), target.plain(other)
        kind = local.kind(one)
        if not kinds_compatible(kind, target.kind(other)):
            return False
        if kind in (0, *_COMPOSITE, *_ENUMS, Kind.FWD):
            return True
        if kind == Kind.INT:
            return _whole(local, one) and _whole(target, other)
        if kind == Kind.ARRAY:
            one, other = local.words(one, 3)[0], target.words(other, 3)[0]
        elif kind == Kind.FUNC_PROTO:
            mine, theirs = local.parameters(one), target.parameters(other)
            if len(mine) != len(theirs):
                return False
            for a, b in zip(mine, theirs, strict=True):
                if not compatible(local, local.plain(a), target, target.plain(b), depth - 1):
                    return False
            one, other = local.target(one), target.target(other)
        elif kind == Kind.PTR:
            one, other = local.target(one), target.target(other)
        else:
            return False
    return False


def matches(
    local: Types, one: int, target: Types, other: int, pointed: bool = False, depth: int = _DEPTH
) -> bool:
    """Whether ``other`` has all that ``one`` has, in name and type; ``pointed``: behind a pointer,
    where structs need only be of one name."""
    for _ in range(depth):
        one, other = local.plain(one), target.plain(other)
        if essential(local.name(one)) != essential(target.name(other)):
            return False
        kind, theirs = local.kind(one), target.kind(other)
        if kind == Kind.FWD:
            return _forward(local.flag(one), kind, target.flag(other), theirs, pointed)
        if kind in _ENUMS:
            return theirs in _ENUMS and _enums_match(local, one, target, other)
        if kind in _COMPOSITE and pointed:
            return kind == theirs or (
                theirs == Kind.FWD and (kind == Kind.UNION) == target.flag(other)
            )
        if kind != theirs:
            return False
        if kind == 0:
            return True
        if kind in _COMPOSITE:
            return _members_match(local, one, target, other, depth)
        if kind == Kind.INT:
            signs = (local.words(one)[0] ^ target.words(other)[0]) & _SIGNED
            return local.size(one) == target.size(other) and not signs
        if kind == Kind.PTR:
            pointed = True
            one, other = local.target(one), target.target(other)
        elif kind == Kind.ARRAY:
            mine, found = local.words(one, 3), target.words(other, 3)
            if mine[2] != found[2]:
                return False
            one, other = mine[0], found[0]
        elif kind == Kind.FUNC_PROTO:
            parameters = local.parameters(one), target.parameters(other)
            if len(parameters[0]) != len(parameters[1]):
                return False
            for a, b in zip(*parameters, strict=True):
                if not matches(local, a, target, b, pointed, depth - 1):
                    return False
            one, other = local.target(one), target.target(other)
        else:
            return False
    return False


def _forward(flag: bool, kind: int, their_flag: bool, theirs: int, pointed: bool) -> bool:
    """``flag`` of a forward declaration: it is one of a union."""
    if kind == theirs:
        return flag == their_flag
    return pointed and theirs == (Kind.UNION if flag else Kind.STRUCT)


def _enums_match(local: Types, one: int, target: Types, other: int) -> bool:
    theirs = {essential(name) for name, _ in target.enumerators(other)}
    mine = [essential(name) for name, _ in local.enumerators(one)]
    return len(mine) <= target.vlen(other) and all(name in theirs for name in mine)


def _members_match(local: Types, one: int, target: Types, other: int, depth: int) -> bool:
    theirs = [(essential(target.string(m[0])), m[1]) for m in target.members(other)]
    if local.vlen(one) > len(theirs):
        return False
    for member in local.members(one):
        name = essential(local.string(member[0]))
        if not any(
            name == their_name and matches(local, member[1], target, their_type, False, depth - 1)
            for their_name, their_type in theirs
        ):
            return False
    return True

"""Codes in a manifest: signed 32-bit integers beside their names.

A code is ``{"code": 2, "name": "PASS"}``; a code that has no name has its number there, as text. A
set is a list of codes and ranges (``{"from": 9, "to": 127}``), or ``{"any": true}``, or
``{"not": [...]}`` with such a list. The integer counts; a name that contradicts it is refused.
"""

from __future__ import annotations

import re
from typing import Any

from .codes import CODE_MAX, CODE_MIN, CodeSet
from .document import ONE_LINE, Reader
from .errors import UsageError
from .policy import Hook

__all__ = ["at_key", "code_json", "codes_json", "read_code", "read_codes"]


def at_key(error: UsageError) -> tuple[str, str]:
    """The key and the message of an error that speaks of options (``--success: …``); the key is
    empty where it names none."""
    match = _OPTION.fullmatch(error.message)
    return (match[1], match[2]) if match else ("", error.message)


_OPTION = re.compile(r"(?:--)?(success|redirect|saved):? (.*)")


def code_json(code: int, hook: Hook) -> dict[str, Any]:
    """One code beside its name."""
    return {"code": code, "name": hook.name_of(code)}


def codes_json(codes: CodeSet, hook: Hook) -> Any:
    """A set of codes: a list, ``{"any": true}`` or ``{"not": [...]}``, as ``CodeSet.to_json``."""
    if codes == CodeSet.any():
        return {"any": True}
    if codes.ranges and codes.ranges[0][0] == CODE_MIN and codes.ranges[-1][1] == CODE_MAX:
        return {"not": _list(codes.complement(), hook)}
    return _list(codes, hook)


def _list(codes: CodeSet, hook: Hook) -> list[dict[str, Any]]:
    named = {code.value for code in hook.codes}
    items: list[dict[str, Any]] = []
    for low, high in codes.ranges:
        if low == high or (high - low < len(named) and named.issuperset(range(low, high + 1))):
            items += [code_json(code, hook) for code in range(low, high + 1)]
        else:
            items.append({"from": low, "to": high})
    return items


def read_code(item: Reader, hook: Hook) -> int:
    """The code of one such object."""
    code = item.integer("code", CODE_MIN, CODE_MAX)
    name = item.text("name", ONE_LINE)
    if name != hook.name_of(code):
        item.fail(f"code {code} of {hook.name} is {hook.name_of(code)}, not {name}", at="name")
    item.finish()
    return code


def read_codes(owner: Reader, key: str, hook: Hook) -> CodeSet:
    """The set under ``key``."""
    if isinstance(owner.raw(key), list):
        return _read_list(owner.objects(key), hook)
    value = owner.nested(key)
    if value.has("any"):
        if not value.flag("any"):
            value.fail("can only be true", "no code at all is an empty list", at="any")
        value.finish()
        return CodeSet.any()
    value.items("not")
    found = _read_list(value.objects("not"), hook).complement()
    value.finish()
    return found


def _read_list(items: list[Reader], hook: Hook) -> CodeSet:
    ranges = []
    for item in items:
        if item.has("from"):
            low = item.integer("from", CODE_MIN, CODE_MAX)
            ranges.append((low, item.integer("to", low, CODE_MAX)))
            item.finish()
        else:
            code = read_code(item, hook)
            ranges.append((code, code))
    return CodeSet.from_ranges(ranges)

"""Reading untrusted documents (JSON, TOML): one object at a time, with its path for errors.

Every value is taken by a method that says what it must be; ``finish`` then refuses the keys that
nobody took, so that a misspelt key is never read over in silence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from .errors import BpfchainError, nearest

__all__ = ["DIGEST", "FILE", "ONE_LINE", "SOME_LINE", "Form", "Reader", "parse_json"]


class Form:
    """A form that a text must have: a pattern for the whole text, and its name in errors."""

    __slots__ = ("name", "pattern")

    def __init__(self, name: str, pattern: str) -> None:
        self.name = name
        self.pattern = re.compile(pattern)


# The patterns stand in schema/manifest-1.json too; the tests hold the two together.
ONE_LINE = Form("text without control characters", r"[^\x00-\x1f\x7f]*")
SOME_LINE = Form("text that is not empty, without control characters", r"[^\x00-\x1f\x7f]+")
FILE = Form("a relative path", r"[^/\x00-\x1f\x7f](?:[^\x00-\x1f\x7f]*[^/\x00-\x1f\x7f])?")
DIGEST = Form("64 lower-case hexadecimal digits", r"[0-9a-f]{64}")


class Reader:
    """One object of a document, at ``path``.

    ``error`` is what its methods raise: ``in 'links[0].entries[1].slot': expected an integer, found
    text``. ``thing`` is what the document's language calls an object.
    """

    __slots__ = ("_error", "_fields", "_known", "_thing", "path")

    def __init__(
        self, value: object, error: type[BpfchainError], *, path: str = "", thing: str = "an object"
    ) -> None:
        self.path = path
        self._error = error
        self._thing = thing
        self._known: list[str] = []
        self._fields: Mapping[str, Any] = {}
        if not isinstance(value, Mapping):
            self.fail(f"expected {thing}, found {self._kind(value)}")
        self._fields = value

    def fail(self, message: str, hint: str | None = None, *, at: str = "") -> NoReturn:
        """Raise the error for this object, or for what lies ``at`` a key or index below it."""
        path = self._below(at)
        raise self._error(f"in '{path}': {message}" if path else message, hint)

    def has(self, key: str) -> bool:
        """Whether the key is there; it counts as known from now on."""
        self._known.append(key)
        return key in self._fields

    def null(self, key: str) -> bool:
        """Whether the (required) key holds null."""
        return self.raw(key) is None

    def raw(self, key: str) -> Any:
        """The value as it is. Raises where the key is missing."""
        if not self.has(key):
            self.fail("is missing", at=key)
        return self._fields[key]

    def text(self, key: str, form: Form = SOME_LINE) -> str:
        """A text of that form."""
        return self._text(self.raw(key), form, key)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, each one line."""
        return tuple(
            self._text(item, ONE_LINE, f"{key}[{n}]") for n, item in enumerate(self.items(key))
        )

    def choice(self, key: str, among: tuple[str, ...]) -> str:
        """One of a few words."""
        word = self.text(key, ONE_LINE)
        if word not in among:
            close = nearest(word, among)
            self.fail(
                f"{word!r} is not one of {', '.join(among)}",
                f"did you mean {close}?" if close else None,
                at=key,
            )
        return word

    def integer(self, key: str, low: int, high: int) -> int:
        """An integer from ``low`` to ``high``, both included."""
        value = self.raw(key)
        if not isinstance(value, int) or isinstance(value, bool):
            self.fail(f"expected an integer, found {self._kind(value)}", at=key)
        if not low <= value <= high:
            # a hostile document may hold an integer of a million digits
            shown = str(value) if abs(value) < 1 << 64 else "it"
            self.fail(f"{shown} is outside {low}..{high}", at=key)
        return value

    def flag(self, key: str) -> bool:
        """True or false."""
        value = self.raw(key)
        if not isinstance(value, bool):
            self.fail(f"expected true or false, found {self._kind(value)}", at=key)
        return value

    def items(self, key: str) -> list[Any]:
        """A list, its items as they are."""
        value = self.raw(key)
        if not isinstance(value, list):
            self.fail(f"expected a list, found {self._kind(value)}", at=key)
        return value

    def nested(self, key: str) -> Reader:
        """The object under a key."""
        return self._child(self.raw(key), key)

    def objects(self, key: str) -> list[Reader]:
        """The objects in a list."""
        return [self._child(item, f"{key}[{n}]") for n, item in enumerate(self.items(key))]

    def names(self) -> tuple[str, ...]:
        """All keys in order, for an object whose keys are names that someone chose."""
        return tuple(sorted(self._text(key, SOME_LINE, key) for key in self._fields))

    def rest(self) -> dict[str, Any]:
        """What nobody took, for an object that is open to more keys."""
        return {key: value for key, value in self._fields.items() if key not in self._known}

    def finish(self) -> None:
        """Refuse the keys that nobody took, with the nearest one that exists."""
        for key in self.rest():
            close = nearest(key, self._known)
            known = ", ".join(sorted(set(self._known)))
            self.fail(
                "no such key",
                f"did you mean {close}?" if close else f"the keys here: {known}",
                at=key,
            )

    def _text(self, value: object, form: Form, at: str) -> str:
        if not isinstance(value, str):
            self.fail(f"expected text, found {self._kind(value)}", at=at)
        try:
            value.encode()
        except UnicodeEncodeError:
            self.fail("is not text that UTF-8 can hold", at=at)
        if not form.pattern.fullmatch(value):
            self.fail(f"expected {form.name}, found {value[:80]!r}", at=at)
        return value

    def _child(self, value: object, at: str) -> Reader:
        return Reader(value, self._error, path=self._below(at), thing=self._thing)

    def _below(self, at: str) -> str:
        shown = at if at.isprintable() else repr(at)  # an error is one line, whatever the key
        return f"{self.path}.{shown}" if self.path and at else self.path or shown

    def _kind(self, value: object) -> str:
        if isinstance(value, Mapping):
            return self._thing
        for kind, name in _KINDS:
            if isinstance(value, kind):
                return name
        return "null" if value is None else "a date or time"


_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "true or false"),
    (int, "an integer"),
    (float, "a fraction"),
    (str, "text"),
    (list, "a list"),
)


_DEPTH_MAX = 64


def parse_json(data: bytes, error: type[BpfchainError]) -> Any:
    """The value of a JSON text in UTF-8, read strictly: no key twice, no NaN. Raises ``error``."""
    try:
        value = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
        _check(value)
        return value
    except UnicodeDecodeError as problem:
        raise error(f"is not JSON: byte {problem.start} is not UTF-8") from None
    except json.JSONDecodeError as problem:
        where = f"line {problem.lineno} column {problem.colno}"
        raise error(f"is not JSON: {problem.msg} at {where}") from None
    except RecursionError:
        raise error("is not JSON that can be read: it is nested too deeply") from None
    except ValueError as problem:  # ours, and integers beyond sys.int_info.str_digits
        raise error(f"is not JSON that can be read: {problem}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} is there twice in one object")
        found[key] = value
    return found


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _check(value: Any) -> None:
    """Refuse what could not be written again: open objects are kept as they are."""
    todo = [(value, 0)]
    while todo:
        item, depth = todo.pop()
        if depth > _DEPTH_MAX:
            raise RecursionError
        if isinstance(item, dict):
            todo += ((part, depth + 1) for pair in item.items() for part in pair)
        elif isinstance(item, list):
            todo += ((part, depth + 1) for part in item)
        elif isinstance(item, str):
            if not item.isascii() and any("\ud800" <= char <= "\udfff" for char in item):
                raise ValueError("it holds half of a surrogate pair")
        elif isinstance(item, float) and not math.isfinite(item):
            raise ValueError("it holds a number that is too large")

"""Sets of return codes: what S and R of a link are made of.

A code is the low 32 bits of what a program returns, read as a signed integer. A set may be finite,
a range, everything, or everything but a few codes, so it is held as sorted disjoint intervals.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import OptionError, nearest

__all__ = ["CODE_MAX", "CODE_MIN", "CodeSet", "signed32"]

CODE_MIN = -(1 << 31)
CODE_MAX = (1 << 31) - 1


def signed32(value: int) -> int:
    """The low 32 bits of ``value`` as a signed integer."""
    return ((value & 0xFFFF_FFFF) ^ 0x8000_0000) - 0x8000_0000


@dataclass(frozen=True, slots=True)
class CodeSet:
    """An immutable set of signed 32-bit codes, as sorted disjoint inclusive intervals."""

    ranges: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        before = CODE_MIN - 2
        for low, high in self.ranges:
            if not (CODE_MIN <= low <= high <= CODE_MAX) or low <= before + 1:
                raise ValueError(f"not sorted disjoint code intervals: {self.ranges}")
            before = high

    @classmethod
    def of(cls, *codes: int) -> CodeSet:
        """The set of exactly these codes."""
        return cls.from_ranges((code, code) for code in codes)

    @classmethod
    def from_ranges(cls, ranges: Iterable[tuple[int, int]]) -> CodeSet:
        """The union of inclusive intervals given in any order."""
        merged: list[tuple[int, int]] = []
        for low, high in sorted(ranges):
            if merged and low <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
            else:
                merged.append((low, high))
        return cls(tuple(merged))

    @classmethod
    def any(cls) -> CodeSet:
        """Every code."""
        return cls(((CODE_MIN, CODE_MAX),))

    @classmethod
    def excluding(cls, *codes: int) -> CodeSet:
        """Every code but these."""
        return cls.of(*codes).complement()

    def complement(self) -> CodeSet:
        """Every code that is not in this set."""
        gaps = []
        low = CODE_MIN
        for first, last in self.ranges:
            if low < first:
                gaps.append((low, first - 1))
            low = last + 1
        if low <= CODE_MAX:
            gaps.append((low, CODE_MAX))
        return CodeSet(tuple(gaps))

    def union(self, other: CodeSet) -> CodeSet:
        """Codes in either set."""
        return CodeSet.from_ranges(self.ranges + other.ranges)

    def difference(self, other: CodeSet) -> CodeSet:
        """Codes of this set that are not in ``other``."""
        return self.complement().union(other).complement()

    def __contains__(self, code: int) -> bool:
        return any(low <= code <= high for low, high in self.ranges)

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __len__(self) -> int:
        return sum(high - low + 1 for low, high in self.ranges)

    def __iter__(self) -> Iterator[int]:
        for low, high in self.ranges:
            yield from range(low, high + 1)

    @classmethod
    def parse(cls, text: str, names: Mapping[str, int], *, what: str) -> CodeSet:
        """Read ``PASS,3,5..7``, ``any``, ``none`` or ``not:DROP,2``.

        ``names`` are the hook's code names, in any case. ``what`` names the option in errors. Raises OptionError.
        """
        stripped = text.strip()
        lowered = stripped.lower()
        if lowered == "any":
            return cls.any()
        if lowered in ("none", ""):
            return cls()
        if lowered.startswith("not:"):
            return cls._parse_list(stripped[4:], names, what).complement()
        return cls._parse_list(stripped, names, what)

    @classmethod
    def _parse_list(cls, text: str, names: Mapping[str, int], what: str) -> CodeSet:
        ranges = []
        for item in text.split(","):
            first, dots, last = item.strip().partition("..")
            low = _parse_code(first, names, what)
            high = _parse_code(last, names, what) if dots else low
            if high < low:
                raise OptionError(f"{what}: the range {item.strip()!r} ends before it starts")
            ranges.append((low, high))
        return cls.from_ranges(ranges)

    def describe(self, names: Mapping[str, int]) -> str:
        """The set as a person writes it: ``PASS``, ``not:DROP``, ``3..7``, ``any``, ``none``."""
        if not self.ranges:
            return "none"
        if self == CodeSet.any():
            return "any"
        # "everything but a few" reads better as its complement
        if self.ranges[0][0] == CODE_MIN and self.ranges[-1][1] == CODE_MAX:
            return "not:" + _join(self.complement().ranges, names)
        return _join(self.ranges, names)

    def to_json(self) -> Any:
        """``{"any": true}``, ``{"not": [...]}`` or a list of codes and ``[low, high]`` pairs."""
        if self == CodeSet.any():
            return {"any": True}
        if self.ranges and self.ranges[0][0] == CODE_MIN and self.ranges[-1][1] == CODE_MAX:
            return {"not": _to_list(self.complement().ranges)}
        return _to_list(self.ranges)

    @classmethod
    def from_json(cls, value: Any) -> CodeSet:
        """Read what ``to_json`` wrote. Raises ValueError with the reason."""
        if isinstance(value, Mapping):
            if dict(value) == {"any": True}:
                return cls.any()
            if set(value) == {"not"} and isinstance(value["not"], list):
                return _from_list(value["not"]).complement()
            raise ValueError('not a set of codes: expected a list, {"any": true} or {"not": [...]}')
        if not isinstance(value, list):
            raise ValueError('not a set of codes: expected a list, {"any": true} or {"not": [...]}')
        return _from_list(value)


def _parse_code(text: str, names: Mapping[str, int], what: str) -> int:
    word = text.strip()
    folded = word.upper()
    if folded in names:
        return names[folded]
    try:
        value = int(word, 0)
    except ValueError:
        close = nearest(folded, tuple(names))
        first = {value: name for name, value in reversed(list(names.items()))}
        listed = ", ".join(name for name in names if first[names[name]] == name)
        hint = f"did you mean {close}?" if close else f"the hook's codes: {listed}"
        raise OptionError(f"{what}: no code named {word!r}", hint) from None
    if 0x8000_0000 <= value <= 0xFFFF_FFFF:
        value = signed32(value)
    if not CODE_MIN <= value <= CODE_MAX:
        raise OptionError(f"{what}: {word} does not fit in 32 bits")
    return value


def _join(ranges: tuple[tuple[int, int], ...], names: Mapping[str, int]) -> str:
    by_value = {value: name for name, value in reversed(list(names.items()))}
    parts = []
    for low, high in ranges:
        if high - low <= 1 or (
            high - low < 16 and all(c in by_value for c in range(low, high + 1))
        ):
            parts += [by_value.get(code, str(code)) for code in range(low, high + 1)]
        else:
            parts.append(f"{low}..{high}")
    return ",".join(parts)


def _to_list(ranges: tuple[tuple[int, int], ...]) -> list[Any]:
    return [low if low == high else [low, high] for low, high in ranges]


def _from_list(items: list[Any]) -> CodeSet:
    ranges = []
    for item in items:
        low, high = item if isinstance(item, list) and len(item) == 2 else (item, item)
        for code in (low, high):
            if not isinstance(code, int) or isinstance(code, bool):
                raise ValueError(f"not a code: {item!r}")
            if not CODE_MIN <= code <= CODE_MAX:
                raise ValueError(f"not a signed 32-bit code: {code}")
        if high < low:
            raise ValueError(f"the range {item!r} ends before it starts")
        ranges.append((low, high))
    return CodeSet.from_ranges(ranges)

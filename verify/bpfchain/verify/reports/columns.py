"""Tables in plain text: columns that fold at a width, and lines that wrap with a hanging indent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from unicodedata import combining, east_asian_width

__all__ = ["fold", "table", "width_of"]

GAP = 2
"""Spaces between two columns."""
NARROWEST = 8
"""Cells of a column that may fold are never narrower."""

Paint = Callable[[int, int, str], str]
"""Given row, column and a padded cell: the cell in its colour."""


def width_of(text: str) -> int:
    """Cells of a terminal that the text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if combining(char) else 2 if east_asian_width(char) in "WF" else 1 for char in text
    )


def fold(text: str, width: int | None, *, first: str = "", rest: str = "") -> list[str]:
    """The text as lines of at most ``width`` cells (None: one line), ``first`` and ``rest`` in front.

    Breaks at spaces; a word that is too long for a line is cut.
    """
    if width is None:
        return [first + text]
    lines: list[str] = []
    line, room, indent, empty = first, width, rest, True
    for word in text.split(" "):
        while True:
            glue = "" if empty else " "
            if width_of(line) + len(glue) + width_of(word) <= room:
                line, empty = line + glue + word, False
                break
            if not empty:
                lines.append(line)
                line, empty = indent, True
                continue
            head = _head(word, max(room - width_of(line), 1))
            lines.append(line + head)
            word, line, empty = word[len(head) :], indent, True  # noqa: PLW2901 - the rest of it
            if not word:
                break
    if not empty or not lines:
        lines.append(line)
    return lines


def _head(word: str, cells: int) -> str:
    """As much of the word as fits, one character at least."""
    used = 0
    for at, char in enumerate(word):
        used += width_of(char)
        if used > cells:
            return word[: max(at, 1)]
    return word


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int | None,
    indent: str,
    folding: Sequence[int],
    paint: Paint = lambda row, column, cell: cell,
) -> list[str]:
    """The lines of a table, row -1 being the heads. ``folding`` are the columns whose cells may take
    several lines where the whole is wider than ``width``; the widest gives way first.

    On a terminal too narrow for that, rows become lists of ``head cell``.
    """
    all_rows = [list(heads), *(list(row) for row in rows)]
    widths = [max(width_of(row[n]) for row in all_rows) for n in range(len(heads))]
    if width is not None:
        spare = width - len(indent) - sum(widths) - GAP * (len(widths) - 1)
        while spare < 0 and folding:
            widest = max(folding, key=lambda column: widths[column])
            if widths[widest] <= NARROWEST:
                break
            widths[widest] -= 1
            spare += 1
        if spare < 0:
            return _list(heads, rows, width, indent, paint)
    lines = []
    for number, row in enumerate(all_rows):
        cells = [fold(cell, widths[n] if n in folding else None) for n, cell in enumerate(row)]
        for part in range(max(len(cell) for cell in cells)):
            shown = []
            for n, cell in enumerate(cells):
                text = cell[part] if part < len(cell) else ""
                padding = " " * (widths[n] - width_of(text))
                shown.append(paint(number - 1, n, text) + padding if text else padding)
            lines.append((indent + (" " * GAP).join(shown)).rstrip())
    return lines


def _list(
    heads: Sequence[str], rows: Sequence[Sequence[str]], width: int, indent: str, paint: Paint
) -> list[str]:
    lines = []
    for number, row in enumerate(rows):
        for n, cell in enumerate(row):
            first = f"{indent}{heads[n]} " if n == 0 else f"{indent}  {heads[n]} "
            folded = fold(cell, width, first=first, rest=f"{indent}    ")
            lines += [first + paint(number, n, folded[0][len(first) :]), *folded[1:]]
    return lines

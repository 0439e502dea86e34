"""The error messages that stand in the transformer's source, read from its syntax tree.

A message is text in which every part that differs is HOLE. Variables that are assigned a few texts
in the same function are followed, so that every variant is told.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from docs.pages import ROOT

SOURCE = ROOT / "transform" / "bpfchain" / "transform"
HOLE = "\N{DOWNWARDS BLACK ARROW}"


@dataclass(frozen=True, slots=True)
class Message:
    """A message and where it is raised."""

    text: str
    module: str
    line: int

    @property
    def empty(self) -> bool:
        """Whether all of it comes from elsewhere."""
        return not self.text.replace(HOLE, "").strip(" :")


def messages(error: str) -> list[Message]:
    """What ``error`` is raised with in all modules. ``Problem``: its keyword ``message``."""
    return [found for path in sorted(SOURCE.glob("*.py")) for found in _of(path, error)]


def _of(path: Path, error: str) -> Iterator[Message]:
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        known: dict[str, list[ast.expr]] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                known.setdefault(node.targets[0].id, []).append(node.value)
        for node in ast.walk(function):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == error:
                named = [k.value for k in node.keywords if k.arg == "message"]
                for text in _texts((node.args[:1] or named)[0], known):
                    yield Message(text, path.stem, node.lineno)


def _texts(node: ast.expr, known: dict[str, list[ast.expr]], depth: int = 0) -> list[str]:
    """All texts that the expression can be; HOLE alone for one that is not understood."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.IfExp):
        return _texts(node.body, known, depth) + _texts(node.orelse, known, depth)
    if isinstance(node, ast.JoinedStr):
        parts = [_texts(value, known, depth) for value in node.values]
        return ["".join(combined) for combined in product(*parts)]
    if isinstance(node, ast.FormattedValue):
        return _texts(node.value, known, depth)
    if isinstance(node, ast.Name) and node.id in known and depth < 4:
        found = [_texts(value, known, depth + 1) for value in known[node.id]]
        texts = [text for variants in found for text in variants]
        return texts if any(text.replace(HOLE, "").strip() for text in texts) else [HOLE]
    return [HOLE]

"""Reading the pages of docs/: sections, fenced blocks, tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its section's heading, language, what follows the language, and text."""

    section: str
    language: str
    role: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found: list[Block] = []
    section, inside = "", list[str]()
    fence: tuple[int, str] | None = None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if fence is not None:
            if line == "```":
                language, _, role = fence[1].partition(" ")
                found.append(Block(section, language, role, "\n".join(inside) + "\n", fence[0]))
                fence = None
            else:
                inside.append(line)
        elif line.startswith("```"):
            fence, inside = (number, line[3:].strip()), []
        elif line.startswith("## "):
            section = line[3:]
    if fence is not None:
        raise ValueError(f"{page.name}:{fence[0]}: the block has no end")
    return found


def links(page: Path) -> list[str]:
    """Targets of the page's links, without those to the web."""
    found = re.findall(r"\]\(([^)]+)\)", page.read_text())
    return [target for target in found if "://" not in target]


def anchors(page: Path) -> set[str]:
    """Anchors of the page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}

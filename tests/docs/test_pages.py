"""Links of README.md and of the pages in docs/ lead somewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.pages import DOCS, ROOT, anchors, blocks, links

PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted(DOCS.glob("*.md"))]


def test_pages_exist() -> None:
    names = {page.name for page in PAGES}
    assert {"README.md", "loading.md", "refusals.md", "architecture.md"} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links(page: Path) -> None:
    blocks(page)  # every fence is closed
    for target in links(page):
        name, _, anchor = target.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(there), f"{page.name}: {target}"

"""A folder with objects of the corpus, in which the commands of these tests run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.commands import PROGRAMS

CHAIN = """\
name = "edge"
hook = "xdp"

[[link]]
object = "filter.o"
redirect = "REDIRECT"

[[link]]
object = "metrics.o"

[[link]]
object = "log.o"
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """filter.o, metrics.o, log.o and more, and chain.toml."""
    for name in ("filter", "metrics", "log", "three_progs", "nobtf", "verdict_netfilter"):
        shutil.copy(PROGRAMS / f"{name}.o", tmp_path)
    (tmp_path / "chain.toml").write_text(CHAIN)
    return tmp_path

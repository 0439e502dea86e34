"""The semantic tests need the kernel; how much they compared is shown at the end."""

from __future__ import annotations

from typing import Any

import pytest

from semantics.tally import TALLY


@pytest.fixture(autouse=True)
def _needs_kernel(kernel: None) -> None:
    """Every test here runs programs."""


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """With pytest-xdist: take over what a worker counted."""
    TALLY.counts.update(getattr(node, "workeroutput", {}).get("semantics", {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["semantics"] = dict(TALLY.counts)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for kind, count in sorted(TALLY.counts.items()):
        terminalreporter.write_line(f"semantics: {count} {kind}")

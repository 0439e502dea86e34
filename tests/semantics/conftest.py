"""The semantic tests need the kernel; how much they compared is shown at the end."""

from __future__ import annotations

import pytest

from semantics.tally import TALLY


@pytest.fixture(autouse=True)
def _needs_kernel(kernel: None) -> None:
    """Every test here runs programs."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for kind, count in sorted(TALLY.counts.items()):
        terminalreporter.write_line(f"semantics: {count} {kind}")

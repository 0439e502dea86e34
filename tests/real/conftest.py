"""Registers the mark of tests that use real objects fetched from Debian packages."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """`-m "not real"` leaves out what needs the network the first time."""
    config.addinivalue_line("markers", "real: uses BPF objects fetched from Debian packages")

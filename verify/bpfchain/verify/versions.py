"""Versions of what took part in a proof, for reports: a gate's answer must be repeatable."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

__all__ = ["versions"]

_PARTS = {"pyelftools": "pyelftools", "lief": "lief", "z3": "z3-solver"}


def versions(engines: Sequence[str]) -> dict[str, str]:
    """Name -> version of the readers, the solver, and the engines that ran."""
    found = {"python": platform.python_version()}
    for name, package in _PARTS.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            found[name] = "not installed"
    if any(engine.startswith("ubpf") for engine in engines):
        try:
            from bpfchain.emulator import _ubpf
        except ImportError:
            found["ubpf"] = "not built"
        else:
            found["ubpf"] = _ubpf.VERSION
    if "kernel" in engines:
        found["kernel"] = f"{platform.release()} {platform.machine()}"
    return found

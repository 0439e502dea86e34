"""uBPF's interpreter as an engine: the default, needs no root, and bounds every access."""

from __future__ import annotations

from collections.abc import Mapping

from bpfchain.emulator.interpreter import Machine
from bpfchain.transform.policy import Hook

from .machine_session import MachineSession
from .protocol import Setup

__all__ = ["UbpfEngine"]


class UbpfEngine:
    """Interpreter."""

    name = "ubpf"
    fills = True
    deterministic = True

    def refuses(self, hook: Hook) -> str | None:
        """Nothing: what has no packet runs on a plain context."""
        return None

    def blind(self, hook: Hook) -> Mapping[str, str]:
        """Nothing."""
        return {}

    def open(self, setup: Setup) -> MachineSession:
        """A world. Raises LoadError, EmulatorMissingError (InconclusiveError)."""
        return MachineSession(setup, Machine)

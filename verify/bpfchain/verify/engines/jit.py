"""uBPF's JIT as an engine: in a child process, whose crash or endless run is a fault."""

from __future__ import annotations

from collections.abc import Mapping

from bpfchain.emulator.jit import JitMachine
from bpfchain.transform.policy import Hook

from .machine_session import MachineSession
from .protocol import Setup

__all__ = ["JitEngine"]


class JitEngine:
    """JIT. Tells no executed instructions, so no coverage."""

    name = "ubpf-jit"
    fills = True
    deterministic = True

    def refuses(self, hook: Hook) -> str | None:
        """Nothing: what has no packet runs on a plain context."""
        return None

    def blind(self, hook: Hook) -> Mapping[str, str]:
        """Nothing."""
        return {}

    def open(self, setup: Setup) -> MachineSession:
        """A world in a child. Raises LoadError, EmulatorMissingError (InconclusiveError)."""
        return MachineSession(setup, JitMachine)

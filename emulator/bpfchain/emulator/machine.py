"""Machines: linked objects that run. ``Machine`` interprets, ``JitMachine`` compiles in a child."""

from __future__ import annotations

from .interpreter import EmulatorMissingError, Machine, MachineMap, Packets
from .jit import JitMachine

__all__ = ["EmulatorMissingError", "JitMachine", "Machine", "MachineMap", "Packets"]

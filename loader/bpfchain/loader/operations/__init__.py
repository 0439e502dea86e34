"""The operations on a chain, one module each; every one begins by repairing what was unfinished.

``load``, ``replace``, ``bypass``, ``recreate``, ``rollback``, ``unload``. All are usable without
the command line; they raise BpfchainError and answer with what they did (:class:`Done`).
"""

from __future__ import annotations

from bpfchain.loader.operations.common import Done

__all__ = ["Done"]

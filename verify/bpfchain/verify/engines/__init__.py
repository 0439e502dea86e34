"""The engines that run programs for a proof: uBPF's interpreter, its JIT, and this kernel.

All speak the protocol of :mod:`.protocol`; ``engine_named`` gives one by the name that ``--engine``
takes. Each is imported only when it is asked for.
"""

from __future__ import annotations

from bpfchain.transform.errors import OptionError, nearest

from .protocol import Engine

__all__ = ["ENGINES", "engine_named"]

ENGINES = ("ubpf", "ubpf-jit", "kernel")


def engine_named(name: str) -> Engine:
    """The engine of that name. Raises OptionError with the nearest name."""
    # imported where needed: each needs something that may not be there (root, the native part)
    if name == "ubpf":
        from .ubpf import UbpfEngine

        return UbpfEngine()
    if name == "ubpf-jit":
        from .jit import JitEngine

        return JitEngine()
    if name == "kernel":
        from .kernel import KernelEngine

        return KernelEngine()
    close = nearest(name, ENGINES)
    hint = f"did you mean {close}?" if close else f"the engines: {', '.join(ENGINES)}"
    raise OptionError(f"--engine: no engine named {name!r}", hint)

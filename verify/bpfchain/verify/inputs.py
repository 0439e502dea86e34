"""From a recording to what a session runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bpfchain.transform.policy import Hook

from .engines.protocol import Inputs

if TYPE_CHECKING:
    from .recording import Recording

__all__ = ["inputs_of"]


def inputs_of(
    recording: Recording, hook: Hook, context_size: int = 0
) -> tuple[Inputs, dict[str, int]]:
    """What of the recording can be run at the hook; and why the rest cannot: reason -> packets.

    Raises UsageError for a capture or contexts that do not fit the hook.
    """
    given = recording.inputs(hook, context_size)
    return Inputs(given.packets, given.contexts, given.times, given.origin), dict(given.skipped)

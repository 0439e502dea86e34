"""A counterexample as a recording that can be run again, and kept as a regression test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bpfchain.transform.errors import HostError
from bpfchain.transform.policy import Hook

from .captures import ETHERNET
from .engines.hooks import has_packets
from .engines.protocol import Inputs
from .recording import Recording
from .scenario import scenario_beside

__all__ = ["recording_of", "save_recording"]


def recording_of(inputs: Inputs, recording: Recording, hook: Hook, description: str) -> Recording:
    """The runs ``inputs`` (a selection of the recording's, with frames that may have been made
    smaller) as a recording of their own, each with the context and time that it had."""
    if has_packets(hook):
        part = recording.select(inputs.origin, hook)
        part = replace(part, packets=inputs.packets, link_type=ETHERNET)
    else:
        size = max(map(len, inputs.contexts), default=0)
        part = recording.select(inputs.origin, hook, size)
        part = replace(part, packets=part.packets[:1], times=part.times[:1])
    return replace(part, scenario=replace(part.scenario, description=description))


def save_recording(recording: Recording, path: Path) -> None:
    """Write the capture (pcapng) and its scenario beside it, each whole. Raises HostError."""
    files = {
        path: recording.capture_bytes(recording.scenario.description),
        scenario_beside(path): recording.scenario.to_json(),
    }
    try:
        for target, data in files.items():
            temporary = target.with_name(f".{target.name}.tmp")
            temporary.write_bytes(data)
            temporary.replace(target)
    except OSError as error:
        raise HostError(f"{path}: cannot be written: {error.strerror}") from None

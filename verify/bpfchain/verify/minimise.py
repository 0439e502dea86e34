"""A difference made small: fewer packets before it, fewer bytes in it, and where it begins.

Maps persist over a capture, so earlier packets may be needed: which of them is found by delta
debugging (Zeller, ddmin); then the packet itself is cut and zeroed while it still differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bpfchain.transform.policy import Hook

from .engines.hooks import has_packets
from .engines.protocol import Inputs
from .expected import Case, Failure
from .isolated import Difference
from .packet_rules import admissible
from .regression import recording_of, save_recording
from .result import Counterexample, Place

if TYPE_CHECKING:
    from .recording import Recording

__all__ = ["counterexample_of"]

_SECONDS = 5.0
"""Minimising stops then: what was found by then is a counterexample as well."""
_HEADER = 14


class Subject(Protocol):
    """Two sides that are run and compared: a link beside its original, a chain beside its links'
    originals."""

    @property
    def hook(self) -> Hook: ...
    def differs(self, inputs: Inputs, fill: int, case: Case) -> Difference | None:
        """Both run on these inputs alone, from the start of the maps."""

    def after(self, inputs: Inputs, fill: int, case: Case) -> tuple[bytes, bytes]:
        """The last packet as both leave it."""

    def divergence(self, inputs: Inputs, fill: int, case: Case, found: Difference) -> Place | None:
        """Where the two part on the last packet; None where that cannot be told."""


def counterexample_of(
    subject: Subject,
    inputs: Inputs,
    how: Failure,
    found: Difference,
    recording: Recording,
    save_to: Path | None = None,
) -> Counterexample:
    """The smallest run that shows the difference ``found`` on ``inputs``, or one much like it.

    ``save_to``: the pcapng file to write it to, its scenario beside it. Raises HostError.
    """
    search = _Search(subject, how, found.dimension)
    found = search.locate(inputs, found)
    packet = inputs.origin[found.position]
    small = search.fewer(inputs.select(range(found.position + 1)))
    if has_packets(subject.hook):
        small = search.smaller(small)
    final = subject.differs(small, *how) or found
    last = len(small) - 1
    if save_to is not None:
        description = f"{final.dimension}: {final.got}, was {final.expected} ({how.case})"
        kept = recording_of(small, recording, subject.hook, description)
        save_recording(kept, save_to)
    return Counterexample(
        packet=packet,
        corpus=recording.name,
        data=small.packets[last],
        context=small.contexts[last],
        before=small.packets[:last],
        dimension=final.dimension,
        expected=final.expected,
        got=final.got,
        first_difference=subject.divergence(small, *how, final),
        after=subject.after(small, *how),
        maps=_map_entries(recording),
        saved_as=None if save_to is None else str(save_to),
    )


def _map_entries(recording: Recording) -> tuple[tuple[str, bytes, bytes], ...]:
    """What the scenario puts into the maps, where it is bytes."""
    return tuple(
        (name, entry.key, entry.value)
        for name, entries in recording.scenario.maps.items()
        for entry in entries
        if isinstance(entry.key, bytes) and isinstance(entry.value, bytes)
    )


class _Search:
    """Tries smaller inputs; each must still differ in the same dimension, on the last packet."""

    def __init__(self, subject: Subject, how: Failure, dimension: str) -> None:
        self._subject, self._how, self._dimension = subject, how, dimension
        self._end = time.monotonic() + _SECONDS

    def _shows(self, inputs: Inputs) -> bool:
        found = self._subject.differs(inputs, *self._how)
        return (
            found is not None
            and found.dimension == self._dimension
            and found.position == len(inputs) - 1
        )

    @property
    def _late(self) -> bool:
        return time.monotonic() > self._end

    def locate(self, inputs: Inputs, found: Difference) -> Difference:
        """A difference of maps, which shows at the end, at the first packet after which it does."""
        if found.dimension != "map":
            return found
        low, high, best = 0, len(inputs), found
        while high - low > 1:
            middle = (low + high) // 2
            here = self._subject.differs(inputs.select(range(middle)), *self._how)
            if here is None:
                low = middle
            else:
                best, high = here, min(middle, here.position + 1)
        return best._replace(position=high - 1)

    def fewer(self, inputs: Inputs) -> Inputs:
        """Without the packets before that are not needed."""
        last = len(inputs) - 1
        alone = inputs.select([last])
        if self._shows(alone):
            return alone
        if not self._shows(inputs):
            return inputs
        needed = _ddmin(range(last), lambda kept: self._shows(inputs.select([*kept, last])),
                        lambda: self._late)  # fmt: skip
        return inputs.select([*needed, last])

    def smaller(self, inputs: Inputs) -> Inputs:
        """With a shorter last packet, then with zeros in it."""
        packet = inputs.packets[-1]
        hook = self._subject.hook

        def with_last(data: bytes) -> Inputs:
            return inputs.changed((*inputs.packets[:-1], data), inputs.contexts)

        def fits(data: bytes) -> bool:
            return admissible(data, hook) is None and self._shows(with_last(data))

        low, high = _HEADER, len(packet)
        while low < high and not self._late:
            middle = (low + high) // 2
            if fits(packet[:middle]):
                high = middle
            else:
                low = middle + 1
        packet = packet[:high]
        size = 32
        while size and not self._late:
            for at in range(0, len(packet), size):
                piece = packet[at : at + size]
                if self._late or not any(piece):
                    continue
                zeroed = packet[:at] + bytes(len(piece)) + packet[at + size :]
                if fits(zeroed):
                    packet = zeroed
            size //= 2
        return with_last(packet)


def _ddmin(
    items: Sequence[int], shows: Callable[[list[int]], bool], late: Callable[[], bool]
) -> list[int]:
    """A list of items of which none can be left out; the whole must show."""
    kept, parts = list(items), 2
    while kept and not late():
        size = max(1, -(-len(kept) // parts))
        for start in range(0, len(kept), size):
            rest = kept[:start] + kept[start + size :]
            if late():
                return kept
            if shows(rest):
                kept, parts = rest, max(2, parts - 1)
                break
        else:
            if size == 1:
                return kept
            parts = min(len(kept), parts * 2)
    return kept

"""How many comparisons with the reference the semantic tests have made in this process."""

from __future__ import annotations

from collections import Counter


class Tally:
    """Counts by kind; shown at the end of the run."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, kind: str, count: int = 1) -> None:
        self.counts[kind] += count


TALLY = Tally()

"""A progress bar on stderr: only on a terminal, only for what takes longer than a second."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from .output import plain

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["DELAY", "Bar", "progress_bar"]

DELAY = 1.0
"""Seconds before anything is shown."""
_EVERY = 0.1
"""Seconds between two drawings."""


class Bar:
    """What ``progress_bar`` gives: call it with what is done, of how much (0: unknown), and what it
    is: ``bar(171, 412, "packets")``. A new ``what`` begins a new bar in the same line."""

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream
        self._began = self._since = time.monotonic()
        self._drawn = 0.0
        self._first = 0
        self._rich: Progress | None = None
        self._task: TaskID | None = None
        self.done, self.total, self.what = 0, 0, ""

    def __call__(self, done: int, total: int, what: str) -> None:
        """Cheap: draws at most ten times a second, and nothing in the first one."""
        now = time.monotonic()
        if what != self.what or done < self.done:
            self._since, self._first, self._drawn = now, done, 0.0
        self.done, self.total, self.what = done, total, what
        if self._stream is None or now - self._began < DELAY or now - self._drawn < _EVERY:
            return
        self._drawn = now
        self._draw(now)

    def _draw(self, now: float) -> None:
        if self._rich is None:
            self._rich = _start(self._stream)
            self._task = self._rich.add_task("", total=None, rate="", left="")
        assert self._task is not None
        passed = now - self._since
        rate = (self.done - self._first) / passed if passed > 0 else 0.0
        left = (self.total - self.done) / rate if rate > 0 and self.total > self.done else None
        self._rich.update(
            self._task,
            completed=self.done,
            total=self.total or None,
            description=self._text(),
            rate=f"{_rate(rate)}/s" if rate > 0 else "",
            left=f"{_clock(left)} left" if left is not None else "",
        )
        self._rich.refresh()

    def _text(self) -> str:
        done = f"{self.done:,}".replace(",", " ")
        total = f" of {self.total:,}".replace(",", " ") if self.total else ""
        return plain(f"{done}{total} {self.what}")

    def close(self, *, interrupted: bool = False) -> None:
        """Take the bar away; after Ctrl-C say how far it came."""
        if self._rich is not None:
            self._rich.stop()
            self._rich = None
            if interrupted and self._stream is not None:
                self._stream.write(f"interrupted at {self._text()}\n")
                self._stream.flush()


@contextmanager
def progress_bar(*, quiet: bool = False, stream: IO[str] | None = None) -> Iterator[Bar]:
    """A bar for the length of a ``with``; it says nothing where stderr is no terminal.

    Nothing of it stays on the screen, whether the work ends, fails or is interrupted.
    """
    stream = sys.stderr if stream is None else stream
    shown = not quiet and stream.isatty() and os.environ.get("TERM") != "dumb"
    bar = Bar(stream if shown else None)
    try:
        yield bar
    except KeyboardInterrupt:
        bar.close(interrupted=True)
        raise
    finally:
        bar.close()


def _start(stream: IO[str] | None) -> Progress:
    """Imported late: rich takes longer than most commands."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    # markup off: what is being done may name a file
    shown = Progress(
        TextColumn("  {task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[rate]}", markup=False),
        TextColumn("{task.fields[left]}", markup=False),
        console=Console(file=stream, highlight=False),
        transient=True,
        auto_refresh=False,
        expand=True,
    )
    shown.start()
    return shown


def _rate(rate: float) -> str:
    """``12``, ``3 400``, ``310 000``: two digits say enough."""
    if rate < 10:
        return f"{rate:.1f}"
    size = max(len(str(int(rate))) - 2, 0)
    return f"{round(rate, -size):,.0f}".replace(",", " ")


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"

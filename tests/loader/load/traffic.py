#!/usr/bin/env python3
"""Numbered frames over a pair of interfaces, and what became of each of them.

Run as a script (a process of its own, so that the loader's Python does not slow it):
``traffic.py LEFT RIGHT``. It sends on LEFT and receives on RIGHT until its stdin ends or a limit is
reached, then prints one JSON object (:class:`Seen`). At most a batch of frames is under way at any
time, so no queue on the way overflows: a frame that does not arrive was dropped by a program.
Frames and kinds: links.c.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import IO, Any

ETHERTYPE = 0x88B5
HEAD = bytes.fromhex("ffffffffffff 020000000001 88b5")
KINDS = (0, 1, 0, 2, 0, 3, 0, 0)
"""The kinds of frames, in turn; the last one of each turn must arrive."""
BATCH = 4 * len(KINDS)
MOST_FRAMES = 4_000_000
MOST_SECONDS = 900.0
LATE = 0.5
"""Seconds after which a frame that must arrive is taken for dropped."""
EXAMPLES = 5


@dataclass
class Seen:
    """What was sent and what arrived."""

    links: int = 3
    sent: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    """Frames by their kind."""
    arrived: int = 0
    skipped: int = 0
    """Frames that arrived without the mark of every link: the chain ended early."""
    mixed: int = 0
    """Frames with marks of two generations."""
    wrong: int = 0
    """Frames that arrived though the links that they met say drop."""
    lost: int = 0
    """Frames of kind 0 that did not arrive."""
    strange: int = 0
    """Frames that arrived twice, or were never sent."""
    marks: dict[str, int] = field(default_factory=dict)
    """Frames that arrived, by their marks: ``1 1 2``."""
    seconds: float = 0.0
    cpu: float = 0.0
    """CPU seconds of the same time: links run in the sender's."""
    longest: float = 0.0
    """Seconds of the longest batch, from its first frame to its last one's arrival."""
    steps: list[int] = field(default_factory=list)
    """Frames that arrived in each 10 ms."""
    examples: list[str] = field(default_factory=list)

    def judge(self, kind: int, number: int, marks: bytes) -> None:
        """Account for one frame that arrived."""
        met = marks[: self.links]
        key = " ".join(map(str, met))
        self.arrived += 1
        self.marks[key] = self.marks.get(key, 0) + 1
        bad = []
        if 0 in met:
            self.skipped += 1
            bad.append("skipped a link")
        elif len(set(met)) > 1:
            self.mixed += 1  # of one replaced link: as it should be
        if kind in (1, 3) or (kind == 2 and met[-1] == 2):
            self.wrong += 1
            bad.append("was to be dropped")
        if bad and len(self.examples) < EXAMPLES:
            self.examples.append(f"frame {number}, kind {kind}, marks {key}: {', '.join(bad)}")

    @property
    def early(self) -> int:
        """Frames that the old chain would not have let pass like this, nor the new one."""
        return self.skipped + self.wrong + self.lost + self.strange


def frame(number: int, kind: int) -> bytes:
    """One frame; links write their marks into it."""
    return HEAD + struct.pack("=QB", number, kind) + bytes(41)


class Generator:
    """Sends and receives. ``most``: frames after which it stops by itself."""

    def __init__(self, left: str, right: str, links: int = 3, most: int = MOST_FRAMES) -> None:
        self.seen = Seen(links)
        self.most = min(most, MOST_FRAMES)
        self._out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._out.bind((left, 0))
        # of one protocol: taps of all protocols see frames before tc does
        self._in = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
        self._in.bind((right, ETHERTYPE))
        self._in.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
        self._in.setblocking(False)
        self._kinds = bytearray()
        self._there = bytearray()
        self._begin, self._begin_cpu = time.monotonic(), time.process_time()

    def run(self, stop: IO[Any]) -> Seen:
        """Until ``stop`` is readable (at its end), or a limit is reached."""
        while len(self._kinds) < self.most and time.monotonic() - self._begin < MOST_SECONDS:
            self._batch()
            if select.select([stop], [], [], 0)[0]:
                break
        return self._end()

    def _batch(self) -> None:
        begin = time.monotonic()
        for i in range(BATCH):
            kind = KINDS[i % len(KINDS)]
            number = len(self._kinds)
            self._kinds.append(kind)
            self._there.append(0)
            self._out.send(frame(number, kind))
            self.seen.sent[kind] += 1
        last = len(self._kinds) - 1
        while not self._there[last] and time.monotonic() - begin < LATE:
            self._drain(0.01)
        self._drain(0)
        self.seen.longest = max(self.seen.longest, time.monotonic() - begin)

    def _drain(self, seconds: float) -> None:
        if seconds:
            select.select([self._in], [], [], seconds)
        while True:
            try:
                data = self._in.recv(2048)
            except BlockingIOError:
                return
            self._take(data)

    def _take(self, data: bytes) -> None:
        number, kind = struct.unpack_from("=QB", data, len(HEAD))
        step = int((time.monotonic() - self._begin) * 100)
        self.seen.steps += [0] * (step + 1 - len(self.seen.steps))
        self.seen.steps[step] += 1
        if number >= len(self._kinds) or self._there[number] or kind != self._kinds[number]:
            self.seen.strange += 1
            return
        self._there[number] = 1
        self.seen.judge(kind, number, data[len(HEAD) + 9 :])

    def _end(self) -> Seen:
        self.seen.seconds = time.monotonic() - self._begin
        self.seen.cpu = time.process_time() - self._begin_cpu
        end = time.monotonic() + LATE
        while time.monotonic() < end:
            self._drain(0.05)
        for number, kind in enumerate(self._kinds):
            if kind == 0 and not self._there[number]:
                self.seen.lost += 1
                if len(self.seen.examples) < EXAMPLES:
                    self.seen.examples.append(f"frame {number}, kind 0: did not arrive")
        return self.seen


class Running:
    """A generator in a process of its own; ``seen`` is there after the with block."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.seen = Seen()

    def end(self) -> None:
        """Stop it, and read what it saw."""
        out, errors = self._process.communicate("", timeout=60)
        assert self._process.returncode == 0, errors
        self.seen = Seen(**json.loads(out))


@contextmanager
def traffic(
    left: str, right: str, *, links: int = 3, most: int = MOST_FRAMES, cpu: int | None = None
) -> Iterator[Running]:
    """Traffic while the block runs, in the calling thread's network namespace, on one CPU if told."""
    process = subprocess.Popen(
        [sys.executable, __file__, left, right, str(links), str(most)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    running = Running(process)
    try:
        if cpu is not None:
            os.sched_setaffinity(process.pid, {cpu})
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield running
        running.end()
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def main(arguments: Sequence[str]) -> None:
    """As a process of its own."""
    left, right, links, most = arguments
    generator = Generator(left, right, int(links), int(most))
    print("ready", flush=True)
    print(json.dumps(asdict(generator.run(sys.stdin))))


if __name__ == "__main__":
    main(sys.argv[1:])

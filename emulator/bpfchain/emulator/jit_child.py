"""The child process that runs uBPF's JIT: it may crash or never end, and its parent goes on.

Run as a script, with the native module's path and two descriptors; it imports nothing else of this
package. Messages are pickles behind their length. The parent's side is ``jit_process``.
"""

from __future__ import annotations

import mmap
import pickle
import struct
import sys
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from typing import IO, Any

__all__ = ["LENGTH", "receive", "send"]

LENGTH = struct.Struct("<Q")


def send(stream: IO[bytes], message: object) -> None:
    """Write one message whole."""
    data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    view = memoryview(LENGTH.pack(len(data)) + data)
    while view:
        view = view[stream.write(view) or 0 :]


def receive(stream: IO[bytes]) -> Any:
    """Read one message. EOFError at the end."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        raise EOFError
    return pickle.loads(stream.read(LENGTH.unpack(head)[0]))


class _Child:
    def __init__(self, ubpf: Any, progress: mmap.mmap) -> None:
        self._ubpf, self._progress = ubpf, progress
        self._worlds: dict[int, Any] = {}
        self._packets: dict[int, Any] = {}
        self._batches: dict[int, Any] = {}

    def new(self, world: int, options: dict[str, Any]) -> None:
        self._worlds[world] = self._ubpf.World(**options)

    def call(self, world: int, method: str, arguments: tuple[Any, ...]) -> Any:
        return getattr(self._worlds[world], method)(*arguments)

    def packets(self, number: int, parts: tuple[Any, ...]) -> None:
        self._packets[number] = self._ubpf.Packets(*parts)

    def select(self, number: int, root: int, order: list[int]) -> None:
        self._packets[number] = self._packets[root].select(order)

    def run(
        self, world: int, program: int, packets: int, fill: int, number: int, details: bool
    ) -> tuple[Any, ...]:
        batch = self._worlds[world].run_batch(
            program, self._packets[packets], fill=fill, jit=True, coverage=False
        )
        self._batches[number] = batch
        faults = [
            (f.packet, f.program, f.kind, f.pc, f.address, f.size, f.what) for f in batch.faults
        ]
        arrays = batch.verdicts, batch.ended, batch.instructions, batch.tail_calls
        return arrays, faults, self.details(number) if details else None

    def slowly(self, world: int, program: int, packets: int, fill: int) -> None:
        """One packet a batch, each told before it runs: to learn at which one this process dies."""
        chosen = self._packets[packets]
        for index in range(len(chosen)):
            LENGTH.pack_into(self._progress, 0, index + 1)
            one = chosen.select([index])
            self._worlds[world].run_batch(program, one, fill=fill, jit=True, coverage=False)
        LENGTH.pack_into(self._progress, 0, 0)

    def details(self, number: int) -> list[tuple[Any, ...]]:
        batch = self._batches[number]
        return [
            (batch.packet(i), batch.metadata(i), batch.context(i), batch.events(i))
            for i in range(len(batch))
        ]

    def differences(
        self, number: int, other: int, limit: int, ignore: list[str]
    ) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = self._batches[number].differences(
            self._batches[other], limit, ignore
        )
        return found

    def map_differs(self, world: int, index: int, other: int, other_index: int) -> bool:
        differs: bool = self._worlds[world].map_differs(index, self._worlds[other], other_index)
        return differs

    def drop(self, kind: str, number: int) -> None:
        {"world": self._worlds, "batch": self._batches, "packets": self._packets}[kind].pop(
            number, None
        )


def main() -> None:
    """Serve until the parent closes the pipe."""
    path, progress = sys.argv[1], int(sys.argv[2])
    spec = spec_from_file_location("_ubpf", path, loader=ExtensionFileLoader("_ubpf", path))
    assert spec is not None
    assert spec.loader is not None
    ubpf = module_from_spec(spec)
    spec.loader.exec_module(ubpf)
    ubpf.allow_jit()
    child = _Child(ubpf, mmap.mmap(progress, mmap.PAGESIZE))
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # a stray print must not look like a reply
    while True:
        try:
            method, arguments, forgotten = receive(requests)
        except EOFError:
            return
        for kind, number in forgotten:
            child.drop(kind, number)
        try:
            reply: tuple[bool, Any] = (True, getattr(child, method)(*arguments))
        except Exception as error:
            reply = (False, error)
        send(replies, reply)
        replies.flush()


if __name__ == "__main__":
    main()

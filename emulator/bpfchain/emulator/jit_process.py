"""The parent's side of the JIT's child process: requests with a time limit, and what death means."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar, Self

from bpfchain.transform.errors import InconclusiveError

from .interpreter import native
from .jit_child import LENGTH, send

__all__ = ["ChildDiedError", "JitProcess"]

_STOP_SECONDS = 1.0


class ChildDiedError(InconclusiveError):
    """The child is gone. ``fault``: "crash", or "limit" where it was killed for its time."""

    def __init__(self, fault: str, what: str) -> None:
        super().__init__(what)
        self.fault = fault


class JitProcess:
    """A child process, started when it is first needed and again after it died.

    ``generation`` grows with every death: what lived in the child before is gone. Machines share
    one (``acquire``/``release``), so that their results are compared where they are.
    """

    _shared: ClassVar[JitProcess | None] = None
    _users: ClassVar[int] = 0
    _guard: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self) -> None:
        self.generation = 0
        self._numbers = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._forgotten: list[tuple[str, int]] = []
        self._shared_page = os.memfd_create("bpfchain-jit")
        os.ftruncate(self._shared_page, mmap.PAGESIZE)
        self._progress = mmap.mmap(self._shared_page, mmap.PAGESIZE)

    @classmethod
    def acquire(cls) -> JitProcess:
        """The process that all machines share."""
        with cls._guard:
            if cls._shared is None:
                cls._shared = cls()
            cls._users += 1
            return cls._shared

    def release(self) -> None:
        """One user less; the last one ends it."""
        with self._guard:
            cls = type(self)
            cls._users -= 1
            if cls._users <= 0 and cls._shared is self:
                cls._shared, cls._users = None, 0
                self.close()

    def number(self) -> int:
        """A new number for a world, packets or a batch."""
        self._numbers += 1
        return self._numbers

    def forget(self, kind: str, number: int) -> None:
        """The child may free it (told with the next request: this is called by destructors too)."""
        self._forgotten.append((kind, number))

    @property
    def packet(self) -> int:
        """Of ``slowly``: the packet that was being run, -1 where none was."""
        number: int = LENGTH.unpack_from(self._progress, 0)[0]
        return number - 1

    def request(self, method: str, *arguments: Any, seconds: float = 60.0) -> Any:
        """Ask and wait for the answer; raises what the child raised, or ChildDiedError."""
        with self._lock:
            process = self._start()
            assert process.stdin is not None
            assert process.stdout is not None
            deadline = time.monotonic() + seconds
            try:
                forgotten, self._forgotten = self._forgotten, []
                send(process.stdin, (method, arguments, forgotten))
                process.stdin.flush()
                done, value = self._receive(process, deadline)
            except (BrokenPipeError, EOFError):
                raise self._died(process) from None
            except TimeoutError:
                process.kill()
                self._end(process)
                raise ChildDiedError("limit", f"no end within {seconds:g} s") from None
            except BaseException:
                # interrupted half way: what the child would say next answers an old question
                process.kill()
                self._end(process)
                raise
        if not done:
            raise value
        return value

    def _start(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._forgotten.clear()
            module = native().__file__
            script = Path(__file__).with_name("jit_child.py")
            LENGTH.pack_into(self._progress, 0, 0)
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(script), module, str(self._shared_page)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=(self._shared_page,),
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )  # fmt: skip
        return self._process

    @staticmethod
    def _receive(process: subprocess.Popen[bytes], deadline: float) -> Any:
        """One message. TimeoutError, EOFError."""
        import pickle

        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)

        def read(count: int) -> bytes:
            parts = bytearray()
            while len(parts) < count:
                left = deadline - time.monotonic()
                if left <= 0 or not poll.poll(left * 1000):
                    raise TimeoutError
                part = os.read(descriptor, min(count - len(parts), 1 << 20))
                if not part:
                    raise EOFError
                parts += part
            return bytes(parts)

        (size,) = LENGTH.unpack(read(LENGTH.size))
        return pickle.loads(read(size))

    def _died(self, process: subprocess.Popen[bytes]) -> ChildDiedError:
        try:
            code = process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        self._end(process)
        if code < 0:
            with contextlib.suppress(ValueError):
                return ChildDiedError(
                    "crash", f"the JIT's process died of {signal.Signals(-code).name}"
                )
        return ChildDiedError("crash", f"the JIT's process ended with {code}")

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process = None
        self.generation += 1

    def close(self) -> None:
        """End the child."""
        with self._lock:
            process, self._process = self._process, None
            if process is not None:
                with contextlib.suppress(OSError):
                    assert process.stdin is not None
                    process.stdin.close()
                try:
                    process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                self._end(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()
            self._progress.close()
            os.close(self._shared_page)

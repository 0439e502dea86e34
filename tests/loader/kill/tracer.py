"""A forked child stopped before and after each system call that changes something: to look, to kill
it there, or to let the call fail.

The child is this process at the moment of the fork, so a command in it costs no start of Python.
Stops are asked for by a seccomp filter (SECCOMP_RET_TRACE), so that other calls run at full speed.
A process that is killed in the stop before a call never makes the call (kernel/seccomp.c); one
killed in the stop behind it has made it.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import IO

from loader.kill.syscalls import (
    BPF,
    MAKES,
    NAMES,
    NUMBERS,
    PROCESSES,
    READS,
    Call,
    command_of,
    describe,
)  # fmt: skip

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long

_TRACEME, _POKEUSER, _CONT, _SYSCALL = 0, 6, 7, 24
_SETOPTIONS, _GET_SYSCALL_INFO = 0x4200, 0x420E
_TRACESYSGOOD, _TRACESECCOMP, _EXITKILL = 1, 0x80, 0x100000
_EVENT_SECCOMP = 7
_WALL = 0x40000000
_RET_TRACE, _RET_ALLOW = 0x7FF00000, 0x7FFF0000
_PR_SET_SECCOMP, _FILTER = 22, 2
_IDS = ("link_id", "prog_id", "map_id")
_RAX, _ORIG_RAX = 10 * 8, 15 * 8  # <sys/user.h>, x86-64


@dataclass(slots=True)
class Stop:
    """The child stands around one call."""

    number: int
    """Of the call among those that were counted, from 0."""
    call: Call
    after: bool
    pid: int


@dataclass(slots=True)
class Run:
    """What became of a child."""

    calls: list[Call] = field(default_factory=list)
    """Those that were counted, in order, as far as it came."""
    made: dict[str, set[int]] = field(
        default_factory=lambda: {"prog": set(), "map": set(), "link": set()}
    )
    """Ids of all programs, maps and links that it made."""
    pinned: set[int] = field(default_factory=set)
    """Ids of the maps that it pinned."""
    code: int | None = None
    """Its exit code; None: it was killed."""
    out: str = ""
    err: str = ""


Visit = Callable[[Stop], object]


def trace(
    work: Callable[[], object], *, visit: Visit | None = None,
    kill: tuple[int, bool] | None = None, fail: tuple[int, int] | None = None, reads: bool = False,
) -> Run:  # fmt: skip
    """Run ``work`` in a child to its end, or to the stop where it is killed.

    ``visit`` is called at each stop. ``kill``: (number of the call, after it). ``fail``: (number,
    errno) of a call that is not made, and answers so (x86-64). ``reads``: count also the calls of
    bpf(2) and netlink that change nothing. SystemExit's code is the exit code, an exception is 99.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        run = Run()
        pid = os.fork()
        if pid == 0:
            _child(work, out, err, reads)
        try:
            _follow(pid, run, visit, kill, fail, reads)
        except BaseException:
            with suppress(ChildProcessError, ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, _WALL)
            raise
        for stream, name in ((out, "out"), (err, "err")):
            stream.seek(0)
            setattr(run, name, stream.read().decode("utf-8", "replace"))
        return run


def _child(work: Callable[[], object], out: IO[bytes], err: IO[bytes], reads: bool) -> None:
    code: object = 99
    try:
        for stream, fd in ((out, 1), (err, 2)):
            os.dup2(stream.fileno(), fd)
        sys.stdout, sys.stderr = (os.fdopen(fd, "w", closefd=False) for fd in (1, 2))
        _ptrace(_TRACEME, 0)
        _install(_filter(reads))
        os.kill(os.getpid(), signal.SIGSTOP)
        work()
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _follow(
    pid: int, run: Run, visit: Visit | None, kill: tuple[int, bool] | None,
    fail: tuple[int, int] | None, reads: bool,
) -> None:  # fmt: skip
    _wait(pid)
    _ptrace(_SETOPTIONS, pid, _TRACESYSGOOD | _TRACESECCOMP | _EXITKILL)
    _ptrace(_CONT, pid)
    entered: tuple[Stop, str, tuple[int, ...]] | None = None
    while True:
        status = _wait(pid)
        if os.WIFEXITED(status):
            run.code = os.WEXITSTATUS(status)
            return
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL, f"signal {os.WTERMSIG(status)}"
            return
        number = os.WSTOPSIG(status)
        how, deliver = _CONT, 0
        if status >> 8 == signal.SIGTRAP | _EVENT_SECCOMP << 8:
            how = _SYSCALL
            entered = _enter(pid, run, reads)
            if entered is None:
                how = _CONT
            else:
                stop = entered[0]
                if fail is not None and fail[0] == stop.number:
                    _refuse(pid, fail[1])
                _look(stop, visit, kill)
        elif number == signal.SIGTRAP | 0x80:
            assert entered is not None
            stop, name, args = entered
            stop.after = True
            if name == "bpf":
                _note(pid, args[0], run)
            _look(stop, visit, kill)
            entered = None
        else:
            deliver = number
        _ptrace(how, pid, deliver)


def _enter(pid: int, run: Run, reads: bool) -> tuple[Stop, str, tuple[int, ...]] | None:
    data = _info(pid)
    number, *arguments = struct.unpack_from("=7Q", data, 24)
    name, args = NAMES[number], tuple(arguments)
    assert name not in PROCESSES, f"the command starts a process ({name}), which is not followed"
    call = describe(name, args, lambda address, size: _memory(pid, address, size))
    if call.reads and not reads:
        return None
    if call.fd is not None:
        number = _ids(pid, call.fd).get("map", 0)
        if call.text.startswith("bpf OBJ_PIN"):
            run.pinned.add(number)
        elif number in run.made["map"] - run.pinned:
            call = replace(call, private=True)
    run.calls.append(call)
    return Stop(len(run.calls) - 1, call, False, pid), name, args


def _look(stop: Stop, visit: Visit | None, kill: tuple[int, bool] | None) -> None:
    if visit is not None:
        visit(stop)
    if kill == (stop.number, stop.after):
        os.kill(stop.pid, signal.SIGKILL)


def _note(pid: int, command: int, run: Run) -> None:
    """Remember what a call made, by what /proc tells of the descriptor."""
    answer, failed = struct.unpack_from("=qB", _info(pid), 24)
    if command_of(command) not in MAKES or failed:
        return
    found = _ids(pid, answer)
    for kind in ("link", "prog", "map"):  # of a link, its program's id is told too
        if kind in found:
            run.made[kind].add(found[kind])
            return


def _ids(pid: int, fd: int) -> dict[str, int]:
    """What /proc tells of a descriptor: its map's, program's or link's id."""
    with open(f"/proc/{pid}/fdinfo/{fd}") as file:
        lines = [line.partition(":") for line in file]
    return {key[:-3]: int(value) for key, _, value in lines if key in _IDS}


def _refuse(pid: int, number: int) -> None:
    """Let the call that the child is about to make not be made."""
    if platform.machine() != "x86_64":
        raise NotImplementedError("calls are made to fail on x86-64 only")
    _ptrace(_POKEUSER, pid, -1, _ORIG_RAX)
    _ptrace(_POKEUSER, pid, -number, _RAX)


def _info(pid: int) -> bytes:
    buffer = ctypes.create_string_buffer(96)
    answer = _libc.ptrace(_GET_SYSCALL_INFO, pid, len(buffer), ctypes.addressof(buffer))
    if answer < 0:
        raise OSError(ctypes.get_errno(), "PTRACE_GET_SYSCALL_INFO")
    return buffer.raw


def _memory(pid: int, address: int, size: int) -> bytes:
    fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
    try:
        first = min(size, 4096 - address % 4096)  # the next page may not be there
        data = os.pread(fd, first, address)
        if first < size:
            with suppress(OSError):
                data += os.pread(fd, size - first, address + first)
        return data
    finally:
        os.close(fd)


def _wait(pid: int) -> int:
    return os.waitpid(pid, _WALL)[1]


def _ptrace(request: int, pid: int, data: int = 0, address: int = 0) -> None:
    if _libc.ptrace(request, pid, address, data) < 0:
        number = ctypes.get_errno()
        if number == 3 and request != _TRACEME:  # ESRCH: it was killed in this stop
            return
        raise OSError(number, f"ptrace {request:#x}: {os.strerror(number)}")


def _filter(reads: bool) -> bytes:
    """A classic BPF program: SECCOMP_RET_TRACE for the calls in ``NUMBERS``, without the commands
    of bpf(2) that only read unless ``reads``."""
    insns: list[tuple[int, int, int, int]] = [(0x20, 0, 0, 0)]  # A = number
    others = [number for name, number in NUMBERS.items() if name != "bpf"]
    commands = [] if reads else [BPF.index(name) for name in sorted(READS)]
    low = 16 if sys.byteorder == "little" else 20
    # A != bpf: on to the others; else A = the command
    insns += [(0x15, 0, len(commands) + 2, NUMBERS["bpf"]), (0x20, 0, 0, low)]
    total = 3 + len(commands) + 1 + len(others)
    insns += [(0x15, total - (3 + i) - 1, 0, command) for i, command in enumerate(commands)]
    insns += [(0x05, 0, 0, len(others) + 1)]  # to TRACE
    insns += [(0x15, len(others) - i, 0, number) for i, number in enumerate(others)]
    insns += [(0x06, 0, 0, _RET_ALLOW), (0x06, 0, 0, _RET_TRACE)]
    return b"".join(struct.pack("=HBBI", *one) for one in insns)


def _install(program: bytes) -> None:
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer))
    if _libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.c_char_p(header), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp filter")

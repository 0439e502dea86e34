"""The same calls as Debian's strace tells them: a reader that shares nothing with the tracer."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loader.kill.syscalls import NUMBERS, READS
from support.commands import argv, environment

HARMLESS = frozenset(
    # of the process itself, and reading
    [
        "access",
        "arch_prctl",
        "brk",
        "capget",
        "clock_gettime",
        "close",
        "close_range",
        "dup",
        "dup2",
        "dup3",
        "epoll_create1",
        "epoll_ctl",
        "exit",
        "exit_group",
        "faccessat",
        "faccessat2",
        "fcntl",
        "flock",
        "fstat",
        "fstatfs",
        "futex",
        "getcwd",
        "getdents64",
        "getegid",
        "geteuid",
        "getgid",
        "getpid",
        "getppid",
        "getrandom",
        "getresgid",
        "getresuid",
        "getrlimit",
        "getsockname",
        "getsockopt",
        "gettid",
        "gettimeofday",
        "getuid",
        "ioctl",
        "lseek",
        "lstat",
        "madvise",
        "membarrier",
        "mmap",
        "mprotect",
        "mremap",
        "munmap",
        "newfstatat",
        "open",
        "openat",
        "pipe",
        "pipe2",
        "poll",
        "ppoll",
        "prctl",
        "pread64",
        "prlimit64",
        "read",
        "readlink",
        "readlinkat",
        "readv",
        "recvfrom",
        "recvmsg",
        "rseq",
        "rt_sigaction",
        "rt_sigprocmask",
        "rt_sigreturn",
        "sched_getaffinity",
        "sched_yield",
        "select",
        "set_robust_list",
        "set_tid_address",
        "setrlimit",
        "sigaltstack",
        "socket",
        "bind",
        "stat",
        "statfs",
        "statx",
        "sysinfo",
        "uname",
        "write",
        "memfd_create",
        "ftruncate",
        "bpf",
        "sendto",
    ]
)
"""Names of calls that leave nothing to others. ``write`` goes where a file was opened to write,
which is looked at; ``bpf`` and ``sendto`` by what they say."""

_LINE = re.compile(r"^(?:\d+ +)?(\w+)\((.*)$")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass
class Seen:
    """What strace told of one command."""

    calls: list[str] = field(default_factory=list)
    """Those that change something, in the words of :func:`loader.kill.syscalls.describe`."""
    others: set[str] = field(default_factory=set)
    """Names of all other calls."""
    written: set[str] = field(default_factory=set)
    """Files that were opened to write, or made."""


def straced(words: Sequence[str], folder: Path) -> Seen:
    """Run ``bpfchain`` with these words under strace."""
    log = folder / "strace.log"
    done = subprocess.run(
        ["strace", "-f", "-qq", "-s", "512", "-o", str(log), *argv("bpfchain", *words)],
        capture_output=True, text=True, check=False,
        env=environment(PYTHONDONTWRITEBYTECODE="1"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = Seen()
    for line in log.read_text().splitlines():
        found = _LINE.match(line)
        if found:
            _sort(found[1], found[2], seen)
    assert seen.calls, "strace told no call"
    return seen


def _sort(name: str, rest: str, seen: Seen) -> None:
    if name == "execve":
        return  # the command's own start; what it starts itself the tracer would refuse
    if name in ("open", "openat") and re.search(r"O_(WRONLY|RDWR|CREAT)", rest):
        seen.written.add(_STRING.findall(rest)[0])
    text = _call(name, rest)
    if text is not None:
        seen.calls.append(text)
    else:
        seen.others.add(name)


def _call(name: str, rest: str) -> str | None:
    """In the tracer's words; None: it changes nothing."""
    if name not in NUMBERS:
        return None
    if name == "bpf":
        command = rest.split(",", 1)[0].removeprefix("BPF_")
        path = f" {_STRING.findall(rest)[0]}" if command == "OBJ_PIN" else ""
        return None if command in READS else f"bpf {command}{path}"
    if name == "sendto":
        kind = re.search(r"nlmsg_type=(\w+)", rest)
        assert kind, rest
        return None if kind[1].startswith("RTM_GET") else f"sendto {kind[1]}"
    if name == "setsockopt":
        named = {"SOL_NETLINK": "270", "NETLINK_EXT_ACK": "11"}
        _, level, option, *_ = (word.strip() for word in rest.split(","))
        return f"setsockopt {named.get(level, level)} {named.get(option, option)}"
    return " ".join([name, *_STRING.findall(rest)])

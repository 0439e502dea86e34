"""Network namespaces for tests with real packets: a pair of interfaces, senders, counters."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SO_MARK = 36
_CLONE_NEWNET = 0x40000000
FRAME = (
    bytes.fromhex("ffffffffffff 020000000001 88b5")  # an EtherType for experiments
    + bytes(range(50))
)


def in_netns(work: Callable[[], None]) -> None:
    """Run ``work`` in a thread with a network namespace of its own, gone with the thread."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(_CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
            work()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def tool(*command: str) -> str:
    """Run a tool; its output. AssertionError with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr or done.stdout}"
    return done.stdout


def make_pair() -> int:
    """Interfaces ``left`` and ``right``, joined and up, without IPv6 chatter; left's index."""
    quiet = "for f in /proc/sys/net/ipv6/conf/*/disable_ipv6; do [ ! -e $f ] || echo 1 > $f; done"
    tool("sh", "-c", quiet)
    tool("ip", "link", "add", "left", "type", "veth", "peer", "name", "right")
    tool("sh", "-c", quiet)
    for name in ("left", "right"):
        tool("ip", "link", "set", name, "up")
    until_up("left", "right")
    return socket.if_nametoindex("left")


def until_up(*names: str) -> None:
    """Wait until frames can be sent: a carrier counts some time after an interface is set up, and
    until then frames are dropped without a word."""
    end = time.monotonic() + 10
    for name in names:
        while True:
            (link,) = json.loads(tool("ip", "-j", "link", "show", "dev", name))
            if link["operstate"] == "UP" and link["qdisc"] != "noop":
                break
            assert time.monotonic() < end, f"{name} does not come up: {link}"


def received(name: str) -> int:
    """Frames that the interface has received."""
    stats = json.loads(tool("ip", "-j", "-s", "link", "show", "dev", name))[0]
    return int(stats["stats64"]["rx"]["packets"])


def send(name: str, count: int, mark: int = 0) -> int:
    """Send frames with a mark; how many of them the stack took without an error."""
    taken = 0
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        if mark:
            out.setsockopt(socket.SOL_SOCKET, SO_MARK, mark)
        out.bind((name, 0))
        for _ in range(count):
            with suppress(OSError):  # the hook dropped it (ENOBUFS)
                out.send(FRAME)
                taken += 1
    return taken


@contextmanager
def child_cgroup(folder: Path) -> Iterator[Path]:
    """A new cgroup (version 2), mounted at ``folder`` in this process's own mount namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"cgroup2", os.fsencode(folder), b"cgroup2", 0, None):
        raise OSError(ctypes.get_errno(), f"mount cgroup2 at {folder}")
    group = folder / f"bpfchain-test-{os.getpid()}-{struct.unpack('=I', os.urandom(4))[0]:x}"
    try:
        group.mkdir()
        try:
            yield group
        finally:
            group.rmdir()
    finally:
        libc.umount2(os.fsencode(folder), 2)

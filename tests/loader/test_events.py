"""Chains on hooks without packets of an interface: each event passes all links, and a link that says
no ends it (sockets, cgroups, netfilter), with what the kernel then does."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bpfchain.loader.hooks import Target, cgroup_target, named_target, socket_target
from bpfchain.loader.operations.load import load
from bpfchain.loader.operations.recreate import recreate
from bpfchain.loader.operations.unload import unload
from bpfchain.loader.places import place_of, state_root
from bpfchain.loader.status import chain_status
from bpfchain.transform.policy import hook_named
from support.chains import (
    Part,
    ids_of,
    runs,
    set_verdict,
    source_of,
    wait_gone,
    wait_until,
    write_chain,
)
from support.nets import child_cgroup, in_netns, tool

pytestmark = pytest.mark.usefixtures("kernel")

LINKS, TIMES = 3, 5
_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_NAME, _PR_GET_NAME = 15, 16


@dataclass
class Event:
    """A hook, and how something happens at it."""

    part: Part
    target: Target
    go_on: int
    happen: Callable[[], bool]
    """One event; whether the kernel let it through."""
    stop: int | None = None
    """A code that ends it; None: nobody looks at the code."""
    entry: int | None = None
    """What an entry program returns, on hooks that need one."""
    exact: bool = True
    """Whether nothing else on the machine makes such events."""


def rename() -> bool:
    name = ctypes.create_string_buffer(16)
    _libc.prctl(_PR_GET_NAME, name)
    return bool(_libc.prctl(_PR_SET_NAME, name) == 0)


def burn() -> bool:
    end = time.thread_time() + 0.02  # 20 events at least: one a millisecond of CPU time
    while time.thread_time() < end:
        pass
    return True


def tracefs() -> None:
    if not Path("/sys/kernel/tracing/events").is_dir():
        tool("mount", "-t", "tracefs", "tracefs", "/sys/kernel/tracing")


@contextlib.contextmanager
def tracepoint(_: Path) -> Iterator[Event]:
    tracefs()
    target = named_target(hook_named("tracepoint"), "task/task_rename")
    part = Part("verdict_tracepoint", program="verdict_tracepoint")
    yield Event(part, target, 0, rename, entry=0, exact=False)


@contextlib.contextmanager
def raw_tp(_: Path) -> Iterator[Event]:
    target = named_target(hook_named("raw_tp"), "task_rename")
    part = Part("verdict_raw_tp", program="verdict_raw_tp")
    yield Event(part, target, 0, rename, entry=0, exact=False)


@contextlib.contextmanager
def perf_event(_: Path) -> Iterator[Event]:
    target = named_target(hook_named("perf_event"), "software:0:1000000")
    yield Event(Part("verdict_perf_event"), target, 1, burn, entry=1, exact=False)


@contextlib.contextmanager
def socket_filter(_: Path) -> Iterator[Event]:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out,
    ):
        one.bind(("127.0.0.1", 0))
        one.setblocking(False)
        target = socket_target(hook_named("socket"), one.fileno())

        def datagram() -> bool:
            out.sendto(b"x", one.getsockname())
            with contextlib.suppress(BlockingIOError):
                return one.recv(1) == b"x"
            return False

        # -1: all of it is kept; 0: none
        yield Event(Part("verdict_socket"), target, -1, datagram, stop=0)


@contextlib.contextmanager
def netfilter(_: Path) -> Iterator[Event]:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out,
    ):
        one.bind(("127.0.0.1", 0))
        one.setblocking(False)

        def datagram() -> bool:
            out.sendto(b"x", one.getsockname())
            with contextlib.suppress(BlockingIOError):
                return one.recv(1) == b"x"
            return False

        target = named_target(hook_named("netfilter"), "ip/input")
        yield Event(Part("verdict_netfilter"), target, 1, datagram, stop=0, entry=1)


@contextlib.contextmanager
def sk_lookup(_: Path) -> Iterator[Event]:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out,
    ):
        one.bind(("127.0.0.1", 0))
        one.setblocking(False)

        def datagram() -> bool:
            try:
                out.sendto(b"x", one.getsockname())
                return one.recv(1) == b"x"
            except BlockingIOError:
                return False

        target = named_target(hook_named("sk_lookup"), "")
        yield Event(Part("verdict_sk_lookup"), target, 1, datagram, stop=0)


IN_CGROUP = """
import socket, sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
try:
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    if sys.argv[2] == "connect":
        one.connect(("127.0.0.1", 9))
    print("yes")
except PermissionError:
    print("no")
"""


def in_cgroup(folder: Path, what: str) -> bool:
    import sys

    return tool(sys.executable, "-c", IN_CGROUP, str(folder), what) == "yes\n"


@contextlib.contextmanager
def connect4(folder: Path) -> Iterator[Event]:
    with child_cgroup(folder) as group:
        target = cgroup_target(hook_named("cgroup/connect4"), group)
        part = Part("verdict_sock_addr", program="verdict_connect4")
        yield Event(part, target, 1, lambda: in_cgroup(group, "connect"), stop=0)


@contextlib.contextmanager
def sock_create(folder: Path) -> Iterator[Event]:
    with child_cgroup(folder) as group:
        target = cgroup_target(hook_named("cgroup/sock_create"), group)
        part = Part("verdict_cgroup_sock", program="verdict_sock_create")
        yield Event(part, target, 1, lambda: in_cgroup(group, "socket"), stop=0)


@pytest.mark.parametrize(
    "event",
    [tracepoint, raw_tp, perf_event, socket_filter, netfilter, sk_lookup, connect4, sock_create],
)
def test_events_pass_all_links(
    event: Callable[[Path], contextlib.AbstractContextManager[Event]], bpffs: Path, tmp_path: Path
) -> None:
    def work() -> None:
        tool("ip", "link", "set", "lo", "up")
        group = tmp_path / "cgroup"
        group.mkdir()
        with event(group) as here:
            passes(here)

    def passes(here: Event) -> None:
        source = source_of(write_chain(tmp_path / "c", "edge", [here.part] * LINKS))
        place = place_of(here.target, "edge", state_root(bpffs))
        fd = here.target.fd
        load(source, place, here.target, entry=here.entry)
        folder = place.generation(1)
        for index in range(LINKS):
            set_verdict(folder / f"m{index}_verdict", here.go_on)

        def count() -> list[int]:
            return [runs(folder / f"m{index}_runs") for index in range(LINKS)]

        def happens(reach: int, passes: bool) -> None:
            before = count()
            answers = [here.happen() for _ in range(TIMES)]
            assert answers == [passes] * TIMES
            grown = [now - was for now, was in zip(count(), before, strict=True)]
            if here.exact:
                # (the ICMP error for a datagram that found no socket is one more lookup)
                times = TIMES if passes else max(grown[0], TIMES)
                assert grown == [times] * reach + [0] * (LINKS - reach)
            else:
                assert min(grown) >= TIMES, "events of others count too"

        if not here.exact:
            # one that ran before all links went on may have met the head alone
            skipped = _settled(count)
        happens(LINKS, True)
        assert chain_status(place, fd=fd).healthy
        recreate(source, place, fd=fd)
        folder = place.generation(2)
        happens(LINKS, True)
        if here.stop is not None:
            set_verdict(folder / "m1_verdict", here.stop)
            happens(2, False)
            set_verdict(folder / "m1_verdict", here.go_on)
            happens(LINKS, True)
        if not here.exact:
            wait_until(lambda: _settled(count) == skipped, "each event met all links")
        known = ids_of(place.folder)
        unload(place, fd=fd)
        assert here.happen()
        wait_gone(known)

    in_netns(work)
    assert list(bpffs.iterdir()) == []


def _settled(count: Callable[[], list[int]]) -> list[int]:
    """By how much the links' counters differ, read twice alike: none of an event that is under way."""
    end = time.monotonic() + 10
    while True:
        one, two = count(), count()
        if one == two:
            return [one[0] - number for number in one]
        assert time.monotonic() < end, "events never pause"

"""The socket driver: a filter on a socket of this process."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bpfchain.loader.hooks import Target, driver, socket_target
from bpfchain.loader.hooks.socket import SocketAttachment, filter_kind
from bpfchain.loader.uapi import SO_ATTACH_FILTER, SO_LOCK_FILTER, ProgType
from bpfchain.transform.errors import HostError, UsageError
from bpfchain.transform.policy import hook_named
from support.bpfcode import bpf_descriptors
from support.counting import Counting, gone

pytestmark = pytest.mark.usefixtures("kernel")

KEEP, DROP = 0x7FFF_FFFF, 0
TIMES = 5


@contextmanager
def receiver() -> Iterator[tuple[socket.socket, Target]]:
    before = bpf_descriptors()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        one.setblocking(False)
        yield one, socket_target(hook_named("socket"), one.fileno())
    assert bpf_descriptors() == before


def arrived(one: socket.socket) -> int:
    """Send TIMES datagrams; how many arrive (delivery on the loopback is done when send ends)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        for _ in range(TIMES):
            out.sendto(b"data", one.getsockname())
    count = 0
    while True:
        try:
            one.recv(100)
        except BlockingIOError:
            return count
        count += 1


def program(value: int) -> Counting:
    return Counting(ProgType.SOCKET_FILTER, value)


def test_attached_exchanged_found_again_detached() -> None:
    with receiver() as (one, target):
        hook = driver(target)
        assert hook.find(target) is None
        with program(KEEP) as first, program(DROP) as second:
            attached = hook.attach(first.program, target)
            assert attached.program_id == first.id
            assert arrived(one) == TIMES == first.runs
            attached.swap(second.program, first.program)
            assert arrived(one) == 0
            assert (first.runs, second.runs) == (TIMES, TIMES)
            with pytest.raises(HostError, match=f"has program {second.id}, not {first.id}"):
                attached.swap(second.program, first.program)

            found = hook.find(target)
            assert found is not None
            assert {found.program_id} == {None}, "the kernel does not tell"
            found.swap(first.program, second.program)
            assert arrived(one) == TIMES
            found.detach()
            assert {found.program_id, attached.program_id} == {0}
            assert hook.find(target) is None
            with pytest.raises(HostError, match="has no filter any more"):
                found.swap(second.program, first.program)
            found.detach()
            assert arrived(one) == TIMES
            assert first.runs == 2 * TIMES
        assert gone(first)
        assert gone(second)


def test_the_target_is_told_by_the_sockets_own_number() -> None:
    with receiver() as (one, target), receiver() as (_, other):
        same = socket_target(hook_named("socket"), one.fileno())
        assert (target.place, target.key) == (same.place, same.key)
        assert target.key.isdecimal()
        assert target.key != other.key
        assert target.in_netns


def classic(one: socket.socket) -> None:
    """A classic filter of 9 instructions that keeps everything."""
    code = struct.pack("=HBBI", 0x06, 0, 0, KEEP) * 9
    buffer = ctypes.create_string_buffer(code)
    prog = struct.pack("@HP", 9, ctypes.addressof(buffer))
    one.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, prog)


def test_a_filter_that_is_there_is_reported_and_displaced_only_by_force() -> None:
    with receiver() as (one, target), program(KEEP) as first, program(DROP) as second:
        hook = driver(target)
        classic(one)
        assert filter_kind(one.fileno()) == "classic"
        (seen,) = hook.foreign(target, [first.id])
        assert (seen.what, seen.program_id, seen.exclusive) == ("a classic filter", None, True)
        with pytest.raises(HostError, match="it is taken: a classic filter"):
            hook.attach(first.program, target)
        assert filter_kind(one.fileno()) == "classic"
        hook.attach(first.program, target, force=True)
        assert arrived(one) == TIMES == first.runs

        assert "does not tell which" in hook.foreign(target, ())[0].what
        assert hook.foreign(target, [first.id]) == ()
        with pytest.raises(HostError, match="it is taken: a BPF filter"):
            hook.attach(second.program, target)


def test_a_locked_filter() -> None:
    with receiver() as (one, target), program(KEEP) as first:
        one.setsockopt(socket.SOL_SOCKET, SO_LOCK_FILTER, 1)
        with pytest.raises(HostError, match="SO_LOCK_FILTER"):
            driver(target).attach(first.program, target)


def test_what_is_no_socket() -> None:
    with open("/dev/null") as null, pytest.raises(UsageError, match="is not a socket"):
        socket_target(hook_named("socket"), null.fileno())
    with pytest.raises(UsageError, match="is not a socket"):
        filter_kind(4000)
    with pytest.raises(UsageError, match="is not attached to a socket"):
        socket_target(hook_named("xdp"), 0)


def test_nothing_to_pin() -> None:
    with receiver() as (_, target), program(KEEP) as first:
        attached = driver(target).attach(first.program, target)
        assert isinstance(attached, SocketAttachment)
        assert (attached.pinnable, attached.lasts, driver(target).holds_array) == (
            False, True, False,
        )  # fmt: skip
        attached.pin("/sys/fs/bpf/nothing")
        attached.unpin("/sys/fs/bpf/nothing")
        attached.close()
        assert attached.program_id == first.id
        attached.detach()

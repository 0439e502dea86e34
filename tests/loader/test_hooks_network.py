"""The drivers of a whole network namespace: sk_lookup and netfilter."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from bpfchain.loader.hooks import SwapNotPossibleError, driver, named_target
from bpfchain.loader.links import link_create
from bpfchain.loader.uapi import AttachType, ProgType
from bpfchain.transform.errors import HostError, UsageError
from bpfchain.transform.policy import hook_named
from support.counting import Counting, gone
from support.nets import in_netns, tool

pytestmark = pytest.mark.usefixtures("kernel")

TIMES = 5
PASS, DROP, ACCEPT = 1, 0, 1


def datagrams() -> None:
    """TIMES packets on the loopback, and as many lookups: someone takes them, so that no ICMP
    answers make more."""
    tool("ip", "link", "set", "lo", "up")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taker,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out,
    ):
        taker.bind(("127.0.0.1", 0))
        for _ in range(TIMES):
            out.sendto(b"data", taker.getsockname())


def test_socket_lookup(bpffs: Path) -> None:
    def work() -> None:
        target = named_target(hook_named("sk_lookup"), "")
        assert (target.place, target.key, target.in_netns) == ("sk_lookup", "all", True)
        hook = driver(target)
        kind = AttachType.SK_LOOKUP
        with (
            Counting(ProgType.SK_LOOKUP, PASS, kind) as first,
            Counting(ProgType.SK_LOOKUP, PASS, kind) as second,
            Counting(ProgType.SK_LOOKUP, PASS, kind, name="theirs") as theirs,
        ):
            attached = hook.attach(first.program, target)
            datagrams()
            assert first.reaches(TIMES)
            attached.swap(second.program, first.program)
            datagrams()
            assert second.reaches(TIMES)
            assert first.runs == TIMES
            with pytest.raises(HostError, match=f"program {second.id} is there"):
                attached.swap(second.program, first.program)
            fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            held = link_create(theirs.program, fd, kind)
            os.close(fd)
            (seen,) = hook.foreign(target, [second.id])
            assert (seen.program_id, seen.name) == (theirs.id, "theirs")
            attached.pin(bpffs / "link")
            attached.close()
            found = hook.find(target, pin=bpffs / "link")
            assert found is not None
            assert found.program_id == second.id
            in_netns(lambda: _not_here(bpffs / "link"))
            found.detach()
            assert hook.find(target, pin=bpffs / "link") is None
            found.unpin(bpffs / "link")
            datagrams()
            assert theirs.reaches(TIMES)
            assert second.runs == TIMES
            held.close()
        assert gone(first)
        assert gone(second)

    in_netns(work)


def _not_here(pin: Path) -> None:
    target = named_target(hook_named("sk_lookup"), "")
    assert driver(target).find(target, pin=pin) is None, "it is of another namespace"


def test_netfilter(bpffs: Path) -> None:
    def work() -> None:
        target = named_target(hook_named("netfilter"), "ip/output", priority=-50)
        hook = driver(target)
        kind = AttachType.NETFILTER
        with (
            Counting(ProgType.NETFILTER, ACCEPT, kind) as first,
            Counting(ProgType.NETFILTER, DROP, kind) as second,
        ):
            attached = hook.attach(first.program, target)
            assert attached.program_id == first.id
            datagrams()
            assert first.runs >= TIMES
            with pytest.raises(SwapNotPossibleError):
                attached.swap(second.program, first.program)
            with pytest.raises(HostError, match="another BPF program has priority -50"):
                hook.attach(second.program, target)
            attached.pin(bpffs / "link")
            attached.close()
            found = hook.find(target, pin=bpffs / "link")
            assert found is not None
            found.detach()
            runs = first.runs
            datagrams()
            assert first.runs == runs
            (bpffs / "link").unlink()
            for name in ("", "ip", "ip/in", "ipx/input"):
                wrong = named_target(hook_named("netfilter"), name)
                with pytest.raises(UsageError, match="is no netfilter hook"):
                    driver(wrong).attach(second.program, wrong)
        assert gone(first)

    in_netns(work)

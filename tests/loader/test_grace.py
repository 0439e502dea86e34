"""The grace period: what ran when the wait began has ended when it returns."""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from collections.abc import Callable

import pytest

from bpfchain.loader import grace
from bpfchain.loader.libbpf import ObjectFile
from bpfchain.loader.maps import Map
from bpfchain.loader.programs import Program
from bpfchain.loader.syscall import BpfError
from bpfchain.transform.errors import HostError
from support.bpfcode import PACKET, bpf_descriptors, compile_bpf

pytestmark = pytest.mark.usefixtures("kernel")

SLOW = """
enum { BEGAN, ENDED, STOP };
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 3);
         __type(key, __u32); __type(value, __u64); } marks SEC(".maps");
static __always_inline __u64 add(__u32 which, __u64 value)
{
    __u64 *at = bpf_map_lookup_elem(&marks, &which);
    return at ? __sync_fetch_and_add(at, value) : 0;
}
static long spin(__u32 i, void *ctx) { return add(STOP, 0) != 0; }
static long spins(__u32 i, void *ctx)
{
    bpf_loop(1 << 22, spin, 0, 0);
    return add(STOP, 0) != 0;
}
SEC("xdp") int slow(struct xdp_md *ctx)
{
    add(BEGAN, 1);
    bpf_loop(64, spins, 0, 0);
    add(ENDED, 1);
    return XDP_PASS;
}
"""
BEGAN, ENDED, STOP = (struct.pack("=I", i) for i in range(3))
STOP_AFTER = 0.2


def marks(of: Map) -> tuple[int, int]:
    """Runs begun, runs ended."""
    began, ended = (struct.unpack("=Q", of.lookup(key) or b"")[0] for key in (BEGAN, ENDED))
    return began, ended


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compile_bpf(tmp_path_factory.mktemp("slow"), SLOW)


def during_a_run(slow: bytes, work: Callable[[], None]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Begin a run, which will be told to end STOP_AFTER seconds later; do ``work``, then look.

    The answer: runs begun and ended, before ``work`` and after it. Without a ``work`` that waits
    nobody tells the run to end before the second look.
    """
    with ObjectFile.open(slow, name="slow") as file:
        file.load()
        program: Program = file.programs["slow"].program()
        here: Map = file.maps["marks"].map()
    with program, here:
        run = threading.Thread(target=program.test_run, args=(PACKET,))
        stop = threading.Timer(STOP_AFTER, here.update, (STOP, struct.pack("=Q", 1)))
        run.start()
        try:
            end = time.monotonic() + 10
            while marks(here)[0] == 0 and time.monotonic() < end:
                os.sched_yield()
            before = marks(here)
            if work is not nothing:
                stop.start()
            work()
            after = marks(here)
        finally:
            here.update(STOP, struct.pack("=Q", 1))
            run.join()
            stop.cancel()
            if stop.ident is not None:
                stop.join()
    return before, after


def nothing() -> None:
    """In the place of a wait."""


@pytest.mark.parametrize("way", [grace.wait, grace.membarrier])
def test_it_waits_for_a_run_to_end(slow: bytes, way: Callable[[], None]) -> None:
    open_before = bpf_descriptors()
    assert during_a_run(slow, way) == ((1, 0), (1, 1))
    assert bpf_descriptors() == open_before


def test_without_it_the_run_goes_on(slow: bytes) -> None:
    """What the test above would see if nothing waited."""
    assert during_a_run(slow, nothing) == ((1, 0), (1, 0))


def test_membarrier_is_the_second_way(slow: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise BpfError(errno.EPERM, "BPF_MAP_CREATE")

    monkeypatch.setattr(grace, "_by_map", refused)
    assert during_a_run(slow, grace.wait) == ((1, 0), (1, 1))


@pytest.mark.parametrize(
    ("number", "hint"), [(errno.EPERM, "all capabilities are there"), (errno.ENOMEM, "nohz_full")]
)
def test_neither_way(monkeypatch: pytest.MonkeyPatch, number: int, hint: str) -> None:
    """As on a host with nohz_full CPUs, where membarrier(2) is refused."""

    def refused() -> None:
        raise BpfError(number, "BPF_MAP_CREATE")

    monkeypatch.setattr(grace, "_by_map", refused)
    monkeypatch.setattr(grace, "membarrier", lambda: False)
    with pytest.raises(HostError, match="cannot wait for the end of running programs") as no:
        grace.wait()
    assert hint in (no.value.hint or "")


def test_membarrier_says_so_where_it_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sysconf", lambda _: 1)
    assert not grace.membarrier()
    monkeypatch.undo()
    assert os.sysconf("SC_NPROCESSORS_ONLN") == 1 or grace.membarrier()
    monkeypatch.setattr(grace, "_MEMBARRIER_CMD_GLOBAL", 1 << 30)
    assert not grace.membarrier()


def test_every_map_is_given_back() -> None:
    before = bpf_descriptors()
    for _ in range(3):
        grace.wait()
    assert bpf_descriptors() == before

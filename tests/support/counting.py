"""Programs that count their runs in a map: how tests know that a hook really calls them."""

from __future__ import annotations

import os
import struct
import time
from types import TracebackType
from typing import Self

from bpfchain.loader.maps import Map
from bpfchain.loader.programs import Program, load_raw
from bpfchain.loader.query import program_info
from bpfchain.loader.uapi import MapType, ProgType

SECONDS = 10.0
"""How long an event may take to reach a program on a busy machine."""


def _insn(text: str, immediate: int = 0) -> bytes:
    return bytes.fromhex(text) + struct.pack("=i", immediate)


def counting_code(counter: Map, value: int, *, pid: int | None = None) -> bytes:
    """Add one to the counter (of runs by process ``pid`` only, if given), return ``value``."""
    count = (
        _insn("620afcff", 0)  # *(u32 *)(r10 - 4) = 0
        + _insn("bfa20000") + _insn("07020000", -4)  # r2 = r10 - 4
        + _insn("18110000", counter.fileno()) + bytes(8)  # r1 = map
        + _insn("85000000", 1)  # call map_lookup_elem
        + _insn("15000200", 0)  # if r0 == 0 goto +2
        + _insn("b7010000", 1)
        + _insn("db100000", 0)  # lock *(u64 *)(r0 + 0) += r1
    )  # fmt: skip
    if pid is not None:
        ours = (
            _insn("85000000", 14)  # call get_current_pid_tgid
            + _insn("77000000", 32)  # r0 >>= 32
        )
        skip = len(count) // 8
        count = ours + bytes.fromhex("5500") + struct.pack("=hi", skip, pid) + count
    return count + _insn("b7000000", value) + _insn("95000000")


class Counting:
    """One loaded program with its counter."""

    def __init__(
        self, type: ProgType, value: int, attach_type: int = 0, *, pid: int | None = None,
        name: str = "counting",
    ) -> None:  # fmt: skip
        self.counter = Map.create(MapType.ARRAY, 4, 8, 1, name="runs")
        try:
            code = counting_code(self.counter, value, pid=pid)
            self.program: Program = load_raw(
                type, code, expected_attach_type=attach_type, name=name
            )
        except BaseException:
            self.counter.close()
            raise
        self.id = self.program.info().id

    @property
    def runs(self) -> int:
        return struct.unpack("=Q", self.counter.lookup(bytes(4)) or b"")[0]  # type: ignore[no-any-return]

    def reaches(self, count: int) -> bool:
        """Whether exactly ``count`` runs are counted, now or soon (events arrive on other CPUs)."""
        end = time.monotonic() + SECONDS
        while self.runs < count and time.monotonic() < end:
            os.sched_yield()
        return self.runs == count

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.program.close()
        self.counter.close()


def gone(one: Counting) -> bool:
    """Whether the kernel has freed the program, now or soon (links do so after a grace period)."""
    end = time.monotonic() + SECONDS
    while (there := program_info(one.id) is not None) and time.monotonic() < end:
        os.sched_yield()
    return not there

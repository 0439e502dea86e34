"""Links that write into a packet that they ran, and a pair of interfaces that shows what arrived.

Each link appends one byte, its version and its index, to a list in the frame: what arrives says
which links ran, of which chain, in which order.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.bpfcode import compile_bpf

ETHER_TYPE = 0x88B5  # for experiments (IEEE 802)
_HEADER = bytes.fromhex("ffffffffffff 020000000001 88b5")
_SEQUENCE = struct.Struct("!BQ")
_COUNT_AT, _SIZE = 30, 64
_FORCE_BUFFER, _BUFFER = 33, 8 << 20  # SO_RCVBUFFORCE
_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1

Stamps = tuple[str, ...]
"""``("A0", "A1")``: link 0 and link 1 of version A ran."""

_SOURCE = """
struct {{
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
}} runs SEC(".maps");

SEC("{section}")
int stamp{index}({context} *ctx)
{{
	unsigned char *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 key = 0;
	__u64 *count = bpf_map_lookup_elem(&runs, &key);

	if (count)
		__sync_fetch_and_add(count, 1);
	if (data + {size} > end || data[12] != 0x88 || data[13] != 0xb5)
		return {go_on};
	__u32 n = data[{at}];
	if (n > 16)
		return {go_on};
	unsigned char *place = data + {at} + 1 + n;
	if (place + 1 > end)
		return {go_on};
	*place = {value};
	data[{at}] = n + 1;
	return {go_on};
}}
"""


def stamping(folder: Path, section: str, go_on: int, version: str, index: int) -> bytes:
    """An object with the program ``stampN``, which returns ``go_on``."""
    context = "struct xdp_md" if section == "xdp" else "struct __sk_buff"
    return compile_bpf(
        folder,
        _SOURCE.format(
            section=section, context=context, index=index, go_on=go_on, at=_COUNT_AT, size=_SIZE,
            value=(ord(version) - ord("A")) << 4 | index,
        ),
    )  # fmt: skip


def _frame(sender: int, number: int) -> bytes:
    return (_HEADER + _SEQUENCE.pack(sender, number)).ljust(_SIZE, b"\0")


def _read(frame: bytes) -> tuple[int, int, Stamps]:
    sender, number = _SEQUENCE.unpack_from(frame, len(_HEADER))
    values = frame[_COUNT_AT + 1 :][: frame[_COUNT_AT]]
    stamps = tuple(f"{chr(ord('A') + (value >> 4))}{value & 15}" for value in values)
    return sender, number, stamps


LOST: Stamps = ("lost",)
"""In the place of a frame's stamps: it did not arrive."""


class Wire:
    """Frames go in at ``left``, run the hook of ``right``, and are read behind it."""

    def __init__(self, left: str = "left", right: str = "right") -> None:
        self._out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._out.bind((left, 0))
        # only a socket for one EtherType gets its frames behind the ingress hooks
        self._in = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHER_TYPE))
        self._in.setsockopt(socket.SOL_SOCKET, _FORCE_BUFFER, _BUFFER)
        self._in.bind((right, ETHER_TYPE))
        self._number = 0
        self._background: list[tuple[int, Stamps]] = []

    def send(self, count: int) -> set[Stamps]:
        """What became of so many frames sent now; LOST is among them if one did not arrive."""
        wanted = set(range(self._number, self._number + count))
        self._number += count
        for number in wanted:
            self._out.send(_frame(0, number))
        found: set[Stamps] = set()
        end = time.monotonic() + _SECONDS
        while wanted and (left := end - time.monotonic()) > 0:
            self._in.settimeout(left)
            try:
                arrived, stamps = self._take()
            except TimeoutError:
                break
            if arrived in wanted:
                wanted.remove(arrived)
                found.add(stamps)
        return found | ({LOST} if wanted else set())

    def background(self) -> list[tuple[int, Stamps]]:
        """What the other sender's frames brought since the last call: number and stamps."""
        self._in.settimeout(0)
        while True:
            try:
                self._take()
            except BlockingIOError:
                break
        found, self._background = self._background, []
        return found

    def _take(self) -> tuple[int | None, Stamps]:
        sender, number, stamps = _read(self._in.recv(2048))
        if sender:
            self._background.append((number, stamps))
            return None, stamps
        return number, stamps

    @contextmanager
    def traffic(self, pause: float = 0.001) -> Iterator[None]:
        """A process sends a frame about every ``pause`` seconds meanwhile."""
        child = os.fork()
        if child == 0:
            try:
                _die_with_parent()
                number = 0
                while True:
                    self._out.send(_frame(1, number))
                    number += 1
                    time.sleep(pause)
            finally:
                os._exit(1)
        try:
            yield
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)

    def close(self) -> None:
        self._out.close()
        self._in.close()


def _die_with_parent() -> None:
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

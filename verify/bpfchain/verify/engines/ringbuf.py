"""Reading what programs wrote into a kernel ring buffer (BPF_MAP_TYPE_RINGBUF), through its pages.

Source: kernel/bpf/ringbuf.c (``bpf_ringbuf_mmap_kern``, ``struct bpf_ringbuf_hdr``).
"""

from __future__ import annotations

import mmap
import struct

from bpfchain.loader.maps import Map

__all__ = ["RingReader"]

_BUSY, _DISCARDED = 1 << 31, 1 << 30
_HEADER = 8


class RingReader:
    """The consumer's side of one ring buffer: the page of its position, then the producer's page
    and the data, which are mapped twice in a row so that no record is split."""

    def __init__(self, ring: Map) -> None:
        page = mmap.PAGESIZE
        self._size = ring.max_entries
        self._consumer = mmap.mmap(ring.fileno(), page)
        self._data = mmap.mmap(
            ring.fileno(), page + 2 * self._size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page
        )

    def take(self) -> list[bytes]:
        """The records since the last call, in order; discarded ones are left out."""
        (consumer,) = struct.unpack_from("=Q", self._consumer, 0)
        (producer,) = struct.unpack_from("=Q", self._data, 0)
        found = []
        while consumer < producer:
            at = mmap.PAGESIZE + (consumer & (self._size - 1))
            (length,) = struct.unpack_from("=I", self._data, at)
            if length & _BUSY:
                break
            size = length & ~_DISCARDED
            if not length & _DISCARDED:
                found.append(self._data[at + _HEADER : at + _HEADER + size])
            consumer += (_HEADER + size + 7) & ~7
        struct.pack_into("=Q", self._consumer, 0, consumer)
        return found

    def close(self) -> None:
        """Unmap; the buffer stays as it is."""
        self._consumer.close()
        self._data.close()

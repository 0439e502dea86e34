"""Marker programs in the kernel: they stand in slots, end the run, and leave their tag in a map."""

from __future__ import annotations

import mmap
import struct

from bpfchain.loader.maps import Map
from bpfchain.loader.programs import Program, load_raw
from bpfchain.loader.uapi import BPF_F_XDP_HAS_FRAGS, MapType, ProgType
from bpfchain.transform.policy import Hook

from .protocol import NO_MARKER

__all__ = ["Markers"]

_F_MMAPABLE = 1 << 10
_CODE = 0x4D00_0000
"""What a marker returns where the hook allows any code (``M``…); its tag is added."""


class Markers:
    """Programs by tag, of the hook's type; the tag of the one that ran is read without a call.

    Every value that the type may return is legal for what a packet's own program returns too, so a
    map tells, not the verdict.
    """

    def __init__(self, hook: Hook, flags: int = 0) -> None:
        self._hook, self._flags = hook, flags & BPF_F_XDP_HAS_FRAGS
        self._programs: dict[int, Program] = {}
        self._map = Map.create(MapType.ARRAY, 4, 8, 1, _F_MMAPABLE, name="marks")
        self._seen = mmap.mmap(self._map.fileno(), mmap.PAGESIZE)

    def program(self, tag: int) -> Program:
        """Marker ``tag`` (0 to 2^16)."""
        if tag not in self._programs:
            value = _CODE + tag if self._hook.returns is None else self._hook.returns[1]
            code = (
                bytes.fromhex("18210000") + struct.pack("=i", self._map.fileno()) + bytes(8)
                + bytes.fromhex("62010000") + struct.pack("=i", tag + 1)  # *(u32 *)r1 = tag + 1
                + bytes.fromhex("b7000000") + struct.pack("=i", value)
                + bytes.fromhex("9500000000000000")
            )  # fmt: skip
            self._programs[tag] = load_raw(
                ProgType(self._hook.prog_type_id), code, flags=self._flags,
                expected_attach_type=self._hook.attach_type_id, name="marker",
            )  # fmt: skip
        return self._programs[tag]

    def clear(self) -> None:
        """Before a run."""
        self._seen[:4] = bytes(4)

    def seen(self) -> int:
        """The tag of the marker that ran since, or NO_MARKER."""
        number: int = struct.unpack_from("=I", self._seen, 0)[0]
        return number - 1 if number else NO_MARKER

    def close(self) -> None:
        """Close map and programs."""
        self._seen.close()
        self._map.close()
        for program in self._programs.values():
            program.close()

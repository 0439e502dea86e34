"""BPF maps by file descriptor: create, read, write, iterate, pin.

Keys and values are ``bytes`` in the host's byte order. Their lengths are checked here, because the
kernel reads and writes as many bytes as the map's definition says, whatever the buffer holds.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from bpfchain.loader.syscall import (
    BpfError,
    Fd,
    bpf,
    copy_in,
    duplicate,
    fd_by_id,
    object_info,
    object_name,
)
from bpfchain.loader.uapi import (
    BPF_ANY,
    FD_VALUE_MAPS,
    MAP_CREATE,
    MAP_ELEM,
    MAP_INFO,
    PER_CPU_MAPS,
    Cmd,
    MapType,
)

POSSIBLE_CPUS = "/sys/devices/system/cpu/possible"


@functools.cache
def possible_cpus() -> int:
    """How many values a per-CPU map holds: one for each CPU that could ever be plugged in.

    Source: the kernel's ``num_possible_cpus()``, by way of sysfs as libbpf does it.
    """
    with open(POSSIBLE_CPUS, encoding="ascii") as file:
        return _count_cpus(file.read())


def _count_cpus(ranges: str) -> int:
    cpus: set[int] = set()
    for part in ranges.strip().split(","):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return len(cpus)


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel says of a map (``struct bpf_map_info``); ``type`` unknown to us: an int."""

    id: int
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str
    ifindex: int
    btf_id: int


class Map(Fd):
    """A map. Made by :meth:`create`, :meth:`get_pinned`, :meth:`from_id` or from a descriptor."""

    kind = "bpf-map"

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        try:
            definition = self.info()
        except BaseException:
            self.close()
            raise
        self.id = definition.id
        self.type = definition.type
        self.key_size = definition.key_size
        self.value_size = definition.value_size
        self.max_entries = definition.max_entries
        self.flags = definition.flags
        self.name = definition.name
        self.per_cpu = self.type in PER_CPU_MAPS
        self._stride = -(-self.value_size // 8) * 8
        self._value_bytes = self._stride * possible_cpus() if self.per_cpu else self.value_size
        if self.type in FD_VALUE_MAPS:
            self._value_bytes = 4

    @classmethod
    def create(
        cls,
        type: MapType,
        key_size: int,
        value_size: int,
        max_entries: int,
        flags: int = 0,
        name: str = "",
    ) -> Self:
        """A new map without type information (sizes in bytes). Raises BpfError, ValueError."""
        attr = MAP_CREATE.pack(
            map_type=type,
            key_size=key_size,
            value_size=value_size,
            max_entries=max_entries,
            map_flags=flags,
            map_name=object_name(name),
        )
        return cls(bpf(Cmd.MAP_CREATE, attr, name))

    @classmethod
    def from_id(cls, number: int) -> Self:
        """The map with this id (needs CAP_SYS_ADMIN)."""
        return cls(fd_by_id(Cmd.MAP_GET_FD_BY_ID, number))

    @classmethod
    def from_fd(cls, fd: int) -> Self:
        """A map of its own for a descriptor that someone else keeps (it is duplicated)."""
        return cls(duplicate(fd))

    def info(self) -> MapInfo:
        """Asks the kernel anew."""
        data = bytearray(MAP_INFO.size)
        object_info(self.fileno(), data, "of a map")
        v = MAP_INFO.unpack(data)
        return MapInfo(
            id=v["id"],
            type=_known(v["type"]),
            key_size=v["key_size"],
            value_size=v["value_size"],
            max_entries=v["max_entries"],
            flags=v["map_flags"],
            name=MAP_INFO.text(data, "name"),
            ifindex=v["ifindex"],
            btf_id=v["btf_id"],
        )

    def lookup(self, key: bytes) -> bytes | None:
        """The value, None if there is none. A map of programs or maps answers with an id (u32)."""
        self._refuse_per_cpu("lookup_percpu")
        return self._read(Cmd.MAP_LOOKUP_ELEM, key)

    def lookup_percpu(self, key: bytes) -> list[bytes] | None:
        """One value per possible CPU, None if there is none."""
        if not self.per_cpu:
            raise TypeError(f"{self!r} is not a per-CPU map: use lookup")
        data = self._read(Cmd.MAP_LOOKUP_ELEM, key)
        if data is None:
            return None
        starts = range(0, len(data), self._stride)
        return [data[start : start + self.value_size] for start in starts]

    def pop(self, key: bytes = b"") -> bytes | None:
        """Read and delete at once (queues and stacks have no key); None if there is nothing."""
        self._refuse_per_cpu("lookup_percpu and delete")
        return self._read(Cmd.MAP_LOOKUP_AND_DELETE_ELEM, key)

    def update(self, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
        """Write. ENOENT with BPF_EXIST, EEXIST with BPF_NOEXIST, EPERM once frozen."""
        self._refuse_per_cpu("update_percpu")
        self._write(key, value, flags)

    def update_percpu(self, key: bytes, values: Sequence[bytes], flags: int = BPF_ANY) -> None:
        """Write one value for each possible CPU, in order."""
        if not self.per_cpu:
            raise TypeError(f"{self!r} is not a per-CPU map: use update")
        if len(values) != possible_cpus() or any(len(v) != self.value_size for v in values):
            raise ValueError(f"{self!r} takes {possible_cpus()} values of {self.value_size} bytes")
        self._write(key, b"".join(v.ljust(self._stride, b"\0") for v in values), flags)

    def set_fd(self, index: int, fd: int, flags: int = BPF_ANY) -> None:
        """Put a program (or map, or event) into slot ``index`` of an array of such.

        EINVAL: for a PROG_ARRAY, another type, attach type or frags setting than the array's first
        user has; the kernel says no more than that.
        """
        self.update(struct.pack("=I", index), struct.pack("=i", fd), flags)

    def slot(self, index: int) -> int | None:
        """The id of what is in slot ``index`` of an array of programs or maps, None if empty."""
        value = self.lookup(struct.pack("=I", index))
        return None if value is None else int(struct.unpack("=I", value)[0])

    def delete(self, key: bytes) -> None:
        """Delete; BpfError with ENOENT if there is no such key, EINVAL for an array."""
        address, keep = self._key(key)
        attr = MAP_ELEM.pack(map_fd=self.fileno(), key=address)
        bpf(Cmd.MAP_DELETE_ELEM, attr, self._what())
        del keep

    def keys(self) -> Iterator[bytes]:
        """All keys (for an array all indexes, empty slots too).

        The kernel starts again from the front if the key that it goes on from was deleted
        meanwhile, so a map that others change may give a key twice.
        """
        out = ctypes.create_string_buffer(self.key_size)
        current: bytes | None = None
        while True:
            address, keep = (0, None) if current is None else copy_in(current)
            attr = MAP_ELEM.pack(map_fd=self.fileno(), key=address, value=ctypes.addressof(out))
            try:
                bpf(Cmd.MAP_GET_NEXT_KEY, attr, self._what())
            except BpfError as error:
                if error.errno == errno.ENOENT:
                    return
                raise
            del keep
            current = out.raw
            yield current

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All keys that have a value, with it (not for per-CPU maps)."""
        for key in self.keys():
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def freeze(self) -> None:
        """No more writes through the system call, for good (BPF_MAP_FREEZE)."""
        bpf(Cmd.MAP_FREEZE, MAP_ELEM.pack(map_fd=self.fileno()), self._what())

    def __repr__(self) -> str:
        name = getattr(self, "name", "?")
        return f"<Map {name!r} fd={'closed' if self.closed else self.fileno()}>"

    def _what(self) -> str:
        return f"on map {self.name or self.id}"

    def _refuse_per_cpu(self, instead: str) -> None:
        if self.per_cpu:
            raise TypeError(f"{self!r} is a per-CPU map: use {instead}")

    def _key(self, key: bytes) -> tuple[int, object]:
        if len(key) != self.key_size:
            raise ValueError(f"{self!r} has keys of {self.key_size} bytes, not {len(key)}")
        return copy_in(key)

    def _read(self, cmd: Cmd, key: bytes) -> bytes | None:
        address, keep = self._key(key)
        out = ctypes.create_string_buffer(self._value_bytes)
        attr = MAP_ELEM.pack(map_fd=self.fileno(), key=address, value=ctypes.addressof(out))
        try:
            bpf(cmd, attr, self._what())
        except BpfError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        del keep
        return out.raw

    def _write(self, key: bytes, value: bytes, flags: int) -> None:
        if len(value) != self._value_bytes:
            raise ValueError(f"{self!r} has values of {self._value_bytes} bytes, not {len(value)}")
        key_address, keep_key = self._key(key)
        value_address, keep_value = copy_in(value)
        attr = MAP_ELEM.pack(
            map_fd=self.fileno(), key=key_address, value=value_address, flags=flags
        )
        bpf(Cmd.MAP_UPDATE_ELEM, attr, self._what())
        del keep_key, keep_value


def _known(number: int) -> int:
    return MapType(number) if number in MapType._value2member_map_ else number

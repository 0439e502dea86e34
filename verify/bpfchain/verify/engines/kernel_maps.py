"""Contents of kernel maps for comparison: read whole, seeded, or said not to be comparable."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from bpfchain.loader.maps import Map, possible_cpus
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import PER_CPU_MAPS, MapType
from bpfchain.transform.errors import UsageError
from bpfchain.verify.scenario import Scenario

from .protocol import MapItems

__all__ = ["items_of", "note_of", "seed", "update"]

_READ = frozenset(
    {
        MapType.HASH, MapType.ARRAY, MapType.LRU_HASH, MapType.LPM_TRIE, MapType.PERCPU_HASH,
        MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH,
    }
)  # fmt: skip
_PROGRAMS_CANNOT_WRITE = frozenset(
    {
        MapType.PROG_ARRAY, MapType.PERF_EVENT_ARRAY, MapType.CGROUP_ARRAY, MapType.ARRAY_OF_MAPS,
        MapType.HASH_OF_MAPS, MapType.DEVMAP, MapType.DEVMAP_HASH, MapType.CPUMAP, MapType.XSKMAP,
        MapType.RINGBUF,
    }
)  # fmt: skip
"""Nothing to compare: only the system call writes them (a ring buffer's records are events)."""
_ENTRIES_MAX = 1 << 16
"""An array is read entry by entry, two calls each."""


def note_of(map: Map) -> str:
    """Why its contents are not compared; "" where they are, or no program can change them."""
    if map.type in _PROGRAMS_CANNOT_WRITE:
        return ""
    if map.type not in _READ:
        kind = map.type.name if isinstance(map.type, MapType) else str(map.type)
        return f"the kernel engine reads no {kind} maps"
    if map.type in (MapType.ARRAY, MapType.PERCPU_ARRAY) and map.max_entries > _ENTRIES_MAX:
        return f"{map.max_entries} entries: more than the kernel engine reads"
    return ""


def items_of(map: Map) -> MapItems:
    """Sorted by key; zero entries of arrays are left out. Per-CPU values one after the other."""
    if map.type not in _READ or note_of(map):
        return []
    array = map.type in (MapType.ARRAY, MapType.PERCPU_ARRAY)
    found = []
    # a generator would go on from a key that may be gone: nothing else writes while this reads
    for key in list(map.keys()):
        if map.type in PER_CPU_MAPS:
            values = map.lookup_percpu(key)
            value = None if values is None else b"".join(values)
        else:
            value = map.lookup(key)
        if value is not None and not (array and not any(value)):
            found.append((key, value))
    return sorted(found)


def update(map: Map, key: bytes, value: bytes) -> None:
    """Write ``value``, for a per-CPU map on every CPU."""
    if map.type in PER_CPU_MAPS:
        map.update_percpu(key, [value] * possible_cpus())
    else:
        map.update(key, value)


def seed(maps: Mapping[str, Map], scenario: Scenario) -> None:
    """Write the scenario's entries of these maps. Raises UsageError for one that does not fit."""
    if not scenario.maps:
        return
    sizes = {name: (found.key_size, found.value_size) for name, found in maps.items()}
    for name, key, value in scenario.seeds(sizes, sys.byteorder):
        try:
            update(maps[name], key, value)
        except (BpfError, ValueError) as error:
            raise UsageError(f"scenario: map {name}: {error}") from None

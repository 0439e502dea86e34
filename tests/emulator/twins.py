"""The same program on the same packets in this machine's kernel and in the emulator.

``Twins`` compiles C, loads it in both, and compares verdict, packet, and the contents of all maps
after every packet. A program notes what it saw by ``OUT(i, value)``, in a map that is compared too.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bpfchain.emulator import _ubpf
from bpfchain.emulator.link import MapSpec, link_object
from bpfchain.loader.libbpf import ObjectFile
from bpfchain.loader.maps import Map, possible_cpus
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import ProgType
from support.bpfcode import compile_bpf

HEAD = """
#include <bpf/bpf_endian.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 64); __type(key, __u32);
         __type(value, __u64); } out SEC(".maps");
static __always_inline void OUT(__u32 i, __u64 v) { bpf_map_update_elem(&out, &i, &v, 0); }
#define MAP(name, kind, n, k, v, ...) struct { __uint(type, BPF_MAP_TYPE_##kind); \\
    __uint(max_entries, n); __type(key, k); __type(value, v); __VA_ARGS__; } name SEC(".maps")
"""
"""What all sources begin with, after what ``compile_bpf`` puts there."""

SECTIONS = {
    "xdp": ("xdp", ProgType.XDP),
    "tc": ("skb", ProgType.SCHED_CLS),
    "cgroup_skb/ingress": ("skb-l3", ProgType.CGROUP_SKB),
}
PER_CPU = {5, 6, 10}
COMPARED = {1, 2, 5, 6, 9, 10, 11}


@dataclass(frozen=True)
class Result:
    """What one side gave for a packet."""

    verdict: int
    packet: bytes
    maps: Mapping[str, dict[bytes, object]]

    def out(self, index: int) -> int:
        """What the program noted, as the signed number that it is."""
        value = self.maps["out"].get(struct.pack("=I", index), bytes(8))
        assert isinstance(value, bytes)
        return int(struct.unpack("=q", value)[0])


class Emulated:
    """An object in a world of its own; the program is called ``prog``."""

    def __init__(self, data: bytes, cpus: int = 1, program: str = "prog") -> None:
        self.linked = link_object(data)
        self.world = _ubpf.World(cpus=cpus)
        self.numbers: dict[str, int] = {}
        for spec in self.linked.maps:
            inner = None if spec.inner is None else self._add(spec.inner, None)
            number = self.numbers[spec.name] = self._add(spec, inner)
            if spec.contents is not None:
                self.world.map_update(number, bytes(4), spec.contents)
        image = self.linked.programs[program]
        self.context = SECTIONS[image.section][0]
        maps = [self.numbers[self.linked.maps[index].name] for index in image.maps]
        self.program = self.world.add_program(
            program, self.context, image.code, maps, image.functions
        )

    def _add(self, spec: MapSpec, inner: int | None) -> int:
        return self.world.add_map(
            spec.name, spec.type, spec.key_size, spec.value_size, spec.max_entries, spec.flags,
            inner, spec.readonly,
        )  # fmt: skip

    def batch(self, packets: Iterable[bytes], context: bytes = b"") -> _ubpf.Batch:
        """Run all packets, whatever comes of them."""
        return self.world.run_batch(self.program, _ubpf.Packets(list(packets), context))

    def run(self, packet: bytes, context: bytes = b"") -> Result:
        """Run one packet, which must give a verdict."""
        batch = self.batch([packet], context)
        assert not batch.faults, [
            (f.kind, f.what, hex(f.address), f.size, f.pc) for f in batch.faults
        ]
        data = batch.packet(0)
        if self.context == "xdp":
            data = batch.metadata(0) + data
        (verdict,) = struct.unpack("<Q", batch.verdicts)
        return Result(verdict & 0xFFFFFFFF, data, self.maps())

    def maps(self) -> dict[str, dict[bytes, object]]:
        """The maps that the kernel's can be compared with."""
        found: dict[str, dict[bytes, object]] = {}
        for spec in self.linked.maps:
            if spec.type in COMPARED and not spec.internal:
                items = self.world.map_items(self.numbers[spec.name])
                found[spec.name] = {key: _values(spec, value) for key, value in items}
        return found


def _values(spec: MapSpec, value: bytes) -> object:
    """Of a per-CPU map the first CPU's, which runs the program."""
    return value[: spec.value_size] if spec.type in PER_CPU else value


class Real:
    """The object in the kernel."""

    def __init__(self, data: bytes, program: str = "prog") -> None:
        self._stack = ExitStack()
        try:
            self.obj = self._stack.enter_context(ObjectFile.open(data, "twins"))
            self.linked = link_object(data)
            section = self.linked.programs[program].section
            self.obj.programs[program].set_type(SECTIONS[section][1])
            self.obj.load()
            self.program = self._stack.enter_context(self.obj.programs[program].program())
            self.map = {
                spec.name: self._stack.enter_context(self.obj.maps[spec.name].map())
                for spec in self.linked.maps if not spec.internal
            }  # fmt: skip
        except BaseException:
            self._stack.close()
            raise

    def run(self, packet: bytes, context: bytes | None = None) -> Result:
        """BPF_PROG_TEST_RUN of one packet."""
        done = self.program.test_run(packet, context)
        found: dict[str, dict[bytes, object]] = {}
        for spec in self.linked.maps:
            if spec.type in COMPARED and not spec.internal:
                found[spec.name] = dict(_items(self.map[spec.name], spec))
        return Result(done.retval, done.data_out, found)

    def close(self) -> None:
        """Unload."""
        self._stack.close()


def _items(map_: Map, spec: MapSpec) -> Iterable[tuple[bytes, object]]:
    array = spec.type in (2, 6)
    for key in map_.keys():  # noqa: SIM118 - it is no dict
        value: bytes | None
        if spec.type in PER_CPU:
            values = map_.lookup_percpu(key)
            value = values[0] if values else None
        else:
            value = map_.lookup(key)
        if value is not None and (any(value) or not array):
            yield key, value


class Twins:
    """Both sides of one source."""

    def __init__(self, folder: Path, source: str) -> None:
        data = compile_bpf(folder, HEAD + source)
        self.emulated = Emulated(data)
        self.real = Real(data)
        self._affinity = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {0})

    def same(self, packet: bytes = bytes(64)) -> Result:
        """Run both on the packet; they must agree in everything. Gives what they agree on."""
        ours, theirs = self.emulated.run(packet), self.real.run(packet)
        packet_out = theirs.packet
        if self.emulated.context == "skb-l3":
            # The kernel puts an Ethernet header of zeros in front.
            packet_out = packet_out[14:]
        one, other = _noted(ours), _noted(theirs)
        noted = [
            f"OUT({index}): emulator {one.get(index, 0)}, kernel {other.get(index, 0)}"
            for index in sorted(one.keys() | other.keys())
            if one.get(index, 0) != other.get(index, 0)
        ]
        assert not noted, "; ".join(noted)
        assert ours.verdict == theirs.verdict, f"verdicts {ours.verdict}, {theirs.verdict}"
        assert ours.packet == packet_out, f"\n{ours.packet.hex()}\n{packet_out.hex()}"
        assert ours.maps == theirs.maps, f"\n{ours.maps}\n{theirs.maps}"
        return ours

    def update(self, name: str, key: bytes, value: bytes, flags: int = 0) -> int:
        """Update both maps from user space; the error number, 0 for none."""
        return self._both(
            lambda: self.emulated.world.map_update(self.emulated.numbers[name], key, value, flags),
            lambda: (
                self.real.map[name].update(key, value, flags)
                if not self.real.map[name].per_cpu
                else self.real.map[name].update_percpu(key, [value] * possible_cpus(), flags)
            ),
        )

    def delete(self, name: str, key: bytes) -> int:
        """Delete in both maps from user space; the error number, 0 for none."""
        return self._both(
            lambda: self.emulated.world.map_delete(self.emulated.numbers[name], key),
            lambda: self.real.map[name].delete(key),
        )

    def _both(self, ours: object, theirs: object) -> int:
        numbers = []
        for act in (ours, theirs):
            try:
                act()  # type: ignore[operator]
                numbers.append(0)
            except (OSError, BpfError) as error:
                numbers.append(error.errno or -1)
        assert numbers[0] == numbers[1], f"emulator {numbers[0]}, kernel {numbers[1]}"
        return numbers[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        os.sched_setaffinity(0, self._affinity)
        self.real.close()


def _noted(result: Result) -> dict[int, int]:
    return {
        struct.unpack("=I", key)[0]: struct.unpack("=q", value)[0]
        for key, value in result.maps["out"].items()
        if isinstance(value, bytes)
    }

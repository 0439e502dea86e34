"""The native engine: real uBPF with kernel-like contexts, maps and helpers around it.

A ``World`` is one side of a comparison: its maps and programs. Every world's memory lies at the same
fixed addresses while it runs, so that the original and the patched program see identical pointers;
only one world of a process runs at a time (a lock inside).
"""

from collections.abc import Mapping, Sequence
from typing import Self, final

__all__ = ["VERSION", "Batch", "Fault", "Packets", "World", "allow_jit"]

VERSION: str
"""Of libubpf-sys, for reports."""

@final
class Packets:
    """Inputs of a batch, made once and run by several worlds.

    ``data`` are the frames as BPF_PROG_TEST_RUN takes them (from the Ethernet header); for programs
    with a plain context they are ignored. ``contexts`` is one initial context for all packets or one
    each: ``struct xdp_md`` (24 bytes), ``struct __sk_buff`` (192 bytes), or the raw bytes of a plain
    context; length and data pointers in it are set by the engine. ``times`` are the packets' virtual
    ``bpf_ktime_get_ns`` bases in nanoseconds.
    """

    def __new__(
        cls,
        data: Sequence[bytes],
        contexts: bytes | Sequence[bytes] | None = None,
        times: Sequence[int] | None = None,
    ) -> Self: ...
    def __len__(self) -> int: ...
    def select(self, indexes: Sequence[int]) -> Packets: ...

@final
class Fault:
    """Why a run ended without a verdict.

    ``kind``: "read", "write", "jump", "limit" (instructions), "stack", "unmodelled" (helper, map kind,
    context field: ``what`` names it), "crash", "load". ``pc`` is the instruction index in the program's
    linked code (-1: unknown, as under the JIT), ``address`` and ``size`` of the access.
    """

    packet: int
    program: int
    kind: str
    pc: int
    address: int
    size: int
    what: str

@final
class Batch:
    """Results of one ``run_batch``; arrays are little-endian bytes, one element a packet."""

    verdicts: bytes
    """u64: r0 at the end. Unspecified where the packet faulted or ended at a marker."""
    ended: bytes
    """i32: tag of the marker that a tail call ran, -1 where none was; -2 where the packet faulted."""
    instructions: bytes
    """u32: executed instructions, 0 under the JIT."""
    tail_calls: bytes
    """u32: tail calls that succeeded."""
    faults: list[Fault]
    def __len__(self) -> int: ...
    def packet(self, index: int) -> bytes:
        """The frame after the run (from ``data``'s place then, metadata not included). For "skb-l3"
        that is from the network header (the kernel's test run puts 14 zeros before it). XDP frames
        over 3,520 bytes come with the rest that programs do not see."""
    def metadata(self, index: int) -> bytes:
        """Bytes between data_meta and data."""
    def context(self, index: int) -> bytes:
        """The context after the run; pointers in it as the program left them."""
    def events(self, index: int) -> list[tuple[str, str, bytes]]:
        """Helper effects in order: (kind, map label or "", payload). Kinds: "perf", "ringbuf",
        "printk", "redirect", "redirect_map", "redirect_peer", "redirect_neigh", "clone_redirect", ...
        """
    def differences(
        self, other: Batch, limit: int = 100, ignore: Sequence[str] = ...
    ) -> list[tuple[int, str]]:
        """First differing dimension per packet, of "verdict", "ended", "fault", "packet", "metadata",
        "context", "events"; the packets in order, at most ``limit``. ``ended`` compares as it is;
        ``verdict`` only where neither faulted nor ended at a marker; faults by kind, address, size
        and ``what``. Dimensions in ``ignore`` are not looked at. ValueError for batches of different
        length."""

@final
class World:
    def __new__(
        cls, *, seed: int = 0, instruction_limit: int = 1_000_000, cpus: int = 1
    ) -> Self: ...
    # maps: indexes count from 0 in the order of add_map. OSError carries the kernel's errno.
    def add_map(
        self,
        label: str,
        type: int,
        key_size: int,
        value_size: int,
        max_entries: int,
        flags: int = 0,
        inner: int | None = None,
        readonly: bool = False,
    ) -> int:
        """Make a map (``type`` as BPF_MAP_TYPE_*; ``inner``: the template of a map of maps;
        ``readonly``: to programs). Unmodelled kinds can be made, and fault when a program uses them.
        ValueError for sizes that the kernel refuses; MemoryError above 1 GiB of values."""
    def map_update(self, map: int, key: bytes, value: bytes, flags: int = 0) -> None:
        """Per-CPU kinds take one value for all CPUs, or ``cpus`` values of 8-byte-rounded size."""
    def map_lookup(self, map: int, key: bytes) -> bytes | None: ...
    def map_delete(self, map: int, key: bytes) -> None: ...
    def map_items(self, map: int) -> list[tuple[bytes, bytes]]:
        """Sorted by key. Arrays: only entries that differ from zero. Queue and stack: keys are
        positions. Maps of maps and prog arrays: the value is the index of the map or program."""
    def map_differs(self, map: int, other: World, other_map: int) -> bool:
        """Whether the contents differ: fast, without making Python objects."""
    def set_program(self, map: int, key: int, program: int) -> None: ...
    def set_marker(self, map: int, key: int, tag: int) -> None:
        """A slot whose tail call ends the run and is told in ``Batch.ended``; the context that it was
        given must be the run's own, else the packet faults with kind "jump"."""
    def set_inner(self, map: int, key: bytes, inner: int) -> None: ...
    # programs
    def add_program(
        self,
        label: str,
        context: str,
        code: bytes,
        maps: Sequence[int],
        functions: Sequence[int],
    ) -> int:
        """Load linked little-endian code. ``context``: "xdp", "skb" (from the Ethernet header: tc),
        "skb-l3" (from the network header: cgroup_skb, lwt, also a socket filter), "plain". ``functions``: first
        instructions of all functions, 0 first, ascending. LDDW pseudo values as the kernel's: src 1
        (map; imm = index into ``maps``), 2 (map value; imm = that index, the second imm the offset),
        4 (function, pc-relative), 3 (ksym or BTF variable: the 64-bit value given is an address).
        ``call`` src 1 is pc-relative; src 2 (kfunc) is unmodelled. ValueError says what uBPF refuses.
        """
    def answers(self, values: Mapping[str, int | bytes | Sequence[bytes]]) -> None:
        """Recorded answers of helpers, by the helper's name without ``bpf_`` ("get_current_pid_tgid",
        "get_current_comm", "fib_lookup", "get_smp_processor_id", "ktime_step_ns" ...). A sequence is
        used up one a call and starts anew with every batch."""
    def add_memory(self, address: int, data: bytes) -> None:
        """Memory that probe_read kinds may read (and plain contexts point to)."""
    # runs
    def run_batch(
        self,
        program: int,
        packets: Packets,
        *,
        fill: int = 0,
        jit: bool = False,
        coverage: bool = True,
    ) -> Batch:
        """Run the program on every packet, in order; maps persist. ``fill``: the byte that the stack
        holds at the start of every packet. The GIL is released. ``jit``: RuntimeError unless
        ``allow_jit()`` was called in this process."""
    def coverage(self, program: int) -> tuple[bytes, bytes]:
        """Two bytes, each 0 or 1, per instruction of the linked code, since the program was added.
        First: executed; for conditional jumps: executed and not taken. Second: taken (0 for all
        others). A jump of distance 0 counts as not taken; runs under the JIT and with
        ``coverage=False`` do not count; the second half of a 64-bit load is never executed."""
    def save(self) -> int:
        """Remember all map contents; returns a handle."""
    def restore(self, handle: int) -> None: ...

def allow_jit() -> None:
    """This process is a child that may crash: let worlds run the JIT."""

"""Initial contexts of runs: ``struct xdp_md``, ``struct __sk_buff``, and raw bytes for plain hooks.

Layouts: ``<linux/bpf.h>``. A test run takes only some of the fields of ``__sk_buff``
(``convert___skb_to_skb`` in net/bpf/test_run.c); ``SkbContext.not_in_test_runs`` tells of others.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from typing import Any

from bpfchain.transform.document import Reader
from bpfchain.transform.policy import Hook

__all__ = ["PLAIN_BYTES", "SkbContext", "XdpContext", "kind_of", "plain_contexts"]

_U16, _U32, _U64 = (1 << 16) - 1, (1 << 32) - 1, (1 << 64) - 1


def kind_of(hook: Hook) -> str:
    """``xdp``, ``skb`` or ``plain``: which contexts of a scenario are the hook's."""
    return {"xdp_md": "xdp", "__sk_buff": "skb"}.get(hook.context, "plain")


@dataclass(frozen=True, slots=True, kw_only=True)
class XdpContext:
    """What a scenario says of ``struct xdp_md``. The defaults are what the kernel's test run gives."""

    ingress_ifindex: int = 1
    rx_queue_index: int = 0
    egress_ifindex: int = 0
    """For programs in a devmap; a test run of the kernel takes only 0."""

    @classmethod
    def read(cls, value: Reader) -> XdpContext:
        """Read what ``to_dict`` wrote."""
        context = cls(
            **{
                field.name: value.integer(field.name, 0, _U32)
                for field in fields(cls)
                if value.has(field.name)
            }
        )
        value.finish()
        return context

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, without what is the default."""
        return _changed(self)

    def pack(self) -> bytes:
        """24 bytes; the engine fills in data, data_end and data_meta."""
        return struct.pack(
            "<6I", 0, 0, 0, self.ingress_ifindex, self.rx_queue_index, self.egress_ifindex
        )


_SKB_AT = {
    "mark": (8, "I"), "queue_mapping": (12, "I"), "vlan_present": (20, "I"), "vlan_tci": (24, "I"),
    "vlan_proto": (28, "I"), "priority": (32, "I"), "ingress_ifindex": (36, "I"),
    "ifindex": (40, "I"), "tc_index": (44, "I"), "hash": (68, "I"), "tc_classid": (72, "I"),
    "napi_id": (84, "I"), "tstamp": (152, "Q"), "wire_len": (160, "I"), "gso_segs": (164, "I"),
    "gso_size": (176, "I"), "hwtstamp": (184, "Q"),
}  # fmt: skip
_SKB_BYTES, _CB_AT, _CB_WORDS = 192, 48, 5
_SKB_MOST = {
    "queue_mapping": _U16, "vlan_present": 1, "vlan_tci": _U16, "vlan_proto": _U16,
    "tc_index": _U16, "tc_classid": _U16, "tstamp": _U64, "hwtstamp": _U64,
    # a test run refuses more: GSO_LEGACY_MAX_SIZE, GSO_MAX_SEGS, 16 bits in skb_shared_info
    "wire_len": 65536, "gso_segs": 65535, "gso_size": _U16,
}  # fmt: skip
_TESTED = frozenset(
    ("mark", "priority", "ingress_ifindex", "ifindex", "cb", "tstamp", "wire_len", "gso_segs",
     "gso_size", "hwtstamp")
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SkbContext:
    """What a scenario says of ``struct __sk_buff``. The defaults are what the kernel's test run gives
    (measured on 6.18). ``wire_len`` 0 stands for the frame's own length."""

    mark: int = 0
    queue_mapping: int = 0
    vlan_present: int = 0
    vlan_tci: int = 0
    vlan_proto: int = 0
    priority: int = 0
    ingress_ifindex: int = 0
    ifindex: int = 1
    tc_index: int = 0
    cb: tuple[int, int, int, int, int] = (0, 0, 0, 0, 0)
    hash: int = 0
    tc_classid: int = 0
    napi_id: int = 0
    tstamp: int = 0
    wire_len: int = 0
    gso_segs: int = 0
    gso_size: int = 0
    hwtstamp: int = 0

    @classmethod
    def read(cls, value: Reader) -> SkbContext:
        """Read what ``to_dict`` wrote."""
        found: dict[str, Any] = {}
        for name in _SKB_AT:
            if value.has(name):
                found[name] = value.integer(name, 0, _SKB_MOST.get(name, _U32))
        if value.has("cb"):
            words = value.items("cb")
            whole = all(type(word) is int and 0 <= word <= _U32 for word in words)
            if len(words) != _CB_WORDS or not whole:
                value.fail("expected five integers of 32 bits", at="cb")
            found["cb"] = tuple(words)
        value.finish()
        return cls(**found)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, without what is the default."""
        found = _changed(self)
        return found | ({"cb": list(self.cb)} if "cb" in found else {})

    @property
    def not_in_test_runs(self) -> tuple[str, ...]:
        """Fields that are set here and that the kernel's test run refuses (EINVAL)."""
        return tuple(name for name in _changed(self) if name not in _TESTED)

    def pack(self) -> bytes:
        """192 bytes; the engine fills in what follows from the frame."""
        data = bytearray(_SKB_BYTES)
        for name, (at, form) in _SKB_AT.items():
            struct.pack_into("<" + form, data, at, getattr(self, name))
        struct.pack_into("<5I", data, _CB_AT, *self.cb)
        return bytes(data)


def _changed(context: XdpContext | SkbContext) -> dict[str, Any]:
    return {
        field.name: getattr(context, field.name)
        for field in fields(context)
        if getattr(context, field.name) != field.default
    }


PLAIN_BYTES = {
    "pt_regs": 168, "bpf_perf_event_data": 184, "bpf_raw_tracepoint_args": 96, "void": 256,
    "bpf_sock_addr": 72, "bpf_sock": 80, "sk_msg_md": 80, "bpf_sk_lookup": 72, "bpf_nf_ctx": 16,
}  # fmt: skip
"""Bytes of the contexts of plain hooks (x86-64); a tracepoint's record has no fixed size."""

_TEXT, _STACK, _HEAP = 0xFFFF_FFFF_8123_4560, 0xFFFF_C900_0001_3E58, 0xFFFF_8881_0234_5600
_PORTS = (22, 53, 80, 443, 65535)


def plain_contexts(hook: Hook, size: int = 0) -> tuple[bytes, ...]:
    """Contexts to run a program of a plain hook on where no scenario gives any, all of one length.

    ``size``: the end of the last field that the program reads, in bytes; what is returned is at
    least as long, and no shorter than the hook's own context. First what suits every hook (zeros,
    ones, patterns, small and large numbers), then what looks like the hook's own.
    """
    size = (max(size, PLAIN_BYTES.get(hook.context, 64)) + 7) // 8 * 8
    words = size // 8
    found = [
        bytes(size),
        b"\xff" * size,
        bytes(n & 0xFF for n in range(size)),
        b"\xa5" * size,
        struct.pack(f"<{words}Q", *range(1, words + 1)),
        struct.pack(f"<{words * 2}I", *range(1, words * 2 + 1)),
        struct.pack(f"<{words}Q", *(1 << (n % 64) for n in range(words))),
        struct.pack(f"<{words}Q", *(_U64 - n for n in range(words))),
        struct.pack(f"<{words}Q", *(_HEAP + 64 * n for n in range(words))),
    ]
    found += [context.ljust(size, b"\0") for context in _likely(hook)]
    return tuple(dict.fromkeys(found))


def _likely(hook: Hook) -> list[bytes]:
    if hook.context in ("pt_regs", "bpf_perf_event_data"):
        return [_registers(first) for first in (0, 1, 0x246, _HEAP)]
    if hook.context == "bpf_raw_tracepoint_args":
        # what sys_enter (registers, number), sched_switch and others hand over
        return [struct.pack("<12Q", _HEAP, number, *range(10)) for number in (0, 1, 59, 257, _U64)]
    if hook.context == "void":
        # common_type, flags, preempt_count, pid; then a few fields, and a text
        head = struct.pack("<HBBi", 300, 0, 0, 4242)
        return [
            head
            + struct.pack("<6q", number, 3, -100, _HEAP - (1 << 64), 0x42, 0)
            + b"comm-of-test\0"
            for number in (0, 1, 59, 257)
        ]
    if hook.context in ("bpf_sock_addr", "bpf_sock", "bpf_sk_lookup", "sk_msg_md"):
        make = {
            "bpf_sock_addr": _sock_addr, "bpf_sock": _sock, "bpf_sk_lookup": _sk_lookup,
            "sk_msg_md": _sk_msg,
        }[hook.context]  # fmt: skip
        return [make(family, port) for family in (2, 10) for port in _PORTS]
    return []


def _registers(first: int) -> bytes:
    """``struct pt_regs`` of x86-64: r15 first, then to ax, cx, dx, si, di, orig_ax, ip, cs, flags,
    sp, ss. The first argument is di."""
    general = [_HEAP + 8 * n for n in range(10)]
    arguments = [0, 3, 2, 1, first]
    frame = [1, _TEXT, 0x10, 0x246, _STACK, 0x18]
    return struct.pack("<21Q", *general, *arguments, *frame)


def _addresses(family: int) -> tuple[bytes, bytes]:
    """IPv4 (4 bytes) and IPv6 (16 bytes) in network order; what the family has not is zero."""
    if family == 2:
        return bytes((10, 0, 0, 2)), bytes(16)
    return bytes(4), bytes.fromhex("20010db8000000000000000000000002")


def _sock_addr(family: int, port: int) -> bytes:
    ip4, ip6 = _addresses(family)
    protocol = 17 if port == 53 else 6
    kind = 2 if protocol == 17 else 1
    return (
        struct.pack("<I", family) + ip4 + ip6 + struct.pack(">H2x", port)
        + struct.pack("<3I", family, kind, protocol)
    )  # fmt: skip


def _sock(family: int, port: int) -> bytes:
    ip4, ip6 = _addresses(family)
    protocol = 17 if port == 53 else 6
    head = struct.pack("<6I", 0, family, 2 if protocol == 17 else 1, protocol, 0, 0)
    remote = struct.pack(">H2x", port) + ip4 + ip6
    return head + ip4 + ip6 + struct.pack("<I", 40000) + remote + struct.pack("<Ii", 1, -1)


def _sk_lookup(family: int, port: int) -> bytes:
    ip4, ip6 = _addresses(family)
    remote = ip4 + ip6 + struct.pack(">H2x", 40000)
    return (
        struct.pack("<QII", 0, family, 17 if port == 53 else 6) + remote + ip4 + ip6
        + struct.pack("<II", port, 1)
    )  # fmt: skip


def _sk_msg(family: int, port: int) -> bytes:
    ip4, ip6 = _addresses(family)
    # remote_port is in network order in the upper half, local_port in the machine's
    ports = struct.pack(">I", port) + struct.pack("<I", 40000)
    return (
        bytes(16) + struct.pack("<I", family) + ip4 + ip4 + ip6 + ip6 + ports
        + struct.pack("<I", 64) + bytes(8)
    )  # fmt: skip

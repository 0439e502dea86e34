"""What kinds of context the hooks' programs have, and what the kernel's test run does with them."""

from __future__ import annotations

from bpfchain.transform.policy import Hook

__all__ = ["L2_BYTES", "MD_BYTES", "SKB_BYTES", "context_kind", "default_contexts", "has_packets"]

MD_BYTES, SKB_BYTES = 24, 192
"""Sizes of ``struct xdp_md`` and ``struct __sk_buff``."""
L2_BYTES = 14

_SKB_L2 = frozenset({3, 4})
"""SCHED_CLS and SCHED_ACT see the Ethernet header (net/bpf/test_run.c, ``is_l2``)."""
_SKB_L3 = frozenset({1, 8, 10, 11, 12, 19})
"""SOCKET_FILTER, CGROUP_SKB and the LWT kinds see the packet from the network header on."""
_XDP = 6
_SIZES = {
    "pt_regs": 168, "bpf_raw_tracepoint_args": 96, "bpf_perf_event_data": 184, "bpf_sock": 80,
    "bpf_sock_addr": 72, "sk_msg_md": 80, "bpf_sk_lookup": 72, "bpf_nf_ctx": 16, "void": 256,
    "__sk_buff": SKB_BYTES,
}  # fmt: skip
"""Bytes of a plain context (x86-64's pt_regs; a tracepoint's record has no fixed size)."""


def context_kind(hook: Hook) -> str:
    """``xdp``, ``skb`` (from the Ethernet header), ``skb-l3`` or ``plain``, as the emulator's."""
    if hook.prog_type_id == _XDP:
        return "xdp"
    if hook.prog_type_id in _SKB_L2:
        return "skb"
    return "skb-l3" if hook.prog_type_id in _SKB_L3 else "plain"


def has_packets(hook: Hook) -> bool:
    """Whether its programs run on packets (and not on a context alone)."""
    return context_kind(hook) != "plain"


def default_contexts(hook: Hook) -> tuple[bytes, ...]:
    """Contexts for hooks without packets where a recording gives none: patterns, all readable."""
    size = _SIZES.get(hook.context, 256)
    ones = (b"\1" + bytes(7)) * (size // 8)
    return (
        bytes(size), b"\xff" * size, ones, (b"\2" + bytes(7)) * (size // 8),
        (b"\x10\0\0\0" * 64)[:size], bytes(range(256))[:size], bytes(range(255, -1, -1))[:size],
        b"\x7f" * size,
    )  # fmt: skip

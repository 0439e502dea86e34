"""Which frames the kernel's test run takes at a hook, and why it refuses the others.

Measured on Linux 6.18 (x86-64, pages of 4096 bytes); ``tests/verify/test_packet_rules.py`` compares
with the kernel at hand. Frames that no kernel would run say nothing about a program.
Source: ``bpf_prog_test_run_xdp``, ``bpf_prog_test_run_skb`` and ``bpf_test_init`` in
net/bpf/test_run.c.
"""

from __future__ import annotations

from bpfchain.transform.policy import Hook

__all__ = ["SKB_MAX", "XDP_LINEAR_MAX", "XDP_MAX", "admissible"]

XDP_LINEAR_MAX = 3520
"""Bytes between data and data_end at most, longer frames continue in fragments: a page without the
headroom (256) and the shared info behind (320)."""
XDP_MAX = XDP_LINEAR_MAX + 17 * 4096
"""A frame has at most MAX_SKB_FRAGS fragments of a page each."""
SKB_MAX = 3712
"""A page without the headroom of an skb (64) and the shared info behind (320)."""
_ETHERNET, _IPV4, _IPV6 = 14, 14 + 20, 14 + 40


def admissible(packet: bytes, hook: Hook) -> str | None:
    """Why the kernel would not run a program of ``hook`` on this frame; None where it does.

    ``packet`` begins with its Ethernet header, at hooks above Ethernet too. Hooks without a packet
    take anything: theirs is not looked at. The rules of a type are also applied at those of its
    hooks where the kernel has no test run (xdp/devmap, sk_skb, lwt_seg6local).
    """
    size = len(packet)
    if hook.context not in ("xdp_md", "__sk_buff"):
        return None
    if size < _ETHERNET:
        return "shorter than an Ethernet header (14 bytes)"
    if hook.context == "xdp_md":
        return f"longer than a test run of XDP takes ({XDP_MAX} bytes)" if size > XDP_MAX else None
    if size > SKB_MAX:
        return f"longer than a test run of an skb takes ({SKB_MAX} bytes)"
    protocol = packet[12:14]
    if protocol == b"\x08\x00" and size < _IPV4:
        return "IPv4 by its EtherType and shorter than an IPv4 header (34 bytes)"
    if protocol == b"\x86\xdd" and size < _IPV6:
        return "IPv6 by its EtherType and shorter than an IPv6 header (54 bytes)"
    return None

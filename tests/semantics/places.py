"""The hooks at which chains are run, with the corpus programs there that return what a map says."""

from __future__ import annotations

from bpfchain.loader.uapi import AttachType, ProgType
from semantics.chains import ANY, Codes, Place, Spec, between, excluding, listed

BIG, LEAST = 0x7FFF_FFFF, -0x8000_0000
IPV4 = (
    bytes.fromhex("020000000002 020000000001 0800")
    + bytes.fromhex("4500 0032 0000 0000 40 11 66b9 0a000001 0a000002")
    + bytes.fromhex("1234 0050 001e 0000") + bytes(22)
)  # fmt: skip
SK_LOOKUP_CTX = (  # a cookie of 0 (no socket), AF_INET, TCP, addresses and ports
    bytes(8) + (2).to_bytes(4, "little") + (6).to_bytes(4, "little") + bytes(56)
)
_XDP = (0, 1, 2, 3, 4)
_TC = tuple(range(-1, 9))
_LWT = (0, 2, 7, 128)


def default(kind: str, *codes: int) -> Codes:
    """S of DESIGN section 2 where nothing is asked for."""
    return Codes(kind, codes, given=False)


def _tc(name: str, obj: str, program: str, attach: int, s: Codes) -> Place:
    return Place(
        name=name, obj=obj, program=program, type=ProgType.SCHED_CLS, attach=attach, default=s,
        legal=(*_TC, 9, 1000, BIG, LEAST), driven=(*_TC, 9, 10, 1000, BIG, LEAST, -2),
        saveable=_TC,
    )  # fmt: skip


def _bits(
    name: str, obj: str, program: str, type: ProgType, attach: int, *, wide: bool = False,
    always: bool = False, checked: bool = True, runs: bool = False, data: bytes = IPV4,
    ctx: bytes | None = None,
) -> Place:  # fmt: skip
    codes = (0, 1, 2, 3) if wide else (1,) if always else (0, 1)
    return Place(
        name=name, obj=obj, program=program, type=type, attach=attach, legal=codes, driven=codes,
        saveable=codes, default=default("list", 1, 3) if wide else default("list", 1),
        checked=checked, runs=runs, data=data, ctx=ctx,
    )  # fmt: skip


def _lwt(name: str, type: ProgType) -> Place:
    return Place(
        name=name, obj="verdict_lwt", program=f"verdict_{name}", type=type, attach=0,
        default=default("list", 0), legal=_LWT, driven=(*_LWT, 1, -1, 3, 127, BIG), saveable=_LWT,
        data=IPV4,
    )  # fmt: skip


def _trace(
    name: str, obj: str, program: str, type: ProgType, *, runs: bool, attach: int = 0
) -> Place:
    return Place(
        name=name, obj=obj, program=program, type=type, attach=attach, default=default("any"),
        legal=(0, 1, 2, -1, BIG), driven=(0, 1, 2, -1, BIG, LEAST), saveable=(0, 1), runs=runs,
        data=b"", ctx=bytes(64),
    )  # fmt: skip


XDP = Place(
    name="xdp", obj="verdict_xdp", program="verdict_xdp", type=ProgType.XDP, attach=AttachType.XDP,
    default=default("list", 2), legal=_XDP, driven=(*_XDP, 5, -1, BIG, LEAST), saveable=_XDP,
)  # fmt: skip
TC = _tc("tc", "verdict_tc", "verdict_tc", 0, default("not", 2, 4, 7, 8))
TCX_IN = _tc(
    "tcx/ingress", "verdict_tcx", "verdict_tcx_in", AttachType.TCX_INGRESS, default("not", 2, 7)
)
TCX_OUT = _tc(
    "tcx/egress", "verdict_tcx", "verdict_tcx_out", AttachType.TCX_EGRESS, default("not", 2, 7)
)
SKB_IN = _bits(
    "cgroup_skb/ingress", "verdict_cgroup_skb", "verdict_ingress", ProgType.CGROUP_SKB,
    AttachType.CGROUP_INET_INGRESS, runs=True,
)  # fmt: skip
SKB_OUT = _bits(
    "cgroup_skb/egress", "verdict_cgroup_skb", "verdict_egress", ProgType.CGROUP_SKB,
    AttachType.CGROUP_INET_EGRESS, wide=True, runs=True,
)  # fmt: skip
SK_LOOKUP = _bits(
    "sk_lookup", "verdict_sk_lookup", "verdict_sk_lookup", ProgType.SK_LOOKUP, AttachType.SK_LOOKUP,
    runs=True, data=b"", ctx=SK_LOOKUP_CTX,
)  # fmt: skip
NETFILTER = _bits(
    "netfilter", "verdict_netfilter", "verdict_netfilter", ProgType.NETFILTER,
    AttachType.NETFILTER, runs=True,
)  # fmt: skip
SOCKET = Place(
    name="socket", obj="verdict_socket", program="verdict_socket", type=ProgType.SOCKET_FILTER,
    attach=0, default=default("not", 0), legal=(0, 1, -1, 64, 0xFFFF, BIG, LEAST),
    driven=(0, 1, -1, 64, 0xFFFF, BIG, LEAST, 2), saveable=(0, -1), data=IPV4,
)  # fmt: skip


def _addr(word: str, attach: int, *, wide: bool = False, always: bool = False) -> Place:
    return _bits(
        f"cgroup/{word}", "verdict_sock_addr", f"verdict_{word}", ProgType.CGROUP_SOCK_ADDR, attach,
        wide=wide, always=always,
    )  # fmt: skip


def _sock(word: str, attach: int) -> Place:
    return _bits(
        f"cgroup/{word}", "verdict_cgroup_sock", f"verdict_{word}", ProgType.CGROUP_SOCK, attach
    )


BIND4 = _addr("bind4", AttachType.CGROUP_INET4_BIND, wide=True)
RECVMSG4 = _addr("recvmsg4", AttachType.CGROUP_UDP4_RECVMSG, always=True)

RUN = (
    XDP, TC, TCX_IN, TCX_OUT, SKB_IN, SKB_OUT, SK_LOOKUP, NETFILTER, SOCKET,
    _lwt("lwt_in", ProgType.LWT_IN), _lwt("lwt_out", ProgType.LWT_OUT),
    _lwt("lwt_xmit", ProgType.LWT_XMIT),
    _trace("raw_tp", "verdict_raw_tp", "verdict_raw_tp", ProgType.RAW_TRACEPOINT, runs=True),
)  # fmt: skip
"""Hooks whose programs BPF_PROG_TEST_RUN runs."""
LOAD_ONLY = (
    BIND4, RECVMSG4, _lwt("lwt_seg6local", ProgType.LWT_SEG6LOCAL),
    _trace(
        "raw_tp.w", "verdict_raw_tp", "verdict_raw_tp_w", ProgType.RAW_TRACEPOINT_WRITABLE,
        runs=False,
    ),
    _addr("bind6", AttachType.CGROUP_INET6_BIND, wide=True),
    _addr("connect4", AttachType.CGROUP_INET4_CONNECT),
    _addr("connect6", AttachType.CGROUP_INET6_CONNECT),
    _addr("sendmsg4", AttachType.CGROUP_UDP4_SENDMSG),
    _addr("sendmsg6", AttachType.CGROUP_UDP6_SENDMSG),
    _addr("recvmsg6", AttachType.CGROUP_UDP6_RECVMSG, always=True),
    _addr("getpeername4", AttachType.CGROUP_INET4_GETPEERNAME, always=True),
    _addr("getpeername6", AttachType.CGROUP_INET6_GETPEERNAME, always=True),
    _addr("getsockname4", AttachType.CGROUP_INET4_GETSOCKNAME, always=True),
    _addr("getsockname6", AttachType.CGROUP_INET6_GETSOCKNAME, always=True),
    _sock("sock_create", AttachType.CGROUP_INET_SOCK_CREATE),
    _sock("sock_release", AttachType.CGROUP_INET_SOCK_RELEASE),
    _sock("post_bind4", AttachType.CGROUP_INET4_POST_BIND),
    _sock("post_bind6", AttachType.CGROUP_INET6_POST_BIND),
    _bits("sk_msg", "verdict_sk_msg", "verdict_sk_msg", ProgType.SK_MSG, AttachType.SK_MSG_VERDICT),
    _bits("sk_skb/stream_verdict", "verdict_sk_skb", "verdict_sk_skb", ProgType.SK_SKB,
          AttachType.SK_SKB_STREAM_VERDICT),
    _trace("kprobe", "verdict_kprobe", "verdict_kprobe", ProgType.KPROBE, runs=False),
    _trace("kprobe", "verdict_kprobe", "verdict_kretprobe", ProgType.KPROBE, runs=False),
    _trace("kprobe.multi", "verdict_kprobe_multi", "verdict_kprobe_multi", ProgType.KPROBE,
           runs=False, attach=AttachType.TRACE_KPROBE_MULTI),
    _trace("tracepoint", "verdict_tracepoint", "verdict_tracepoint", ProgType.TRACEPOINT, runs=False),
    _trace("tracepoint", "verdict_tracepoint", "verdict_tp", ProgType.TRACEPOINT, runs=False),
    _trace("perf_event", "verdict_perf_event", "verdict_perf_event", ProgType.PERF_EVENT, runs=False),
)  # fmt: skip
"""Hooks whose programs it does not run: they are shown to load."""


def successes(place: Place) -> list[Codes]:
    """S as a single code, a list, a range, any, a complement, none at all, and the default."""
    codes = sorted(place.legal)
    first, last = codes[0], codes[-1]
    found = [place.default, listed(), listed(first), listed(last), ANY, excluding(first)]
    if len(codes) > 1:
        middle = codes[len(codes) // 2]
        found += [listed(first, last), listed(middle), excluding(first, middle), excluding(last)]
        if place.legal[-1] != 128:  # lwt's codes have gaps, which a range may not name
            found += [between(first, middle), between(middle, last), between(first, last)]
    if len(codes) > 3:
        found += [listed(codes[1], codes[3]), listed(*codes[1:3])]
    if BIG in codes:
        found += [between(0, BIG), between(LEAST, -1), between(-1, 1), excluding(-1, 0, BIG)]
    return list(dict.fromkeys(found))


def redirects(place: Place) -> list[tuple[int, ...]]:
    """R empty, of one code, with code 0, of several, of all that can be saved."""
    codes = place.saveable
    found = [(), (codes[0],), (codes[-1],), codes, (codes[0], codes[-1])]
    found += [(0,)] if 0 in codes else []
    found += [(codes[1],), codes[1:3]] if len(codes) > 2 else []
    return list(dict.fromkeys(tuple(sorted(set(r))) for r in found))


def specs(place: Place) -> list[Spec]:
    """Every S with every R: with and without overlap."""
    return [Spec(s, r) for s in successes(place) for r in redirects(place)]

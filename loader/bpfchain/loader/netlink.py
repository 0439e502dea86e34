"""rtnetlink: the XDP programs of an interface, the clsact qdisc, and its bpf filters.

Requests act in the calling thread's network namespace. Numbers are those of ``<linux/rtnetlink.h>``,
``<linux/if_link.h>`` and ``<linux/pkt_cls.h>``; ``tests/loader/test_uapi.py`` compares them with a
compiled C program. (pyroute2 takes a quarter of a second to import, which is why it is not used.)
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple, Self

RTM_GETLINK, RTM_SETLINK = 18, 19
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_DUMP_INTR, NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x10, 0x100, 0x200
NLM_F_EXCL, NLM_F_CREATE = 0x200, 0x400
NLMSGERR_ATTR_MSG = 1
SOL_NETLINK, NETLINK_EXT_ACK = 270, 11
NLA_F_NESTED, NLA_TYPE_MASK = 1 << 15, 0x3FFF
IFLA_XDP = 43
IFLA_XDP_FD, IFLA_XDP_FLAGS = 1, 3
IFLA_XDP_DRV_PROG_ID, IFLA_XDP_SKB_PROG_ID, IFLA_XDP_HW_PROG_ID = 5, 6, 7
TCA_KIND, TCA_OPTIONS = 1, 2
TCA_BPF_FD, TCA_BPF_NAME, TCA_BPF_FLAGS, TCA_BPF_ID = 6, 7, 8, 11
TCA_BPF_FLAG_ACT_DIRECT = 1
TC_H_CLSACT, TC_H_MIN_INGRESS, TC_H_MIN_EGRESS = 0xFFFFFFF1, 0xFFF2, 0xFFF3
ETH_P_ALL = 3

_HEADER: Final = struct.Struct("=IHHII")
"""``struct nlmsghdr``"""
_IFINFO: Final = struct.Struct("=BxHiII")
"""``struct ifinfomsg``"""
_TCMSG: Final = struct.Struct("=B3xiIII")
"""``struct tcmsg``"""
_ATTRIBUTE: Final = struct.Struct("=HH")
_U32: Final = struct.Struct("=I")
_RECEIVE_BYTES = 1 << 16
_DUMP_TRIES = 8


class NetlinkError(OSError):
    """The kernel refused a request. ``said``: its own words (extended acknowledgement), or empty."""

    def __init__(self, number: int, what: str, said: str = "") -> None:
        super().__init__(number, os.strerror(number))
        self.what = what
        self.said = said

    def __str__(self) -> str:
        reason = self.said or self.strerror
        return f"{self.what}: {reason} ({errno.errorcode.get(self.errno or 0, self.errno)})"


class Filter(NamedTuple):
    """A tc filter. Numbers other than the kind's are None where it is not of the bpf kind."""

    kind: str
    """``bpf``, ``flower`` …"""
    priority: int
    protocol: int
    handle: int
    name: str | None
    program_id: int | None
    direct: bool


@dataclass(frozen=True, slots=True)
class XdpPrograms:
    """Program ids of an interface, 0 for none."""

    native: int
    generic: int
    offloaded: int

    @property
    def any(self) -> int:
        """The id that runs: at most one of native and generic is there."""
        return self.native or self.generic or self.offloaded


def _attribute(kind: int, value: bytes) -> bytes:
    data = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value
    return data + bytes(-len(data) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in ``data`` by their number; of several of one number the last."""
    found: dict[int, bytes] = {}
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if size < _ATTRIBUTE.size:
            break
        found[kind & NLA_TYPE_MASK] = data[at + _ATTRIBUTE.size : at + size]
        at += size + -size % 4
    return found


def _u32(value: bytes | None) -> int:
    return int(_U32.unpack_from(value)[0]) if value else 0


class RouteSocket:
    """A rtnetlink socket of the calling thread's network namespace."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        try:
            self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)  # 4.12
            self._socket.bind((0, 0))
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def request(self, kind: int, flags: int, body: bytes, what: str) -> list[bytes]:
        """Send one request and wait for its end: the bodies of the answers.

        Raises NetlinkError, with ``what`` in front.
        """
        self._sequence += 1
        size = _HEADER.size + len(body)
        flags |= NLM_F_REQUEST | (0 if flags & NLM_F_DUMP == NLM_F_DUMP else NLM_F_ACK)
        self._socket.send(_HEADER.pack(size, kind, flags, self._sequence, 0) + body)
        answers: list[bytes] = []
        while True:
            for answer, its_flags, data in self._messages():
                if answer in (NLMSG_ERROR, NLMSG_DONE):
                    self._check(answer, its_flags, data, what)
                    return answers
                if its_flags & NLM_F_DUMP_INTR:
                    self._drain()
                    raise InterruptedError(f"{what}: changed while it was read")
                answers.append(data)

    def dump(self, kind: int, body: bytes, what: str) -> list[bytes]:
        """All objects of a kind, read anew where they changed meanwhile."""
        for _ in range(_DUMP_TRIES):
            try:
                return self.request(kind, NLM_F_DUMP, body, what)
            except InterruptedError:
                continue
        raise NetlinkError(errno.EAGAIN, what, "changes faster than it can be read")

    def _messages(self) -> Iterator[tuple[int, int, bytes]]:
        data = self._socket.recv(_RECEIVE_BYTES)
        at = 0
        while at + _HEADER.size <= len(data):
            size, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
            if sequence == self._sequence:
                yield kind, flags, data[at + _HEADER.size : at + size]
            at += max(size + -size % 4, _HEADER.size)

    def _drain(self) -> None:
        while not any(kind in (NLMSG_ERROR, NLMSG_DONE) for kind, _, _ in self._messages()):
            pass

    def _check(self, kind: int, flags: int, data: bytes, what: str) -> None:
        number = -int(struct.unpack_from("=i", data)[0]) if len(data) >= 4 else 0
        if number <= 0:
            return
        # An acknowledgement repeats the request, its header alone if it is capped.
        skip = 4
        if kind == NLMSG_ERROR:
            length = _HEADER.size if flags & NLM_F_CAPPED else _U32.unpack_from(data, 4)[0]
            skip += length + -length % 4
        said = (
            attributes(data[skip:]).get(NLMSGERR_ATTR_MSG, b"") if flags & NLM_F_ACK_TLVS else b""
        )
        raise NetlinkError(number, what, said.rstrip(b"\0").decode("utf-8", "replace"))


# ---- XDP


def xdp_programs(ifindex: int) -> XdpPrograms:
    """The XDP programs of an interface. NetlinkError with ENODEV: there is no such interface."""
    with RouteSocket() as route:
        body = _IFINFO.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0)
        answers = route.request(RTM_GETLINK, 0, body, f"interface {ifindex}")
    if not answers:
        raise NetlinkError(errno.ENODEV, f"interface {ifindex}")
    xdp = attributes(attributes(answers[0][_IFINFO.size :]).get(IFLA_XDP, b""))
    return XdpPrograms(
        native=_u32(xdp.get(IFLA_XDP_DRV_PROG_ID)),
        generic=_u32(xdp.get(IFLA_XDP_SKB_PROG_ID)),
        offloaded=_u32(xdp.get(IFLA_XDP_HW_PROG_ID)),
    )


def remove_xdp(ifindex: int, flags: int) -> None:
    """Take away the program that was attached without a link in the mode of XDP_FLAGS_… ``flags``.

    NetlinkError: EBUSY where a link holds the hook.
    """
    value = _attribute(IFLA_XDP_FD, struct.pack("=i", -1))
    value += _attribute(IFLA_XDP_FLAGS, _U32.pack(flags))
    body = _IFINFO.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0)
    with RouteSocket() as route:
        body += _attribute(IFLA_XDP | NLA_F_NESTED, value)
        route.request(RTM_SETLINK, 0, body, f"XDP program of interface {ifindex}")


# ---- clsact


def parent_of(direction: str) -> int:
    """The filter parent of ``ingress`` or ``egress`` under clsact."""
    low = TC_H_MIN_INGRESS if direction == "ingress" else TC_H_MIN_EGRESS
    return TC_H_CLSACT & 0xFFFF0000 | low


def clsact_kind(ifindex: int) -> str | None:
    """``clsact``, ``ingress`` (its older form, without egress) or None: which one is there."""
    with RouteSocket() as route:
        body = _TCMSG.pack(socket.AF_UNSPEC, ifindex, 0, 0, 0)
        for answer in route.dump(RTM_GETQDISC, body, f"qdiscs of interface {ifindex}"):
            _, index, _, parent, _ = _TCMSG.unpack_from(answer)
            if index == ifindex and parent == TC_H_CLSACT:
                kind = attributes(answer[_TCMSG.size :]).get(TCA_KIND, b"")
                return kind.rstrip(b"\0").decode()
    return None


def _clsact(ifindex: int, kind: int, flags: int) -> None:
    body = _TCMSG.pack(socket.AF_UNSPEC, ifindex, TC_H_CLSACT & 0xFFFF0000, TC_H_CLSACT, 0)
    body += _attribute(TCA_KIND, b"clsact\0")
    with RouteSocket() as route:
        route.request(kind, flags, body, f"clsact of interface {ifindex}")


def add_clsact(ifindex: int) -> bool:
    """Make sure that clsact is there; False if it (or ``ingress``) was already."""
    try:
        _clsact(ifindex, RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
        return False
    return True


def delete_clsact(ifindex: int) -> None:
    """Take clsact away, with all filters in it."""
    _clsact(ifindex, RTM_DELQDISC, 0)


def filters(ifindex: int, direction: str) -> tuple[Filter, ...]:
    """All filters of one direction under clsact, in the order in which they run."""
    body = _TCMSG.pack(socket.AF_UNSPEC, ifindex, 0, parent_of(direction), 0)
    with RouteSocket() as route:
        try:
            answers = route.dump(RTM_GETTFILTER, body, f"filters of interface {ifindex}")
        except NetlinkError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):  # there is no clsact
                return ()
            raise
    found: list[Filter] = []
    for answer in answers:
        _, index, handle, _, info = _TCMSG.unpack_from(answer)
        values = attributes(answer[_TCMSG.size :])
        kind = values.get(TCA_KIND, b"").rstrip(b"\0").decode()
        options = attributes(values.get(TCA_OPTIONS, b""))
        if index != ifindex or not options:  # without options it is the list that filters are in
            continue
        bpf = kind == "bpf"
        name = options.get(TCA_BPF_NAME, b"").rstrip(b"\0").decode("utf-8", "replace")
        found.append(
            Filter(
                kind=kind,
                priority=info >> 16,
                protocol=socket.ntohs(info & 0xFFFF),
                handle=handle,
                name=name if bpf else None,
                program_id=_u32(options.get(TCA_BPF_ID)) or None if bpf else None,
                direct=bpf and bool(_u32(options.get(TCA_BPF_FLAGS)) & TCA_BPF_FLAG_ACT_DIRECT),
            )
        )
    return tuple(found)


def _filter(ifindex: int, direction: str, priority: int, handle: int) -> bytes:
    info = priority << 16 | socket.htons(ETH_P_ALL)
    body = _TCMSG.pack(socket.AF_UNSPEC, ifindex, handle, parent_of(direction), info)
    return body + _attribute(TCA_KIND, b"bpf\0")


def set_filter(
    ifindex: int, direction: str, priority: int, handle: int, program_fd: int, name: str,
    *, new: bool,
) -> None:  # fmt: skip
    """Put a program (direct action, all protocols) into a bpf filter.

    ``new``: the filter must not be there (EEXIST); otherwise it must (ENOENT), and packets run in
    the old or the new program, each in one of them.
    """
    options = _attribute(TCA_BPF_FD, _U32.pack(program_fd))
    options += _attribute(TCA_BPF_NAME, name.encode() + b"\0")
    options += _attribute(TCA_BPF_FLAGS, _U32.pack(TCA_BPF_FLAG_ACT_DIRECT))
    body = _filter(ifindex, direction, priority, handle)
    body += _attribute(TCA_OPTIONS | NLA_F_NESTED, options)
    flags = NLM_F_CREATE | NLM_F_EXCL if new else 0
    with RouteSocket() as route:
        route.request(RTM_NEWTFILTER, flags, body, f"bpf filter of interface {ifindex}")


def delete_filter(ifindex: int, direction: str, priority: int, handle: int) -> None:
    """Take one bpf filter away. NetlinkError with ENOENT: it is not there."""
    body = _filter(ifindex, direction, priority, handle)
    with RouteSocket() as route:
        route.request(RTM_DELTFILTER, 0, body, f"bpf filter of interface {ifindex}")

"""BPF links by file descriptor: attach a program to a hook, exchange it, ask, pin, detach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from bpfchain.loader.programs import Program
from bpfchain.loader.syscall import Fd, bpf, copy_in, fd_by_id, object_info
from bpfchain.loader.uapi import (
    BPF_F_REPLACE,
    LINK_CREATE,
    LINK_CREATE_NETFILTER,
    LINK_CREATE_PERF,
    LINK_CREATE_TCX,
    LINK_DETACH,
    LINK_INFO,
    LINK_UPDATE,
    RAW_TRACEPOINT,
    Cmd,
    Layout,
    LinkType,
)

# Where the target and the attach type are in the type's part of struct bpf_link_info.
_TARGETS = {
    LinkType.XDP: Layout("struct bpf_link_info", "xdp", ifindex="I"),
    LinkType.TCX: Layout("struct bpf_link_info", "tcx", ifindex="I", attach_type="I"),
    LinkType.NETNS: Layout("struct bpf_link_info", "netns", netns_ino="I", attach_type="I"),
    LinkType.TRACING: Layout("struct bpf_link_info", "tracing", attach_type="I", target_obj_id="I"),
    LinkType.CGROUP: Layout("struct bpf_link_info", "cgroup", cgroup_id="Q", attach_type="I"),
}


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """What the kernel says of a link (``struct bpf_link_info``)."""

    id: int
    type: int
    prog_id: int
    target: int | None
    """Interface index (XDP, tcx; 0 once the interface is gone), inode of the network namespace,
    cgroup id, or id of the program that is traced or extended; None for other kinds."""
    attach_type: int | None
    """None where the kernel does not say (XDP has only one)."""


class Link(Fd):
    """An attachment. Without a pin it ends when the last descriptor for it is closed."""

    kind = "bpf-link"

    @classmethod
    def from_id(cls, number: int) -> Self:
        """The link with this id (needs CAP_SYS_ADMIN)."""
        return cls(fd_by_id(Cmd.LINK_GET_FD_BY_ID, number))

    def info(self) -> LinkInfo:
        """Asks the kernel anew."""
        data = bytearray(LINK_INFO.size)
        object_info(self.fileno(), data, "of a link")
        v = LINK_INFO.unpack(data)
        known = v["type"] in LinkType._value2member_map_
        kind = LinkType(v["type"]) if known else v["type"]
        layout = _TARGETS.get(LinkType(kind)) if known else None
        special = layout.unpack(LINK_INFO.raw(data, "_union")) if layout else {}
        return LinkInfo(
            id=v["id"],
            type=kind,
            prog_id=v["prog_id"],
            target=next((v for name, v in special.items() if name != "attach_type"), None),
            attach_type=special.get("attach_type"),
        )

    def update(self, program: Program, old: Program | None = None) -> None:
        """Exchange the program in one step (BPF_LINK_UPDATE).

        With ``old`` only if that one is still attached: EPERM otherwise. The kernel exchanges a
        cgroup program for one of another attach type without a word; the caller compares. EINVAL
        or EOPNOTSUPP where the hook cannot (netfilter, raw_tp, perf_event). Packets may run in the
        program before for one RCU grace period more.
        """
        attr = LINK_UPDATE.pack(
            link_fd=self.fileno(),
            new_prog_fd=program.fileno(),
            flags=BPF_F_REPLACE if old else 0,
            old_prog_fd=old.fileno() if old else 0,
        )
        bpf(Cmd.LINK_UPDATE, attr)

    def detach(self) -> None:
        """End the attachment now, whoever else holds the link (BPF_LINK_DETACH, 5.9)."""
        bpf(Cmd.LINK_DETACH, LINK_DETACH.pack(link_fd=self.fileno()))


def link_create(program: Program, target: int, attach_type: int, flags: int = 0) -> Link:
    """Attach ``program`` (BPF_LINK_CREATE) at ``target``.

    ``target``: the interface index for XDP and tcx, else a descriptor of the cgroup or network
    namespace. ``flags``: XDP_FLAGS_DRV_MODE or XDP_FLAGS_SKB_MODE for XDP; tcx appends without
    flags (see :func:`link_create_tcx`). EBUSY: XDP is taken.
    """
    attr = LINK_CREATE.pack(
        prog_fd=program.fileno(), target_fd=target, attach_type=attach_type, flags=flags
    )
    return Link(bpf(Cmd.LINK_CREATE, attr, f"at target {target}"))


def link_create_tcx(
    program: Program,
    ifindex: int,
    attach_type: int,
    flags: int = 0,
    *,
    relative: int = 0,
    revision: int = 0,
) -> Link:
    """Attach on tcx (6.6) before or after ``relative`` (a descriptor or id, as ``flags`` says).

    ESTALE if ``revision`` is given and someone changed the hook since.
    """
    attr = LINK_CREATE_TCX.pack(
        **{
            "prog_fd": program.fileno(),
            "target_ifindex": ifindex,
            "attach_type": attach_type,
            "flags": flags,
            "tcx.relative_fd": relative,
            "tcx.expected_revision": revision,
        }
    )
    return Link(bpf(Cmd.LINK_CREATE, attr, f"at interface {ifindex}"))


def link_create_netfilter(
    program: Program, attach_type: int, pf: int, hook: int, priority: int, flags: int = 0
) -> Link:
    """Attach to netfilter (6.4) in the caller's network namespace: protocol family, hook number."""
    attr = LINK_CREATE_NETFILTER.pack(
        **{
            "prog_fd": program.fileno(),
            "attach_type": attach_type,
            "netfilter.pf": pf,
            "netfilter.hooknum": hook,
            "netfilter.priority": priority,
            "netfilter.flags": flags,
        }
    )
    return Link(bpf(Cmd.LINK_CREATE, attr, f"at netfilter hook {hook}"))


def link_create_perf(program: Program, event_fd: int, attach_type: int, cookie: int = 0) -> Link:
    """Attach to a perf event, which is how kprobes and tracepoints are attached (5.15)."""
    attr = LINK_CREATE_PERF.pack(
        **{
            "prog_fd": program.fileno(),
            "target_fd": event_fd,
            "attach_type": attach_type,
            "perf_event.bpf_cookie": cookie,
        }
    )
    return Link(bpf(Cmd.LINK_CREATE, attr, "at a perf event"))


def raw_tracepoint_open(program: Program, name: str) -> Link:
    """Attach to the raw tracepoint ``name``."""
    address, keep = copy_in(name.encode() + b"\0")
    attr = RAW_TRACEPOINT.pack(name=address, prog_fd=program.fileno())
    link = Link(bpf(Cmd.RAW_TRACEPOINT_OPEN, attr, f"at {name}"))
    del keep
    return link

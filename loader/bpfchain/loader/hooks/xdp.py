"""The XDP hook of an interface: native or generic, by bpf_link."""

from __future__ import annotations

import errno
from collections.abc import Collection
from pathlib import Path

from bpfchain.loader import netlink, query
from bpfchain.loader.hooks.explain import attach_error
from bpfchain.loader.hooks.linked import LinkAttachment, pinned_link
from bpfchain.loader.hooks.protocol import Attachment, Foreign, Target
from bpfchain.loader.hooks.targets import interface_index
from bpfchain.loader.links import Link, link_create
from bpfchain.loader.netlink import NetlinkError
from bpfchain.loader.programs import Program
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import (
    XDP_FLAGS_DRV_MODE,
    XDP_FLAGS_SKB_MODE,
    AttachType,
    LinkType,
)
from bpfchain.transform.errors import HostError

_FLAGS = {"native": XDP_FLAGS_DRV_MODE, "generic": XDP_FLAGS_SKB_MODE, None: 0}


class XdpDriver:
    """Attaches to XDP. One program an interface: anything else there is in the way."""

    swaps = True
    holds_array = True
    shared = False

    def attach(self, program: Program, target: Target, *, force: bool = False) -> Attachment:
        """Attach by link in the target's mode. With ``force`` what is there goes first, and
        packets meanwhile meet no program."""
        ifindex = interface_index(target)
        flags = _FLAGS[target.mode]
        try:
            return LinkAttachment(link_create(program, ifindex, AttachType.XDP, flags), target)
        except BpfError as error:
            taken = error.errno in (errno.EBUSY, errno.EEXIST)
            holders = self.foreign(target, ()) if taken else ()
            if not (taken and force):
                raise self._explained(error, target, holders, force) from error
        self._displace(ifindex, target)
        try:
            return LinkAttachment(link_create(program, ifindex, AttachType.XDP, flags), target)
        except BpfError as error:
            raise self._explained(error, target, self.foreign(target, ()), force) from error

    def find(
        self, target: Target, *, pin: Path | None = None, own: Collection[int] = ()
    ) -> Attachment | None:
        """From the pin; without one, by its program's id (needs CAP_SYS_ADMIN)."""
        ifindex = interface_index(target)
        link = pinned_link(pin, LinkType.XDP, ifindex)
        if link is not None:
            return LinkAttachment(link, target, pin=pin)
        present = netlink.xdp_programs(ifindex).any
        if present not in own:
            return None
        for info in query.links_of(present, LinkType.XDP) or ():
            if info.target == ifindex:
                return LinkAttachment(Link.from_id(info.id), target)
        return None

    def foreign(self, target: Target, own: Collection[int]) -> tuple[Foreign, ...]:
        """A program that is not the chain's, with what a libxdp dispatcher calls."""
        ifindex = interface_index(target)
        programs = netlink.xdp_programs(ifindex)
        modes = (("native", programs.native), ("generic", programs.generic),
                 ("offloaded", programs.offloaded))  # fmt: skip
        return tuple(
            _described(number, mode, target, ifindex)
            for mode, number in modes
            if number and number not in own
        )

    def _displace(self, ifindex: int, target: Target) -> None:
        programs = netlink.xdp_programs(ifindex)
        flags = XDP_FLAGS_DRV_MODE if programs.native else XDP_FLAGS_SKB_MODE
        number = programs.native or programs.generic
        if not number:
            return
        held = query.links_of(number, LinkType.XDP)
        for info in held or ():
            if info.target == ifindex:
                with Link.from_id(info.id) as link:
                    link.detach()
                return
        try:
            netlink.remove_xdp(ifindex, flags)
        except NetlinkError as error:
            hint = None
            if held is None:
                hint = "a bpf_link of others can be detached only with CAP_SYS_ADMIN"
            raise HostError(
                f"cannot displace {query.called(number)} from {target}: {error.said or error}", hint
            ) from error

    def _explained(
        self, error: BpfError, target: Target, holders: tuple[Foreign, ...], force: bool
    ) -> Exception:
        if error.errno == errno.EOPNOTSUPP and target.mode == "native":
            return HostError(
                f"cannot attach to {target}: the driver of {target.interface} has no native XDP",
                "use --mode generic",
            )
        if error.errno == errno.EINVAL and not holders:
            return HostError(
                f"cannot attach to {target}: the kernel or the interface's driver takes no such "
                "program (EINVAL)",
                "a driver may want a smaller MTU, a program with frags (xdp.frags), LRO off or "
                "another mode: see dmesg, or try --mode generic",
            )
        return attach_error(error, target, holders, force=force)


def _described(number: int, mode: str, target: Target, ifindex: int) -> Foreign:
    name = query.program_name(number)
    if query.is_dispatcher(number, ifindex):
        inside = query.dispatched(number)
        calls = "" if inside is None else f" that calls {len(inside)} programs"
        if inside:
            calls += ": " + ", ".join(query.called(one) for one in inside)
        return Foreign(
            "libxdp dispatcher", number, name,
            f"a libxdp dispatcher (id {number}, {mode}){calls}; xdp-loader unloads it",
            exclusive=True,
        )  # fmt: skip
    held = query.links_of(number, LinkType.XDP)
    if held is None:
        how = f"{mode}"
    elif any(info.target == ifindex for info in held):
        how = f"{mode}, by a bpf_link"
    else:
        how = f"{mode}, without a link: `ip link set dev {target.interface} {_ip_word(mode)} off`"
    who = (
        f"program {name}" if name else "a program of unknown name" if name is None else "a program"
    )
    return Foreign("xdp program", number, name, f"{who} (id {number}, {how})", exclusive=True)


def _ip_word(mode: str) -> str:
    return {"native": "xdpdrv", "generic": "xdpgeneric", "offloaded": "xdpoffload"}[mode]

"""The clsact qdisc of an interface: the chain's head in a bpf filter, direct action.

The filter says by its name whose it is, and whether the qdisc was made for it, so that whoever
detaches it knows whether the qdisc is to go as well.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from bpfchain.loader import netlink, query
from bpfchain.loader.hooks.explain import attach_error, changed_error, detach_error, swap_error
from bpfchain.loader.hooks.protocol import Attachment, Foreign, NoSuchHookError, Target
from bpfchain.loader.hooks.targets import interface_index
from bpfchain.loader.netlink import Filter, NetlinkError
from bpfchain.loader.programs import Program
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import AttachType
from bpfchain.transform.errors import HostError

NAME = "bpfchain"
NAME_WITH_QDISC = "bpfchain+clsact"
"""The filter's name where clsact was made for a chain."""

PRIORITY = 49088
"""Ahead of the filters that tc gives a priority itself (49152 and what is just below)."""
HANDLE = 1

_TCX = {"ingress": AttachType.TCX_INGRESS, "egress": AttachType.TCX_EGRESS}


def lacks_qdisc(target: Target) -> bool:
    """Whether attaching at ``target`` would make the qdisc first."""
    return target.kind == "clsact" and netlink.clsact_kind(interface_index(target)) is None


def remove_unused_qdisc(target: Target) -> None:
    """Delete clsact if no filter is in it."""
    ifindex = interface_index(target)
    if netlink.clsact_kind(ifindex) == "clsact" and not any(
        netlink.filters(ifindex, direction) for direction in _TCX
    ):
        netlink.delete_clsact(ifindex)


class ClsactAttachment:
    """A bpf filter, which stays until it is deleted, whoever made it."""

    pinnable = False
    lasts = True

    def __init__(self, target: Target, priority: int, handle: int, name: str, program: int) -> None:
        self.target = target
        self._ifindex = interface_index(target)
        assert target.direction
        self._direction = target.direction
        self._priority = priority
        self._handle = handle
        self._name = name
        self._expected = program

    @property
    def program_id(self) -> int:
        """Id of the filter's program; 0: there is no such filter any more."""
        for one in netlink.filters(self._ifindex, self._direction):
            if (one.priority, one.handle, one.kind) == (self._priority, self._handle, "bpf"):
                return one.program_id or 0
        return 0

    def swap(self, new: Program, old: Program) -> None:
        """Change the filter's program: each packet runs in one of both.

        That ``old`` is there is looked at before, not in the same step: netlink has none for it.
        """
        found, expected = self.program_id, old.info().id
        if found != expected:
            raise changed_error(self.target, found, expected)
        try:
            netlink.set_filter(
                self._ifindex, self._direction, self._priority, self._handle, new.fileno(),
                self._name, new=False,
            )  # fmt: skip
        except NetlinkError as error:
            raise swap_error(error, self.target, found, expected) from error
        self._expected = new.info().id

    def detach(self) -> None:
        """Delete the filter, with the qdisc if it was made for a chain and nothing else is in it:
        in one step then, so that a kill leaves no qdisc behind.

        HostError if the filter has another program than the one that it was given here.
        """
        found = self.program_id
        if found == 0:
            return
        if found != self._expected:
            raise changed_error(self.target, found, self._expected)
        present = sum(len(netlink.filters(self._ifindex, direction)) for direction in _TCX)
        try:
            if self._name == NAME_WITH_QDISC and present == 1:
                netlink.delete_clsact(self._ifindex)
            else:
                netlink.delete_filter(self._ifindex, self._direction, self._priority, self._handle)
        except NetlinkError as error:
            raise detach_error(error, self.target) from error

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Nothing: a filter cannot be pinned, and stays without."""

    def unpin(self, path: str | os.PathLike[str]) -> None:
        """Nothing: there is no pin."""

    def close(self) -> None:
        """Nothing: no descriptor is held."""

    def __repr__(self) -> str:
        return f"<ClsactAttachment {self.target} priority {self._priority}>"


class ClsactDriver:
    """Attaches by a clsact filter, beside those of others."""

    swaps = True
    holds_array = False
    shared = True

    def attach(self, program: Program, target: Target, *, force: bool = False) -> Attachment:
        """Add a filter at the target's priority, or at the highest free number up to PRIORITY."""
        ifindex = interface_index(target)
        assert target.direction
        try:
            made = netlink.add_clsact(ifindex)
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                raise NoSuchHookError(
                    f"cannot attach to {target}: this kernel has no clsact qdisc (sch_ingress)"
                ) from error
            raise attach_error(error, target) from error
        if not made and target.direction == "egress" and netlink.clsact_kind(ifindex) == "ingress":
            raise HostError(
                f"cannot attach to {target}: the qdisc ingress is there, which has no egress",
                f"replace it by clsact: tc qdisc replace dev {target.interface} clsact",
            )
        try:
            return self._add(program, target, ifindex, made)
        except BaseException:
            if made:
                netlink.delete_clsact(ifindex)
            raise

    def _add(self, program: Program, target: Target, ifindex: int, made: bool) -> Attachment:
        assert target.direction
        present = [one for way in _TCX for one in netlink.filters(ifindex, way)]
        made = made or any(one.name == NAME_WITH_QDISC for one in present)
        name = NAME_WITH_QDISC if made else NAME
        taken = {one.priority for one in netlink.filters(ifindex, target.direction)}
        priority = target.priority or next(p for p in range(PRIORITY, 0, -1) if p not in taken)
        try:
            netlink.set_filter(
                ifindex, target.direction, priority, HANDLE, program.fileno(), name, new=True
            )
        except NetlinkError as error:
            if target.priority in taken:
                raise HostError(
                    f"cannot attach to {target}: a filter of priority {priority} is there",
                    "choose another priority, or none",
                ) from error
            if error.said:
                raise HostError(f"cannot attach to {target}: {error.said}") from error
            if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
                raise NoSuchHookError(
                    f"cannot attach to {target}: this kernel has no bpf filter (cls_bpf)"
                ) from error
            raise attach_error(error, target) from error
        return ClsactAttachment(target, priority, HANDLE, name, program.info().id)

    def find(
        self, target: Target, *, pin: Path | None = None, own: Collection[int] = ()
    ) -> Attachment | None:
        """The filter that has one of the programs ``own``."""
        assert target.direction
        for one in netlink.filters(interface_index(target), target.direction):
            if one.program_id is not None and one.program_id in own:
                return ClsactAttachment(
                    target, one.priority, one.handle, one.name or "", one.program_id
                )
        return None

    def foreign(self, target: Target, own: Collection[int]) -> tuple[Foreign, ...]:
        """Programs on tcx, which run before all filters, and other filters."""
        assert target.direction
        ifindex = interface_index(target)
        found: list[Foreign] = []
        try:
            before = query.prog_query(ifindex, _TCX[target.direction]).programs
        except BpfError as error:
            if error.errno != errno.EINVAL:  # a kernel without tcx
                raise attach_error(error, target) from error
            before = ()
        for ahead in before:
            if ahead.program_id not in own:
                found.append(
                    Foreign(
                        "tcx program", ahead.program_id, query.program_name(ahead.program_id),
                        f"{query.called(ahead.program_id)} on tcx runs before all clsact filters",
                    )
                )  # fmt: skip
        filters = netlink.filters(ifindex, target.direction)
        ours = next((one for one in filters if one.program_id in own), None)
        limit = target.priority or PRIORITY
        for one in others(filters, own):
            first = filters.index(one) < filters.index(ours) if ours else one.priority < limit
            found.append(described(one, f"runs {'before' if first else 'behind'} the chain"))
        return tuple(found)


def others(filters: Iterable[Filter], own: Collection[int]) -> Iterator[Filter]:
    """The filters that are not the chain's. A filter of many parts (u32) comes once."""
    seen: set[tuple[str, int]] = set()
    for one in filters:
        if one.program_id is None:
            if (one.kind, one.priority) not in seen:
                yield one
            seen.add((one.kind, one.priority))
        elif one.program_id not in own:
            yield one


def described(one: Filter, place: str) -> Foreign:
    """A filter that is not the chain's; ``place``: how it stands to the chain."""
    if one.program_id is None:
        what = f"{one.kind} filters of clsact, priority {one.priority}, {place}"
        return Foreign("clsact filter", None, None, what)
    what = f"{query.called(one.program_id)} in a clsact filter, priority {one.priority}, {place}"
    return Foreign("clsact filter", one.program_id, query.program_name(one.program_id), what)

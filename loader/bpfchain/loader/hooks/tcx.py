"""The tcx hook of an interface (6.6): a list of programs, each by bpf_link."""

from __future__ import annotations

import errno
from collections.abc import Collection
from pathlib import Path

from bpfchain.loader import netlink, query
from bpfchain.loader.hooks.clsact import described, others
from bpfchain.loader.hooks.explain import attach_error
from bpfchain.loader.hooks.linked import LinkAttachment, pinned_link
from bpfchain.loader.hooks.protocol import Attachment, Foreign, NoSuchHookError, Target
from bpfchain.loader.hooks.targets import interface_index
from bpfchain.loader.links import Link, link_create_tcx
from bpfchain.loader.programs import Program
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import AttachType, LinkType
from bpfchain.transform.errors import HostError

_TYPES = {"ingress": AttachType.TCX_INGRESS, "egress": AttachType.TCX_EGRESS}


def attach_type(target: Target) -> AttachType:
    """BPF_TCX_INGRESS or BPF_TCX_EGRESS."""
    assert target.direction, "a tcx target has a direction"
    return _TYPES[target.direction]


class TcxDriver:
    """Attaches to tcx, behind what is there (``force`` changes nothing: nothing is displaced)."""

    swaps = True
    holds_array = True
    shared = True

    def attach(self, program: Program, target: Target, *, force: bool = False) -> Attachment:
        """Attach by link. NoSuchHookError where the kernel has no tcx: clsact does it there."""
        ifindex = interface_index(target)
        kind = attach_type(target)
        try:
            return LinkAttachment(link_create_tcx(program, ifindex, kind), target)
        except BpfError as error:
            if error.errno == errno.EINVAL and not self._present(ifindex, kind):
                raise NoSuchHookError(
                    f"cannot attach to {target}: this kernel has no tcx (6.6 has)",
                    "a clsact filter does it there",
                ) from error
            if error.errno == errno.ERANGE:
                count = len(query.prog_query(ifindex, kind).programs)
                raise HostError(
                    f"cannot attach to {target}: {count} programs are there, no more fit"
                ) from error
            raise attach_error(error, target) from error

    def find(
        self, target: Target, *, pin: Path | None = None, own: Collection[int] = ()
    ) -> Attachment | None:
        """From the pin; without one, by the program's id (needs CAP_SYS_ADMIN)."""
        ifindex = interface_index(target)
        kind = attach_type(target)
        link = pinned_link(pin, LinkType.TCX, ifindex)
        if link is not None:
            if link.info().attach_type == kind:
                return LinkAttachment(link, target, pin=pin)
            link.close()
        if not own:
            return None
        for one in query.prog_query(ifindex, kind).programs:
            if one.program_id in own and one.link_id is not None:
                try:
                    return LinkAttachment(Link.from_id(one.link_id), target)
                except BpfError as error:
                    if error.errno != errno.EPERM:
                        raise
        return None

    def foreign(self, target: Target, own: Collection[int]) -> tuple[Foreign, ...]:
        """Neighbours on tcx, before and behind, and clsact filters, which run after all of tcx."""
        ifindex = interface_index(target)
        try:
            programs = query.prog_query(ifindex, attach_type(target)).programs
        except BpfError as error:
            if error.errno != errno.EINVAL:
                raise attach_error(error, target) from error
            programs = ()
        ours = next((i for i, one in enumerate(programs) if one.program_id in own), None)
        found: list[Foreign] = []
        for i, one in enumerate(programs):
            if one.program_id in own:
                continue
            place = "runs before the chain" if ours is None or i < ours else (
                "runs behind the chain, if that lets a packet on to it (NEXT)"
            )  # fmt: skip
            found.append(
                Foreign(
                    "tcx program", one.program_id, query.program_name(one.program_id),
                    f"{query.called(one.program_id)} on tcx {place}",
                )
            )  # fmt: skip
        assert target.direction
        found += (
            described(one, "runs behind all of tcx, if that lets a packet on to it (NEXT)")
            for one in others(netlink.filters(ifindex, target.direction), own)
        )
        return tuple(found)

    def _present(self, ifindex: int, kind: AttachType) -> bool:
        try:
            query.prog_query(ifindex, kind)
        except BpfError as error:
            return error.errno != errno.EINVAL
        return True

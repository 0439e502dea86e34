"""Cgroup hooks (version 2): every kind that has a bpf_link, beside the programs of others."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from bpfchain.loader import caps, query
from bpfchain.loader.hooks.explain import NEEDS, attach_error
from bpfchain.loader.hooks.linked import LinkAttachment, pinned_link
from bpfchain.loader.hooks.protocol import Attachment, Foreign, Target
from bpfchain.loader.links import Link, link_create
from bpfchain.loader.programs import Program
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import BPF_F_ALLOW_MULTI, LinkType
from bpfchain.transform.errors import HostError, RefusedError

_NO_DESCRIPTOR = 0xFFFFFFFF


def takes(program: Program, attach_type: int) -> bool:
    """Whether the kernel would attach ``program`` with ``attach_type``; nothing is attached.

    BPF_LINK_CREATE looks at the attach type (``bpf_prog_attach_check_attach_type``) before the
    cgroup's descriptor, which is none here: EBADF means that the type is right. (The kernel tells
    a program's attach type in no other way, and BPF_LINK_UPDATE does not look at it.)
    """
    try:
        link_create(program, _NO_DESCRIPTOR, attach_type).close()
    except BpfError as error:
        return error.errno == errno.EBADF
    return False


class CgroupAttachment(LinkAttachment):
    """A program at a cgroup."""

    def _before_swap(self, new: Program) -> None:
        hook = self.target.hook
        if not takes(new, hook.attach_type_id):
            raise RefusedError(
                f"cannot exchange the program at {self.target}: the new one is not of attach "
                f"type {hook.attach_type}",
                "the kernel would take it without a word and run it on the wrong events",
            )


class CgroupDriver:
    """Attaches to cgroups by links, which means BPF_F_ALLOW_MULTI."""

    swaps = True
    holds_array = True
    shared = True

    def attach(self, program: Program, target: Target, *, force: bool = False) -> Attachment:
        """Attach behind the programs that are there (``force`` changes nothing)."""
        kind = target.hook.attach_type_id
        with _opened(target) as fd:
            try:
                return CgroupAttachment(link_create(program, fd, kind), target)
            except BpfError as error:
                if error.errno == errno.EPERM and not caps.missing(NEEDS["cgroup"]):
                    self._in_the_way(target, error)
                if error.errno in (errno.ERANGE, errno.E2BIG):
                    raise HostError(
                        f"cannot attach to {target}: as many programs as fit are there"
                    ) from error
                raise attach_error(error, target) from error

    def find(
        self, target: Target, *, pin: Path | None = None, own: Collection[int] = ()
    ) -> Attachment | None:
        """From the pin; without one, by the program's id (needs CAP_SYS_ADMIN)."""
        assert target.cgroup
        number, kind = os.stat(target.cgroup).st_ino, target.hook.attach_type_id
        link = pinned_link(pin, LinkType.CGROUP, number)
        if link is not None:
            if link.info().attach_type == kind:
                return CgroupAttachment(link, target, pin=pin)
            link.close()
        for program in own:
            for info in query.links_of(program, LinkType.CGROUP) or ():
                if (info.target, info.attach_type) == (number, kind):
                    return CgroupAttachment(Link.from_id(info.id), target)
        return None

    def foreign(self, target: Target, own: Collection[int]) -> tuple[Foreign, ...]:
        """Other programs at the cgroup, and those of its ancestors, which run there too."""
        kind = target.hook.attach_type_id
        with _opened(target) as fd:
            try:
                here = [one.program_id for one in query.prog_query(fd, kind).programs]
                running = [
                    one.program_id for one in query.prog_query(fd, kind, effective=True).programs
                ]
            except BpfError as error:
                raise attach_error(error, target) from error
        ours = next((i for i, one in enumerate(here) if one in own), len(here))
        found = [
            (one, f"at this cgroup, runs {'before' if i < ours else 'behind'} the chain")
            for i, one in enumerate(here)
        ]
        found += [(one, "at a cgroup above, runs here too") for one in running if one not in here]
        return tuple(
            Foreign("cgroup program", one, query.program_name(one), f"{query.called(one)} {place}")
            for one, place in found
            if one not in own
        )

    def _in_the_way(self, target: Target, error: BpfError) -> None:
        """Raises HostError if a program at the cgroup or above it forbids others beside it."""
        assert target.cgroup
        folder = Path(target.cgroup)
        for place in (folder, *folder.parents):
            if not (place / "cgroup.procs").exists():
                break
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            try:
                there = query.prog_query(fd, target.hook.attach_type_id)
            except BpfError:
                return
            finally:
                os.close(fd)
            if there.programs and not there.flags & BPF_F_ALLOW_MULTI:
                who = ", ".join(query.called(one.program_id) for one in there.programs)
                raise HostError(
                    f"cannot attach to {target}: {who} at {place} was attached so that nothing "
                    "else can be (without BPF_F_ALLOW_MULTI)",
                    "detach it first: `bpftool cgroup detach`",
                ) from error


@contextmanager
def _opened(target: Target) -> Iterator[int]:
    assert target.cgroup
    try:
        fd = os.open(target.cgroup, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise HostError(f"cannot open cgroup {target.cgroup}: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)

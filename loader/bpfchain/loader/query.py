"""Asking the kernel: what is attached to a hook, which objects exist, what an id stands for.

Ids can be told by everybody, but opened only with CAP_SYS_ADMIN: without it names are None, which
means unknown.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bpfchain.loader.links import Link, LinkInfo
from bpfchain.loader.programs import Program, ProgramInfo
from bpfchain.loader.syscall import BpfError, bpf
from bpfchain.loader.uapi import (
    BPF_F_QUERY_EFFECTIVE,
    GET_ID,
    PROG_QUERY,
    Cmd,
    LinkType,
)

DISPATCHER = "xdp_dispatcher"
"""The name of libxdp's dispatcher program, by which libxdp itself knows it."""
DISPATCHER_PINS = Path("/sys/fs/bpf/xdp")

_PROGRAMS_FIRST = 64  # of one cgroup or one tcx hook


@dataclass(frozen=True, slots=True)
class Attached:
    """One program of a hook that holds several."""

    program_id: int
    link_id: int | None
    """None: attached without a link, or the hook does not tell (cgroups)."""


@dataclass(frozen=True, slots=True)
class Hooked:
    """What BPF_PROG_QUERY says of a hook, programs in the order in which they run."""

    programs: tuple[Attached, ...]
    flags: int
    """BPF_F_ALLOW_… (cgroups)."""
    revision: int
    """Counts the changes of a tcx hook; 0 for others."""


def prog_query(target: int, attach_type: int, *, effective: bool = False) -> Hooked:
    """Ask for the programs at ``target``: an interface index (tcx), else a descriptor.

    ``effective``: those that run at a cgroup, its ancestors' included. Needs CAP_NET_ADMIN, or
    BpfError EPERM; EINVAL: the kernel knows no such attach type.
    """
    room, with_links = _PROGRAMS_FIRST, not effective
    while True:
        ids, links = (ctypes.c_uint32 * room)(), (ctypes.c_uint32 * room)()
        attr = PROG_QUERY.pack(
            target_fd=target,
            attach_type=attach_type,
            query_flags=BPF_F_QUERY_EFFECTIVE if effective else 0,
            prog_ids=ctypes.addressof(ids),
            prog_cnt=room,
            link_ids=ctypes.addressof(links) if with_links else 0,
        )
        try:
            bpf(Cmd.PROG_QUERY, attr, f"at target {target}")
        except BpfError as error:
            if error.errno == errno.ENOSPC:
                room = max(PROG_QUERY.unpack(attr)["prog_cnt"], 2 * room)
                continue
            if error.errno in (errno.EINVAL, errno.E2BIG) and with_links:
                with_links = False  # before 6.6
                continue
            raise
        v = PROG_QUERY.unpack(attr)
        pairs = zip(ids[: v["prog_cnt"]], links, strict=False)
        return Hooked(
            programs=tuple(Attached(program, link or None) for program, link in pairs),
            flags=v["attach_flags"],
            revision=v["revision"],
        )


def _ids(cmd: Cmd) -> Iterator[int]:
    last = 0
    while True:
        attr = GET_ID.pack(start_id=last)
        try:
            bpf(cmd, attr, f"after id {last}")
        except BpfError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        last = GET_ID.unpack(attr)["next_id"]
        yield last


def program_ids() -> Iterator[int]:
    """Ids of all programs of the host. BpfError EPERM without CAP_SYS_ADMIN."""
    return _ids(Cmd.PROG_GET_NEXT_ID)


def map_ids() -> Iterator[int]:
    """Ids of all maps of the host. BpfError EPERM without CAP_SYS_ADMIN."""
    return _ids(Cmd.MAP_GET_NEXT_ID)


def link_ids() -> Iterator[int]:
    """Ids of all links of the host (5.8). BpfError EPERM without CAP_SYS_ADMIN."""
    return _ids(Cmd.LINK_GET_NEXT_ID)


def program_info(number: int) -> ProgramInfo | None:
    """What the program with this id is; None: not allowed to know, or it is gone."""
    try:
        with Program.from_id(number) as program:
            return program.info()
    except BpfError as error:
        if error.errno in (errno.EPERM, errno.ENOENT):
            return None
        raise


def program_name(number: int) -> str | None:
    """The program's name (empty if it has none); None: unknown."""
    info = program_info(number)
    return info.name if info else None


def called(number: int) -> str:
    """``name (id 7)``, ``program 7`` of one without, ``program 7 of unknown name``."""
    name = program_name(number)
    if name is None:
        return f"program {number} of unknown name"
    return f"{name} (id {number})" if name else f"program {number}"


def links() -> Iterator[LinkInfo]:
    """All links of the host. BpfError EPERM without CAP_SYS_ADMIN."""
    for number in link_ids():
        try:
            with Link.from_id(number) as link:
                yield link.info()
        except BpfError as error:
            if error.errno != errno.ENOENT:  # gone meanwhile
                raise


def links_of(program_id: int, kind: LinkType) -> tuple[LinkInfo, ...] | None:
    """The links of that kind that hold the program; None: not allowed to know."""
    try:
        return tuple(one for one in links() if one.type == kind and one.prog_id == program_id)
    except BpfError as error:
        if error.errno in (errno.EPERM, errno.EINVAL):  # EINVAL: before 5.8
            return None
        raise


def is_dispatcher(program_id: int, ifindex: int) -> bool:
    """Whether an interface's XDP program is libxdp's dispatcher, by its name or by libxdp's pins."""
    if program_name(program_id) == DISPATCHER:
        return True
    try:
        return (DISPATCHER_PINS / f"dispatch-{ifindex}-{program_id}").exists()
    except PermissionError:
        return False


def dispatched(program_id: int) -> tuple[int, ...] | None:
    """Ids of the programs that a libxdp dispatcher calls (links that extend it); None: unknown."""
    try:
        # An extension's link has no attach type; fentry and fexit (xdpdump) have theirs.
        found = [
            one.prog_id
            for one in links()
            if (one.type, one.target, one.attach_type) == (LinkType.TRACING, program_id, 0)
        ]
    except BpfError as error:
        if error.errno in (errno.EPERM, errno.EINVAL):
            return None
        raise
    return tuple(found)

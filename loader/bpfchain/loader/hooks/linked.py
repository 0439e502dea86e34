"""Attachments that are one bpf_link: exchange, detach, pin and find again are the same for all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from bpfchain.loader.hooks.explain import swap_error
from bpfchain.loader.hooks.protocol import SwapNotPossibleError, Target
from bpfchain.loader.links import Link, LinkInfo
from bpfchain.loader.programs import Program
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import LinkType


class LinkAttachment:
    """A program attached by a bpf_link."""

    pinnable = True
    lasts = True

    def __init__(
        self, link: Link, target: Target, *, swaps: bool = True, pin: Path | None = None
    ) -> None:
        self.link = link
        self.target = target
        self._swaps = swaps
        self._pin = pin

    @property
    def program_id(self) -> int:
        """Id of the attached program; 0 once the link was detached or its hook is gone."""
        info = self.link.info()
        return 0 if is_defunct(info) else info.prog_id

    def swap(self, new: Program, old: Program) -> None:
        """One BPF_LINK_UPDATE that the kernel refuses if ``old`` is not attached."""
        if not self._swaps:
            raise SwapNotPossibleError(
                f"{self.target} cannot exchange its program", "load the chain with --entry"
            )
        self._before_swap(new)
        try:
            self.link.update(new, old)
        except BpfError as error:
            raise swap_error(error, self.target, self.program_id, old.info().id) from error

    def _before_swap(self, new: Program) -> None:
        """What a kind of hook checks that the kernel does not."""

    def detach(self) -> None:
        """End the attachment: by BPF_LINK_DETACH where the kind has it, else with its pin and
        descriptor, which are the last references then."""
        try:
            self.link.detach()
        except BpfError as error:
            if error.errno not in (errno.EOPNOTSUPP, 524):
                raise
            # The pin first: the kernel ends a link at once when a descriptor was the last
            # reference to it, but some time later when a pin was.
            if self._pin is not None:
                self.unpin(self._pin)
        self.close()

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Pin the link. BpfError EEXIST if the path is taken."""
        self.link.pin(path)
        self._pin = Path(path)

    def unpin(self, path: str | os.PathLike[str]) -> None:
        """Remove the pin at ``path``, if there is one."""
        Path(path).unlink(missing_ok=True)

    def close(self) -> None:
        """Give the descriptor back."""
        self.link.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.target} {self.link!r}>"


def is_defunct(info: LinkInfo) -> bool:
    """Whether the link still exists but nothing is attached by it: its hook went, or a detach."""
    on_something = (LinkType.XDP, LinkType.TCX, LinkType.CGROUP, LinkType.NETNS)
    return info.prog_id == 0 or (info.type in on_something and not info.target)


def pinned_link(pin: Path | None, kind: LinkType, where: int | None) -> Link | None:
    """The link at ``pin``, if it is attached, of that kind and at ``where`` (None: anywhere)."""
    if pin is None:
        return None
    try:
        link = Link.get_pinned(pin)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    info = link.info()
    if info.type == kind and not is_defunct(info) and where in (None, info.target):
        return link
    link.close()
    return None

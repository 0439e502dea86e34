"""Where a chain's state is on the host: paths below a bpffs, and names that a bpffs accepts.

``ROOT/<network namespace, or "host">/<kind of hook>/<target>/<chain>/``, every part escaped so that
it can be read back. A bpffs refuses names with a dot.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bpfchain.loader import netns
from bpfchain.loader.hooks.protocol import Target

BPFFS: Final = Path("/sys/fs/bpf")
FOLDER: Final = "bpfchain"
HOST: Final = "host"
"""In the place of a network namespace, for targets that belong to none (cgroups, tracepoints)."""

_PLAIN = re.compile(r"[A-Za-z0-9_@+-]")
_ESCAPED = re.compile(r"%([0-9A-F]{2})")
_SHORTENED = re.compile(r"(?:[A-Za-z0-9_@+-]|%[0-9A-F]{2})*%~[0-9a-f]{32}")
_LONGEST = 200  # bytes; the kernel takes 255, a prefix must fit too
_CUT, _DIGEST = 150, 32


def escape(name: str) -> str:
    """``name`` as one file name of a bpffs; :func:`unescape` gives it back.

    Bytes other than ``A-Z a-z 0-9 _ @ + -`` become ``%XX``; the empty name is ``%``. What would be
    longer than 200 bytes is cut, and ends in ``%~`` and 32 digits of its sha256. That one cannot
    be read back: it stays as it is, here and there, and so is the same file name again.
    """
    if _SHORTENED.fullmatch(name):
        return name
    raw = os.fsencode(name)
    text = "".join(chr(b) if _PLAIN.fullmatch(chr(b)) else f"%{b:02X}" for b in raw) or "%"
    if len(text) <= _LONGEST:
        return text
    cut = re.sub(r"%.?$", "", text[:_CUT])  # no half of an escape
    return f"{cut}%~{hashlib.sha256(raw).hexdigest()[:_DIGEST]}"


def unescape(text: str) -> str:
    """The name that :func:`escape` was given, or a shortened one as it is."""
    if text == "%":
        return ""
    if _SHORTENED.fullmatch(text):
        return text
    raw = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text).encode("latin-1", "replace")
    return os.fsdecode(raw)


@dataclass(frozen=True, slots=True)
class ChainPlace:
    """The place of one chain at one target. Parts are not escaped."""

    root: Path
    namespace: str
    hook: str
    """``Target.place``: xdp, tcx_ingress, cgroup/connect4 …"""
    target: str
    """``Target.key``: interface, cgroup path, tracepoint …"""
    chain: str

    @property
    def target_folder(self) -> Path:
        """The folder that one writer at a time locks: all chains of the target are in it."""
        parts = (self.namespace, self.hook, self.target)
        return self.root.joinpath(*(escape(part) for part in parts))

    @property
    def folder(self) -> Path:
        """The chain's own folder."""
        return self.target_folder / escape(self.chain)

    @property
    def where(self) -> str:
        """Target and hook for a person: ``eth0 xdp``, ``eth0 tcx ingress``."""
        kind, _, way = self.hook.partition("_")
        words = f"{kind} {way}" if way in ("ingress", "egress") else self.hook
        return f"{self.target} {words}"

    def named(self, chain: str) -> bool:
        """Whether this is the folder of a chain of that name."""
        return escape(self.chain) == escape(chain)

    def at(self, target: str) -> bool:
        """Whether this is at the target of that key (interface, cgroup path …)."""
        return escape(self.target) == escape(target)

    @property
    def link(self) -> Path:
        """Pin of the bpf_link, on hooks that have one."""
        return self.folder / "link"

    @property
    def entry(self) -> Path:
        """Pin of the entry program, where there is one."""
        return self.folder / "entry"

    @property
    def entry_slots(self) -> Path:
        """Pin of the entry program's PROG_ARRAY."""
        return self.folder / "entry_slots"

    @property
    def qdisc(self) -> Path:
        """A folder that says: clsact was not there before this chain was attached. What is left of
        a load that was killed between making the qdisc and its filter is known by it."""
        return self.folder / "clsact"

    def generation(self, number: int) -> Path:
        """The folder of a generation."""
        return self.folder / f"g{number}"

    def __str__(self) -> str:
        return f"chain {self.chain} on {self.where}"


def state_root(bpffs: Path = BPFFS) -> Path:
    """The folder of all chains below a bpffs."""
    return bpffs / FOLDER


def place_of(target: Target, chain: str, root: Path) -> ChainPlace:
    """The place of ``chain`` at ``target``, seen from the calling thread's network namespace."""
    namespace = netns.key() if target.in_netns else HOST
    return ChainPlace(root, namespace, target.place, target.key, chain)


def siblings(place: ChainPlace) -> Iterator[ChainPlace]:
    """All chains at the target of ``place``, itself included where it is there."""
    for entry in _folders(place.target_folder):
        chain = unescape(entry.name)
        yield ChainPlace(place.root, place.namespace, place.hook, place.target, chain)


def all_places(root: Path) -> Iterator[ChainPlace]:
    """Every chain below ``root``, of all namespaces, in order. PermissionError where not allowed."""
    for namespace in _folders(root):
        for hook in _folders(namespace):
            for target in _folders(hook):
                for chain in _folders(target):
                    names = (unescape(part.name) for part in (namespace, hook, target, chain))
                    yield ChainPlace(root, *names)


def _folders(path: Path) -> list[Path]:
    try:
        return sorted(entry for entry in path.iterdir() if entry.is_dir())
    except FileNotFoundError:
        return []

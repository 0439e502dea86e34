"""Help for tests that use this machine's kernel: a private bpffs, a probe, and a chain by hand.

``Chain`` makes a running chain out of patched objects with the loader's binding only, so that the
transformer is tested without the chain loader.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from bpfchain.loader.libbpf import Library, ObjectFile
from bpfchain.loader.maps import Map
from bpfchain.loader.programs import Program, TestRun, load_raw
from bpfchain.loader.uapi import MapType, ProgType

REQUIRE = "BPFCHAIN_REQUIRE_KERNEL"
"""Environment variable: set to 1, a kernel that cannot be used is a failure, not a skip."""

BPFFS = Path("/sys/fs/bpf")

_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18


def enter_private_mounts() -> None:
    """Give this process a mount namespace of its own with an empty bpffs on /sys/fs/bpf.

    What is pinned there goes with the process. Raises OSError (no CAP_SYS_ADMIN). Only the calling
    thread and what it starts from now on is in the new namespace.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mount.argtypes = (
        ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p,
    )  # fmt: skip

    def checked(result: int, what: str) -> None:
        if result:
            raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")

    checked(libc.unshare(_CLONE_NEWNS), "unshare(CLONE_NEWNS)")
    checked(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "mount --make-rprivate /")
    checked(libc.mount(b"bpf", str(BPFFS).encode(), b"bpf", 0, None), f"mount bpffs on {BPFFS}")


def why_unusable() -> str:
    """Why tests on this kernel cannot run; empty if they can. Loads and runs a program."""
    if os.geteuid() != 0:
        return "loading BPF programs needs root"
    try:
        # r0 = 2; exit
        with load_raw(ProgType.XDP, bytes.fromhex("b7000000020000009500000000000000")) as program:
            verdict = program.test_run(bytes(64)).retval
    except OSError as error:
        return f"this kernel loads no BPF program: {error}"
    return "" if verdict == 2 else f"a program that returns 2 gave {verdict}"


class ChainLink(NamedTuple):
    """One patched object (a plain tuple of the same three does as well)."""

    obj: bytes
    place: int
    """the link's index in the chain"""
    slots: Mapping[int, tuple[int, str]]
    """state -> (slot, name of the program that is that state's entry)"""


class Chain:
    """A chain of loaded links: slots filled, head ready to run, nothing attached or pinned.

    - ``links``: in any order; the head is state 0 of the lowest index.
    - ``max_entries``: of the one PROG_ARRAY, which every object's map ``slots_map`` becomes. An
      object that defines that map otherwise is an error (LibbpfError).
    - ``prog_type``, ``expected_attach_type``: set on all programs that are loaded.
    - ``programs``: load only these, by name (default: all of every object).
    - ``share``: names of maps that are one map in all links that have them; the last link makes it.
    - ``maps``: existing maps for maps of these names, in all links that have them.
    Raises LibbpfError with the log if a link does not load; nothing is left then.
    """

    def __init__(
        self,
        links: Iterable[ChainLink | tuple[bytes, int, Mapping[int, tuple[int, str]]]],
        *,
        max_entries: int,
        slots_map: str = "bpfchain_slots",
        prog_type: ProgType | None = None,
        expected_attach_type: int | None = None,
        programs: Collection[str] | None = None,
        share: Collection[str] = (),
        maps: Mapping[str, Map] | None = None,
        lib: Library | None = None,
    ) -> None:
        ordered = sorted((ChainLink(*link) for link in links), key=lambda link: link.place)
        if not ordered:
            raise ValueError("a chain needs a link")
        if len({link.place for link in ordered}) < len(ordered):
            raise ValueError(f"two links have one index: {[link.place for link in ordered]}")
        if 0 not in ordered[0].slots:
            raise ValueError(f"link {ordered[0].place} is the head and has no entry for state 0")
        self._stack = ExitStack()
        self._objects: dict[int, ObjectFile] = {}
        self._maps: dict[tuple[int, str], Map] = {}
        self._programs: dict[tuple[int, str], Program] = {}
        given = dict(maps or {})
        try:
            self.slots = self._stack.enter_context(
                Map.create(MapType.PROG_ARRAY, 4, 4, max_entries, name=slots_map[:15])
            )
            given[slots_map] = self.slots
            for link in reversed(ordered):
                obj = ObjectFile.open(link.obj, f"link{link.place}", lib=lib)
                self._objects[link.place] = self._stack.enter_context(obj)
                for program in obj.programs.values():
                    wanted = programs is None or program.name in programs
                    program.set_autoload(wanted)
                    if wanted and prog_type is not None:
                        program.set_type(prog_type)
                    if wanted and expected_attach_type is not None:
                        program.set_expected_attach_type(expected_attach_type)
                for found in obj.maps.values():
                    if found.name in given:
                        found.reuse(given[found.name])
                obj.load()
                for name in share:
                    if name in obj.maps and name not in given:
                        given[name] = self.map(link.place, name)
                for slot, name in link.slots.values():
                    self.slots.set_fd(slot, self.program(link.place, name).fileno())
            missing = set(share) - given.keys()
            if missing:
                raise ValueError(f"no link has the shared maps {sorted(missing)}")
            self.head = self.program(ordered[0].place, ordered[0].slots[0][1])
        except BaseException:
            self.close()
            raise

    def run(self, packet: bytes = b"", ctx: bytes | None = None, *, repeat: int = 1) -> TestRun:
        """Run the chain from its head (see ``Program.test_run``)."""
        return self.head.test_run(packet, ctx, repeat=repeat)

    def program(self, index: int, name: str) -> Program:
        """A loaded program of link ``index``; closed with the chain. KeyError: no such name."""
        if (index, name) not in self._programs:
            program = self._objects[index].programs[name].program()
            self._programs[index, name] = self._stack.enter_context(program)
        return self._programs[index, name]

    def map(self, index: int, name: str) -> Map:
        """A map of link ``index`` by its name in the file; closed with the chain."""
        if (index, name) not in self._maps:
            found = self._objects[index].maps[name].map()
            self._maps[index, name] = self._stack.enter_context(found)
        return self._maps[index, name]

    def maps(self, index: int) -> list[str]:
        """Names of the maps of link ``index``, as in its file."""
        return list(self._objects[index].maps)

    def close(self) -> None:
        """Close every object, program and map of the chain."""
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

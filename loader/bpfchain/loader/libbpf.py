"""Object files through libbpf: open, look at programs and maps, decide about them, load."""

from __future__ import annotations

import ctypes
import errno as errno_codes
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bpfchain.loader.library import LibbpfError, Library, OpenOptions, library
from bpfchain.loader.maps import Map
from bpfchain.loader.programs import Program
from bpfchain.loader.uapi import BPF_F_RDONLY_PROG, MapType, ProgType

__all__ = ["LibbpfError", "Library", "ObjectFile", "ObjectMap", "ObjectProgram", "library"]


class ObjectProgram:
    """One program of an open object file; gone with it."""

    def __init__(self, owner: ObjectFile, handle: int) -> None:
        self._owner = owner
        self._handle = handle
        self.name = owner.lib.text("bpf_program__name", handle)
        self.section = owner.lib.text("bpf_program__section_name", handle)

    def _get(self, field: str) -> Any:
        self._owner.check_open()
        return self._owner.lib.call(f"bpf_program__{field}", self._handle)

    def _set(self, field: str, value: object) -> None:
        self._owner.check_open()
        subject = f"{self._owner.name}: program {self.name}"
        self._owner.lib.check(subject, f"bpf_program__set_{field}", self._handle, value)

    @property
    def type(self) -> int:
        """The type that the section name gives, or that was set (``ProgType``)."""
        return int(self._get("type"))

    def set_type(self, type: ProgType) -> None:
        """Before the load."""
        self._set("type", int(type))

    @property
    def expected_attach_type(self) -> int:
        """The attach type that the section name gives, or that was set (``AttachType``)."""
        return int(self._get("expected_attach_type"))

    def set_expected_attach_type(self, type: int) -> None:
        """Before the load."""
        self._set("expected_attach_type", int(type))

    @property
    def autoload(self) -> bool:
        """Whether :meth:`ObjectFile.load` loads it."""
        return bool(self._get("autoload"))

    def set_autoload(self, on: bool) -> None:
        """Before the load."""
        self._set("autoload", on)

    @property
    def flags(self) -> int:
        """BPF_F_… as given to BPF_PROG_LOAD (frags, sleepable)."""
        return int(self._get("flags"))

    def set_flags(self, flags: int) -> None:
        """Before the load."""
        self._set("flags", flags)

    def instructions(self) -> bytes:
        """As in the file before the load, as given to the kernel after it."""
        return ctypes.string_at(self._get("insns"), 8 * self._get("insn_cnt"))

    def program(self) -> Program:
        """The loaded program, which outlives the object file. LibbpfError if it is not loaded."""
        fd = self._get("fd")
        if fd < 0:
            raise LibbpfError(
                f"{self._owner.name}: program {self.name} is not loaded: load first",
                errno_codes.ENOENT,
            )
        return Program.from_fd(fd)

    def set_log_level(self, level: int) -> None:
        """The verifier's verbosity: 0, 1, 2, 4 (statistics) or a sum."""
        self._set("log_level", level)


class ObjectMap:
    """One map of an open object file; gone with it. ``name`` is the one in the file.

    (libbpf takes the kernel's name over in ``bpf_map__reuse_fd``, so its own lookup by name would
    no longer find a map that was given a differently named one.)
    """

    def __init__(self, owner: ObjectFile, handle: int) -> None:
        self._owner = owner
        self._handle = handle
        self.name = owner.lib.text("bpf_map__name", handle)

    def _get(self, field: str) -> Any:
        self._owner.check_open()
        return self._owner.lib.call(f"bpf_map__{field}", self._handle)

    def _do(self, function: str, *arguments: object) -> Any:
        self._owner.check_open()
        subject = f"{self._owner.name}: map {self.name}"
        return self._owner.lib.check(subject, f"bpf_map__{function}", self._handle, *arguments)[0]

    @property
    def type(self) -> int:
        """``MapType``."""
        return int(self._get("type"))

    @property
    def key_size(self) -> int:
        """Bytes."""
        return int(self._get("key_size"))

    @property
    def value_size(self) -> int:
        """Bytes."""
        return int(self._get("value_size"))

    @property
    def max_entries(self) -> int:
        """0 where the program that opens the file is to decide."""
        return int(self._get("max_entries"))

    def set_max_entries(self, count: int) -> None:
        """Before the load."""
        self._do("set_max_entries", count)

    @property
    def flags(self) -> int:
        """BPF_F_… as given to BPF_MAP_CREATE."""
        return int(self._get("map_flags"))

    @property
    def internal(self) -> bool:
        """True for ``.data``, ``.bss``, ``.rodata``, ``.kconfig``, which sections become."""
        return bool(self._get("is_internal"))

    @property
    def autocreate(self) -> bool:
        """Whether the load makes the map."""
        return bool(self._get("autocreate"))

    def set_autocreate(self, on: bool) -> None:
        """Before the load."""
        self._do("set_autocreate", on)

    @property
    def pin_path(self) -> str:
        """Where the load pins the map or takes it from; empty: nowhere."""
        path: bytes | None = self._get("pin_path")
        return os.fsdecode(path or b"")

    def set_pin_path(self, path: str | os.PathLike[str] | None) -> None:
        """Before the load; None: do not pin."""
        self._do("set_pin_path", None if path is None else os.fsencode(path))

    def reuse(self, existing: Map, *, check: bool = True) -> None:
        """Use ``existing`` (duplicated) in place of a new map. Before the load.

        libbpf takes any map here. With ``check`` a map of another definition is refused with
        LibbpfError (EINVAL); flags count but for the one that the kernel adds to device maps.
        """
        ours = (self.type, self.key_size, self.value_size, self.max_entries, self.flags)
        entries = existing.max_entries if ours[3] else 0
        flags = existing.flags
        if existing.type in (MapType.DEVMAP, MapType.DEVMAP_HASH):
            flags &= ~BPF_F_RDONLY_PROG
        theirs = (existing.type, existing.key_size, existing.value_size, entries, flags)
        if check and ours != theirs:
            raise LibbpfError(
                f"{self._owner.name}: map {self.name} is defined otherwise than the one to be"
                f" reused: type, key, value, entries, flags {ours}, not {theirs}",
                errno_codes.EINVAL,
            )
        self._do("reuse_fd", existing.fileno())

    def initial_value(self) -> bytes | None:
        """The content that a map of a data section will have; None for other maps."""
        size = ctypes.c_size_t()
        self._owner.check_open()
        address = self._owner.lib.call("bpf_map__initial_value", self._handle, ctypes.byref(size))
        return ctypes.string_at(address, size.value) if address else None

    def set_initial_value(self, data: bytes) -> None:
        """Before the load; LibbpfError unless ``data`` has the section's size."""
        self._do("set_initial_value", data, len(data))

    def map(self) -> Map:
        """The loaded map, which outlives the object file. LibbpfError if there is none."""
        fd = self._get("fd")
        if fd < 0:
            raise LibbpfError(
                f"{self._owner.name}: map {self.name} is not created: load first",
                errno_codes.ENOENT,
            )
        return Map.from_fd(fd)


class ObjectFile:
    """An object file opened by libbpf. ``programs`` and ``maps`` by name, in the file's order."""

    def __init__(self, lib: Library, handle: int, name: str) -> None:
        """Use :meth:`open`."""
        self.lib = lib
        self.name = name
        self._handle: int | None = handle
        self.programs = {p.name: p for p in (ObjectProgram(self, h) for h in self._all("program"))}
        self.maps = {m.name: m for m in (ObjectMap(self, h) for h in self._all("map"))}

    @classmethod
    def open(
        cls,
        source: bytes | str | os.PathLike[str],
        name: str = "",
        *,
        lib: Library | None = None,
        pin_root: str | os.PathLike[str] | None = None,
        btf: str | os.PathLike[str] | None = None,
        kconfig: str | None = None,
    ) -> Self:
        """Open the content (``bytes``) or the file at a path; nothing enters the kernel yet.

        ``name`` is what messages and, cut to size, the kernel call it (default: the file's stem).
        ``pin_root``: where maps that ask for LIBBPF_PIN_BY_NAME go. ``btf``: types for CO-RE in
        place of the kernel's own. Raises LibbpfError.
        """
        lib = lib or library()
        if not name:
            name = "object" if isinstance(source, bytes) else Path(source).stem
        options = OpenOptions(
            sz=ctypes.sizeof(OpenOptions),
            object_name=name.encode(),
            pin_root_path=None if pin_root is None else os.fsencode(pin_root),
            btf_custom_path=None if btf is None else os.fsencode(btf),
            kconfig=None if kconfig is None else kconfig.encode(),
        )
        if isinstance(source, bytes):
            # A copy: libelf may turn byte order in place.
            content = ctypes.create_string_buffer(source, len(source))
            arguments: tuple[object, ...] = (content, len(source), ctypes.byref(options))
            function = "bpf_object__open_mem"
        else:
            arguments = (os.fsencode(source), ctypes.byref(options))
            function = "bpf_object__open_file"
        handle, _ = lib.check(name, function, *arguments)
        return cls(lib, handle, name)

    def _all(self, what: str) -> Iterator[int]:
        item: int | None = None
        while (item := self.lib.call(f"bpf_object__next_{what}", self._handle, item)) is not None:
            yield item

    def check_open(self) -> int:
        """The handle. ValueError once closed: libbpf would read freed memory."""
        if self._handle is None:
            raise ValueError(f"{self.name} is closed")
        return self._handle

    def load(self, log_level: int = 0) -> str:
        """Create the maps and load the programs that are marked so; what libbpf said of it.

        With a ``log_level`` the answer holds the verifier's logs too. Raises LibbpfError: the
        first line that matters as the message, all as ``log``. After that the object can only be
        closed.
        """
        handle = self.check_open()
        if log_level:
            for program in self.programs.values():
                program.set_log_level(log_level)
        return self.lib.check(self.name, "bpf_object__load", handle)[1]

    def close(self) -> None:
        """Free all that was not taken out by ``program()`` or ``map()``, or pinned."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self.lib.call("bpf_object__close", handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self.close()

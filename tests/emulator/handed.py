"""What libbpf hands to the kernel for the programs of an object, and what ``link_object`` makes.

libbpf relocates all programs before it loads the first one, so their instructions can be read also
where this kernel refuses one of them.
"""

from __future__ import annotations

import ctypes
import platform
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bpfchain.emulator.link import Image, LinkedObject, link_object
from bpfchain.loader.libbpf import LibbpfError, ObjectFile
from bpfchain.loader.uapi import MapType, ProgType
from patched.kernel_code import OTHER_SIZES

LDDW, CALL = 0x18, 0x85
VMLINUX = Path("/sys/kernel/btf/vmlinux")
_NAME = "compare"
_AFTER = re.compile(
    r"prog '[^']*': (BPF program load failed|failed to (prepare load|find kernel BTF|load)|"
    r"attach type|supply none)"
)


@dataclass(frozen=True)
class Handed:
    """The instructions of every program; maps by descriptor where the load went through."""

    code: Mapping[str, bytes]
    maps: Mapping[int, str]
    why: str | None
    """Why the kernel took no program, or not all."""


def handed(data: bytes, only: str | None = None, prog_type: int = ProgType.XDP) -> Handed:
    """Load the object with libbpf. Raises LibbpfError where it did not come to relocate it."""
    with ObjectFile.open(data, _NAME) as obj:
        for one in obj.programs.values():
            one.set_autoload(only is None or one.name == only)
            if one.type == ProgType.UNSPEC:
                one.set_type(ProgType(prog_type))
        for found in obj.maps.values():
            if found.max_entries == 0 and found.type not in OTHER_SIZES:
                found.set_max_entries(1)
            if found.type == MapType.STACK_TRACE and not found.value_size:
                set_size = ctypes.CDLL("libbpf.so.1").bpf_map__set_value_size
                assert set_size(ctypes.c_void_p(found._handle), 8 * 127) == 0
        why = None
        maps: dict[int, str] = {}
        try:
            obj.load()
            maps = {int(one._get("fd")): _own(one.name) for one in obj.maps.values()}
        except LibbpfError as error:
            if not _AFTER.search(error.log):
                raise
            why = str(error)
        code = {
            one.name: one.instructions()
            for one in obj.programs.values()
            if only is None or one.name == only
        }
    return Handed(code, maps, why)


def _own(name: str) -> str:
    """The map's name in the object; libbpf puts the object's before those of data sections."""
    return name.removeprefix(_NAME) if name.startswith(f"{_NAME}.") else name


def kernel_symbols() -> dict[str, int]:
    """Addresses of the running kernel's symbols (root)."""
    found: dict[str, int] = {}
    for line in Path("/proc/kallsyms").read_text().splitlines():
        address, _, name = line.split()[:3]
        found.setdefault(name, int(address, 16))
    return found


def linked(data: bytes, ksyms: Mapping[str, int]) -> LinkedObject:
    """The object linked for the running kernel."""
    return link_object(data, btf=VMLINUX.read_bytes(), ksyms=ksyms)


def differences(ours: Image, maps: tuple[str, ...], theirs: bytes, given: Handed) -> list[str]:
    """Where the linked program is not what libbpf handed over. Every instruction is compared.

    Of kernel functions and variables libbpf gives BTF ids, which nothing here has: of those only
    the kind of reference is compared.
    """
    if len(ours.code) != len(theirs):
        return [f"{len(ours)} instructions, libbpf gives {len(theirs) // 8}"]
    said = []
    names: dict[int, str] = dict(given.maps)
    second, source = False, 0
    for at in range(0, len(theirs), 8):
        a, b = ours.code[at : at + 8], theirs[at : at + 8]
        if second:
            second = False
            if a != b and source != 3:
                said.append(f"{at // 8}: second half {a.hex()}, libbpf gives {b.hex()}")
            continue
        source = b[1] >> 4
        second = b[0] == LDDW
        if second and source in (1, 2) and a[:4] == b[:4]:
            mine = maps[ours.maps[int.from_bytes(a[4:], "little")]]
            descriptor = int.from_bytes(b[4:], "little")
            # where the load failed the descriptors are gone: each must stand for one map
            known = names.get(descriptor) if given.maps else names.setdefault(descriptor, mine)
            if known != mine:
                said.append(f"{at // 8}: map {mine}, libbpf gives {known}")
        elif (second and source == 3) or (b[0] == CALL and source == 2):
            if a[:2] != b[:2]:
                said.append(f"{at // 8}: {a.hex()}, libbpf gives {b.hex()}")
        elif a != b:
            said.append(f"{at // 8}: {a.hex()}, libbpf gives {b.hex()}")
    return said


def compile_c(source: str | Path, *flags: str) -> bytes:
    """A BPF object of C source text or of a file, little-endian."""
    text = source.read_bytes() if isinstance(source, Path) else source.encode()
    multiarch = f"/usr/include/{platform.machine()}-linux-gnu"
    done = subprocess.run(
        ["clang", "-target", "bpfel", "-O2", *(flags or ("-g",)), "-I", multiarch, "-x", "c", "-c", "-",
         "-o", "-"],
        input=text, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout

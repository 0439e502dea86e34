"""Small BPF programs for tests: assembled by hand, or compiled from C; and what of BPF is open."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

from bpfchain.loader.maps import Map

U32, U64 = struct.Struct("=I"), struct.Struct("=Q")
EXIT = bytes.fromhex("9500000000000000")
PACKET = bytes(64)

XDP_DROP, XDP_PASS, XDP_TX = 1, 2, 3


def returns(value: int) -> bytes:
    """``r0 = value; exit``."""
    return bytes.fromhex("b7000000") + struct.pack("=i", value) + EXIT


def tail_calls(slots: Map, slot: int, otherwise: int) -> bytes:
    """``bpf_tail_call(ctx, slots, slot); return otherwise``."""
    return (
        bytes.fromhex("1812 0000") + struct.pack("=i", slots.fileno()) + bytes(8)  # r2 = map
        + bytes.fromhex("b7030000") + struct.pack("=i", slot)  # r3 = slot
        + bytes.fromhex("85000000 0c000000")  # call 12
        + returns(otherwise)
    )  # fmt: skip


def compile_bpf(folder: Path, source: str, **defines: object) -> bytes:
    """``source`` (the usual includes are put in front) as an object, with ``-D`` per keyword."""
    multiarch = subprocess.run(
        ["gcc", "-print-multiarch"], capture_output=True, text=True, check=True
    ).stdout.strip()
    (folder / "p.c").write_text(
        "#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n"
        'char LICENSE[] SEC("license") = "GPL";\n' + source
    )
    command = ["clang", "-O2", "-g", "-target", "bpf", f"-I/usr/include/{multiarch}"]
    command += [*(f"-D{name}={value}" for name, value in defines.items()), "-c", "p.c"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return (folder / "p.o").read_bytes()


def bpf_descriptors() -> list[str]:
    """The kinds of this process's open BPF descriptors."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the listing's own
            continue
        if target.startswith("anon_inode:bpf"):
            found.append(target)
    return sorted(found)

"""Chains for tests of the loader: objects of the corpus patched into a folder with their manifest."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpfchain.loader.generation import Source, read_source
from bpfchain.loader.maps import Map
from bpfchain.transform.manifest import Manifest, Share, new_manifest
from bpfchain.transform.manifest_file import read_manifest, write_manifest
from bpfchain.transform.manifest_link import record_of
from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object
from support.commands import PROGRAMS

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Part:
    """One link: an object of the corpus (or bytes), and how it is patched."""

    obj: str | bytes
    program: str | None = None
    success: str | None = None
    redirect: str | None = None
    saved: str | None = None
    hook: str | None = None
    last: bool = False

    def data(self) -> bytes:
        return self.obj if isinstance(self.obj, bytes) else (PROGRAMS / f"{self.obj}.o").read_bytes()


def write_chain(
    folder: Path, name: str, parts: Sequence[Part], *, mode: str = "slots",
    share: tuple[Share, ...] = (), allow: frozenset[str] = frozenset(),
) -> Path:  # fmt: skip
    """Patch the parts into ``folder`` and write their manifest; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for index, part in enumerate(parts):
        data = part.data()
        patched = transform_object(
            data,
            Request(
                index=index, program=part.program, success=part.success, redirect=part.redirect,
                saved=part.saved, hook=part.hook, last=part.last, saved_code=mode, allow=allow,
            ),
        )  # fmt: skip
        (folder / f"link{index}.o").write_bytes(patched.data)
        records.append(
            record_of(
                patched,
                object_path=f"link{index}.o",
                input_path=None,
                input_sha256=hashlib.sha256(data).hexdigest(),
                output_sha256=hashlib.sha256(patched.data).hexdigest(),
            )
        )
    manifest = new_manifest(name, *records, extensible=not parts[-1].last, share=share)
    path = folder / MANIFEST
    write_manifest(path, manifest)
    return path


def source_of(path: Path) -> Source:
    """The manifest with its objects."""
    return read_source(read_manifest(path), path.parent)


def manifest_of(path: Path) -> Manifest:
    return read_manifest(path)


# What bpftool says: a reader that shares nothing with ours.


def bpftool(*arguments: str | Path) -> Any:
    """bpftool's answer, as JSON."""
    done = subprocess.run(
        ["bpftool", "-j", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"bpftool {arguments}: {done.stdout} {done.stderr}"
    return json.loads(done.stdout) if done.stdout.strip() else None


def slots_by_bpftool(pin: Path) -> Mapping[int, int]:
    """Slot -> program id of a pinned PROG_ARRAY."""
    found = {}
    for item in bpftool("map", "dump", "pinned", pin):
        raw = [int(byte, 16) for byte in item["key"]]
        value = item["value"]
        if isinstance(value, list):
            key = int.from_bytes(bytes(raw), "little")
            found[key] = int.from_bytes(bytes(int(byte, 16) for byte in value), "little")
    return found


def ids() -> dict[str, set[int]]:
    """Ids of all programs, maps and links of the host."""
    return {
        kind: {int(item["id"]) for item in bpftool(kind, "show") or []}
        for kind in ("prog", "map", "link")
    }


def set_verdict(pin: Path, code: int) -> None:
    """What a ``verdict_*`` program of the corpus returns from now on."""
    with Map.get_pinned(pin) as array:
        array.update(bytes(4), struct.pack("=i", code))


def runs(pin: Path) -> int:
    """How often a ``verdict_*`` program of the corpus ran."""
    with Map.get_pinned(pin) as array:
        value = array.lookup(bytes(4))
    assert value is not None
    return int(struct.unpack("=Q", value)[0])

"""Chains for tests of the loader: objects of the corpus patched into a folder with their manifest."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpfchain.loader import query
from bpfchain.loader.generation import Source, read_source
from bpfchain.loader.hooks import Target, cgroup_target, interface_target
from bpfchain.loader.maps import Map
from bpfchain.transform.link import SLOTS_MAP
from bpfchain.transform.manifest import Manifest, Share, new_manifest
from bpfchain.transform.manifest_file import read_manifest, write_manifest
from bpfchain.transform.manifest_link import LinkRecord, record_of
from bpfchain.transform.policy import hook_named
from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object
from support.commands import PROGRAMS
from support.nets import child_cgroup, make_pair, send, tool

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
    slots_map: str = SLOTS_MAP

    def data(self) -> bytes:
        return (
            self.obj if isinstance(self.obj, bytes) else (PROGRAMS / f"{self.obj}.o").read_bytes()
        )


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
                slots_map=part.slots_map,
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


def bpftool(*arguments: object) -> Any:
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


def patched(part: Part, index: int, folder: Path, name: str = "new.o") -> tuple[LinkRecord, bytes]:
    """One part patched as link ``index``, written into ``folder``, with its record."""
    data = part.data()
    made = transform_object(
        data,
        Request(
            index=index, program=part.program, success=part.success, redirect=part.redirect,
            saved=part.saved, hook=part.hook, last=part.last, slots_map=part.slots_map,
        ),
    )  # fmt: skip
    (folder / name).write_bytes(made.data)
    record = record_of(
        made, object_path=name, input_path=None, input_sha256=hashlib.sha256(data).hexdigest(),
        output_sha256=hashlib.sha256(made.data).hexdigest(),
    )  # fmt: skip
    return record, made.data


@dataclass
class Scene:
    """A hook with something that makes its programs run."""

    name: str
    part: Part
    target: Target
    go_on: int
    """A code in S of every link."""
    stop: int
    """A code outside S."""
    send: Callable[[int], None]
    """Have the hook's programs run so many times."""
    head: Callable[[Path], int | None]
    """The program that the hook runs, as bpftool (or tc) says, given the pin of the chain's link."""


def head_of_xdp(_: Path) -> int | None:
    found = bpftool("net")[0]["xdp"]
    return int(found[0]["id"]) if found else None


def head_of_tc(name: str) -> Callable[[Path], int | None]:
    """The program of the clsact filter, as tc says."""

    def head(_: Path) -> int | None:
        out = tool("tc", "-j", "filter", "show", "dev", name, "ingress")
        found = [item["options"]["prog"]["id"] for item in json.loads(out or "[]")
                 if "prog" in item.get("options", {})]  # fmt: skip
        return int(found[0]) if found else None

    return head


def head_of_link(pin: Path) -> int | None:
    """The program of a pinned link, as bpftool says (7.1 does not know what tcx is)."""
    return int(bpftool("link", "show", "pinned", pin)["prog_id"]) if pin.exists() else None


def head_of_cgroup(folder: Path) -> Callable[[Path], int | None]:
    def head(_: Path) -> int | None:
        found = bpftool("cgroup", "show", folder) or []
        return int(found[0]["id"]) if found else None

    return head


SENDER = """
import socket, sys
open(sys.argv[1] + "/cgroup.procs", "w").write("0")
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(int(sys.argv[2])):
    try:
        out.sendto(b"x", ("127.0.0.1", 9))
    except OSError:
        pass
"""


def send_from(folder: Path) -> Callable[[int], None]:
    """Datagrams from a process in the cgroup, over lo."""

    def send_datagrams(count: int) -> None:
        tool(sys.executable, "-c", SENDER, str(folder), str(count))

    return send_datagrams


@contextmanager
def scene(name: str, folder: Path) -> Iterator[Scene]:
    """One of ``SCENES``, in the calling thread's network namespace, which is to be a new one."""
    make_pair()

    def frames(count: int) -> None:
        send("left", count)

    if name.startswith("xdp"):
        mode = name.removeprefix("xdp-")
        target = interface_target(hook_named("xdp"), "right", mode=mode)  # type: ignore[arg-type]
        yield Scene(name, Part("verdict_xdp"), target, 2, 1, frames, head_of_xdp)
    elif name == "tcx":
        part = Part("verdict_tcx", program="verdict_tcx_in")
        target = interface_target(hook_named("tcx/ingress"), "right")
        yield Scene(name, part, target, -1, 2, frames, head_of_link)
    elif name == "clsact":
        part = Part("verdict_tc", program="verdict_tc")
        target = interface_target(hook_named("tc"), "right", direction="ingress")
        yield Scene(name, part, target, 0, 2, frames, head_of_tc("right"))
    else:
        tool("ip", "link", "set", "lo", "up")
        folder.mkdir(exist_ok=True)
        with child_cgroup(folder) as group:
            part = Part("verdict_cgroup_skb", program="verdict_egress")
            target = cgroup_target(hook_named("cgroup_skb/egress"), group)
            yield Scene(name, part, target, 1, 0, send_from(group), head_of_cgroup(group))


SCENES = ("xdp-generic", "xdp-native", "tcx", "clsact", "cgroup")


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Packets and freed objects are a moment late, and nothing tells when: look for 10 s."""
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, f"after 10 s: {what}"
        time.sleep(0.005)


def ids_of(folder: Path) -> dict[str, set[int]]:
    """Ids of everything pinned below ``folder``, as bpftool says."""
    found: dict[str, set[int]] = {"prog": set(), "map": set(), "link": set()}
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        name = path.name.removeprefix("new_")
        kind = (
            "link"
            if name.startswith("link")
            else "prog"
            if name == "entry" or name[:1] == "p"
            else "map"
        )
        told = bpftool(kind, "show", "pinned", path)
        found[kind].add(int((told[0] if isinstance(told, list) else told)["id"]))
    return found


def wait_gone(known: dict[str, set[int]]) -> None:
    """None of these objects exists any more.

    Only ids are listed meanwhile: who opens a PROG_ARRAY that is being freed (as bpftool does, to
    show it) can make the kernel forget to free it (prog_array_map_clear takes a reference for work
    that may be queued already).
    """
    listed = {"prog": query.program_ids, "map": query.map_ids, "link": query.link_ids}
    for kind, numbers in known.items():
        wait_until(
            lambda k=kind, n=numbers: not n & set(listed[k]()),  # type: ignore[misc]
            f"{kind} {numbers} still there",
        )
    now = ids()
    assert not any(known[kind] & now[kind] for kind in known)

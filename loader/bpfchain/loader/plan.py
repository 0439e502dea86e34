"""The commands of bpftool, ip and tc that make the chain of a manifest by hand (docs/loading.md)."""

from __future__ import annotations

import shlex
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from bpfchain.loader.hooks.protocol import Target
from bpfchain.transform.errors import RefusedError
from bpfchain.transform.link import saved_map_name
from bpfchain.transform.manifest import Manifest
from bpfchain.transform.manifest_link import LinkRecord
from bpfchain.transform.policy import Hook

_TYPES = {"tc": "classifier", "raw_tp": "raw_tracepoint", "raw_tp.w": "raw_tracepoint.w"}
"""What ``bpftool prog load type`` calls a hook, where its section name is another word."""


def commands(manifest: Manifest, folder: Path, target: Target, pins: Path) -> list[str]:
    """Shell commands, one a line, with comments where bpftool alone does not do it.

    ``folder`` is what the manifest's objects are named relative to; the pins go below ``pins``,
    which must be on a bpffs and not exist. Raises RefusedError for what bpftool cannot load so.
    """
    return list(_commands(manifest, folder, target, pins))


def _commands(manifest: Manifest, folder: Path, target: Target, pins: Path) -> Iterator[str]:
    hook = manifest.hook
    slots = pins / "slots"
    yield _line("mkdir", pins)
    yield _line(
        "bpftool", "map", "create", slots, "type", "prog_array", "key", 4, "value", 4, "entries",
        hook.slots, "name", manifest.slots_map,
    )  # fmt: skip
    done: set[str] = set()
    shared: dict[str, Path] = {}
    for record in reversed(manifest.links):
        if record.object not in done:
            done.add(record.object)
            yield from _load(manifest, record, folder, pins, slots, shared)
    for record in reversed(manifest.links):
        home = _home(pins, manifest, record)
        for entry in record.entries:
            if entry.slot:
                key = [str(byte) for byte in struct.pack("=I", entry.slot)]
                yield _line(
                    "bpftool", "map", "update", "pinned", slots, "key", *key, "value", "pinned",
                    home / entry.name,
                )  # fmt: skip
    head = _home(pins, manifest, manifest.links[0]) / manifest.links[0].program
    yield from _attach(hook, target, head, pins)


def _home(pins: Path, manifest: Manifest, record: LinkRecord) -> Path:
    """Where the programs of the link's object are pinned: by the first link in it."""
    first = min(one.index for one in manifest.links if one.object == record.object)
    return pins / f"link{first}"


def _load(
    manifest: Manifest, record: LinkRecord, folder: Path, pins: Path, slots: Path,
    shared: dict[str, Path],
) -> Iterator[str]:  # fmt: skip
    hook = manifest.hook
    index = min(one.index for one in manifest.links if one.object == record.object)
    members = {
        member.map: share.map
        for share in manifest.share
        for member in share.links
        if member.index in {one.index for one in manifest.links if one.object == record.object}
    }
    home, maps = pins / f"link{index}", pins / f"maps{index}"
    words: list[object] = ["bpftool", "prog", "loadall", folder / record.object, home]
    if not hook.matches(record.section) or hook.name in _TYPES:
        words += ["type", _TYPES.get(hook.name, hook.name)]
    names = [use.name for use in record.maps]
    if manifest.slots_map in names:
        words += ["map", "name", manifest.slots_map, "pinned", slots]
    saved = saved_map_name(manifest.slots_map)
    for name in names:
        key = members.get(name, saved if name == saved and manifest.saved_code == "map" else None)
        if key is None:
            continue
        if key in shared:
            words += ["map", "name", name, "pinned", shared[key]]
        else:
            shared[key] = maps / name
    yield _line(*words, "pinmaps", maps)


def _attach(hook: Hook, target: Target, head: Path, pins: Path) -> Iterator[str]:
    device, way = target.interface, target.direction
    if target.kind == "xdp":
        mode = {"native": "xdpdrv", "generic": "xdpgeneric", None: "xdp"}[target.mode]
        yield _line("bpftool", "net", "attach", mode, "pinned", head, "dev", device)
    elif target.kind == "tcx":
        yield "# tcx needs bpftool 7.6 or newer, and libbpf 1.3 to load the objects"
        yield _line("bpftool", "net", "attach", f"tcx_{way}", "pinned", head, "dev", device)
    elif target.kind == "clsact":
        yield _line("tc", "qdisc", "replace", "dev", device, "clsact")
        words = ["tc", "filter", "add", "dev", device, way]
        if target.priority:
            words += ["prio", str(target.priority)]
        yield _line(*words, "bpf", "direct-action", "object-pinned", head)
        yield f"# the filter keeps the head only: the chain lasts as long as {pins / 'slots'}"
    elif target.kind == "cgroup":
        name = _CGROUP.get(hook.name, (hook.attach_type or "").removeprefix("BPF_").lower())
        yield _line("bpftool", "cgroup", "attach", target.cgroup, name, "pinned", head, "multi")
    else:
        raise RefusedError(
            f"bpftool attaches no pinned program to {target}",
            "`bpfchain load` does; or load as above and attach the head by your own program",
        )


_CGROUP = {"cgroup_skb/ingress": "cgroup_inet_ingress", "cgroup_skb/egress": "cgroup_inet_egress"}


def _line(*words: object) -> str:
    return shlex.join(str(word) for word in words)


def undo(target: Target, pins: Path, head: Path) -> Sequence[str]:
    """The commands that take the chain down again."""
    device, way = target.interface, target.direction
    if target.kind == "xdp":
        mode = {"native": "xdpdrv", "generic": "xdpgeneric", None: "xdp"}[target.mode]
        first = _line("bpftool", "net", "detach", mode, "dev", device)
    elif target.kind == "tcx":
        first = _line("bpftool", "net", "detach", f"tcx_{way}", "dev", device)
    elif target.kind == "clsact":
        first = _line("tc", "filter", "del", "dev", device, way)
    else:
        hook = target.hook
        name = _CGROUP.get(hook.name, (hook.attach_type or "").removeprefix("BPF_").lower())
        first = _line("bpftool", "cgroup", "detach", target.cgroup, name, "pinned", head)
    return (first, _line("rm", "-r", pins))

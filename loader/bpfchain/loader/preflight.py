"""What would fail, and why, before anything of the host is touched: link by link."""

from __future__ import annotations

import os
import platform
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bpfchain.loader import caps
from bpfchain.loader.entry import check_code
from bpfchain.loader.generation import Source
from bpfchain.loader.hooks.explain import NEEDS
from bpfchain.loader.hooks.protocol import Target
from bpfchain.loader.hooks.targets import kinds_of
from bpfchain.loader.insn import (
    CALL,
    EXIT,
    MOV_IMM,
    MOV_REG,
    PSEUDO_CALL,
    TAIL_CALL,
    insn,
    map_address,
)
from bpfchain.loader.lock import check_bpffs
from bpfchain.loader.maps import Map
from bpfchain.loader.programs import load_raw
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import MapType, ProgType
from bpfchain.transform.chain_check import validate_complete
from bpfchain.transform.errors import BpfchainError, HostError, RefusedError
from bpfchain.transform.policy import LINKS_MAX, Hook

JIT = Path("/proc/sys/net/core/bpf_jit_enable")
KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One reason why the chain cannot run on this host."""

    index: int | None
    """The link; None: the host, whatever the link."""
    reason: str
    hint: str | None = None


def check(
    source: Source, target: Target, *, entry: int | None, bpffs: Path, only: int | None = None
) -> tuple[str, ...]:
    """Raise for the chain's faults and the host's; warnings otherwise. ``only``: the one link whose
    object is looked at.

    RefusedError for a manifest that is no whole chain or does not fit ``target``; HostError for what
    the host lacks, every link that fails with its reason in the one message.
    """
    warnings = validate_complete(source.manifest)
    hook = source.manifest.hook
    if target.kind not in kinds_of(hook):
        raise RefusedError(
            f"the chain is for hook {hook.name}, which is not attached to {target}",
            f"it goes to {' or '.join(kinds_of(hook)) or 'nothing that bpfchain attaches to'}",
        )
    if entry is not None:
        check_code(hook, entry)
    depth = tail_call_depth(source, entry=entry is not None)
    if depth > LINKS_MAX:
        raise RefusedError(
            f"the chain can make {depth} tail calls in a run, the kernel follows {LINKS_MAX}: "
            "the last links would never run",
            "leave links or the entry program out",
        )
    check_bpffs(bpffs)
    if not os.access(bpffs, os.W_OK | os.X_OK):
        raise HostError(f"{bpffs}: not writable", "run it as root, or as the user who owns it")
    found = list(obstacles(source, target, only))
    if found:
        raise _as_error(found)
    return warnings


def tail_call_depth(source: Source, *, entry: bool) -> int:
    """Tail calls that one run can attempt at least: the chain's, one for each link that makes some
    of its own, and the entry program's."""
    links = source.manifest.links
    own = sum(record.tail_calls for record in links)
    return sum(not record.link.ends for record in links[:-1]) + own + entry


def obstacles(source: Source, target: Target, only: int | None = None) -> Iterator[Obstacle]:
    """What this host lacks, the host's own first, for all links or ``only`` one."""
    missing = caps.missing(NEEDS[target.kind])
    if missing:
        yield Obstacle(
            None, f"this process lacks {' and '.join(missing)}", "run it as root, or grant that"
        )
        return  # what follows asks the kernel
    order = 1 if sys.byteorder == "little" else 2
    mixed: str | None = None
    asked = False
    for record in source.manifest.links:
        if only not in (None, record.index):
            continue
        data = source.objects[record.object]
        if data[5:6] != bytes((order,)):
            yield Obstacle(
                record.index, "its object is of the other byte order", "build it for this machine"
            )
            continue
        if len(data) < 64 or struct.unpack_from("=H", data, 18)[0] != 247:
            yield Obstacle(record.index, "its object is no BPF object")
            continue
        for need in record.needs:
            if need.what == "tail calls beside function calls":
                if not asked:
                    mixed, asked = mixed_calls(source.manifest.hook), True
                if mixed is not None:
                    yield Obstacle(record.index, f"{need.why}, and {mixed}")
            elif need.what == "the JIT" and not jit_enabled():
                yield Obstacle(
                    record.index, f"needs the JIT ({need.why})", "sysctl net.core.bpf_jit_enable=1"
                )
            elif need.what == "kernel BTF" and not KERNEL_BTF.exists():
                yield Obstacle(
                    record.index,
                    f"{need.why}, and this kernel has no types of its own ({KERNEL_BTF})",
                )


def jit_enabled() -> bool:
    """Whether programs are compiled. Where the kernel does not tell, it always is."""
    try:
        return JIT.read_text().strip() != "0"
    except OSError:
        return True


def mixed_calls(hook: Hook) -> str | None:
    """Why this kernel does not let a program make tail calls and call functions; None if it does.

    It is tried: versions do not tell, distributions carry the change back.
    """
    try:
        with Map.create(MapType.PROG_ARRAY, 4, 4, 1) as array:
            code = b"".join((
                insn(MOV_REG, 6, 1), insn(CALL, src=PSEUDO_CALL, imm=7), insn(MOV_REG, 1, 6),
                map_address(2, array.fileno()), insn(MOV_IMM, 3), insn(CALL, imm=TAIL_CALL),
                insn(MOV_IMM, imm=_legal(hook)), insn(EXIT),
                insn(MOV_IMM), insn(EXIT),  # the function
            ))  # fmt: skip
            load_raw(
                ProgType(hook.prog_type_id), code, expected_attach_type=hook.attach_type_id,
                log=False,
            ).close()  # fmt: skip
    except BpfError as error:
        return (
            f"this kernel ({platform.release()} {platform.machine()}) allows no tail calls beside "
            f"function calls ({error.strerror})"
        )
    return None


def _legal(hook: Hook) -> int:
    return hook.returns[0] if hook.returns else 0


def _as_error(found: list[Obstacle]) -> BpfchainError:
    reasons: dict[str, list[int]] = {}
    for one in found:
        reasons.setdefault(one.reason, []).extend(() if one.index is None else (one.index,))
    parts = []
    for reason, indexes in reasons.items():
        if indexes:
            named = ", ".join(map(str, indexes))
            parts.append(f"link{'s' if len(indexes) > 1 else ''} {named}: {reason}")
        else:
            parts.append(reason)
    hint = next((one.hint for one in found if one.hint), None)
    return HostError(f"the chain cannot run on this host: {'; '.join(parts)}", hint)

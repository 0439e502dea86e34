"""Patched objects on other kernels: Debian's, of the matrix, each booted under QEMU.

What loads on a kernel unpatched must load there patched for it, or be refused with the reason; the
thesis's chain must give the right verdicts, and cost what it may (bench/cost.py).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import cost
from bench.kernels.fetch import KERNELS, ROOT
from bench.kernels.matrix import Job, Link, boot_jobs

from bpfchain.transform.errors import RefusedError
from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        shutil.which("qemu-system-x86_64") is None,
        reason="qemu-system-x86_64 is missing: apt-get install qemu-system-x86",
    ),
]

PROGRAMS = ROOT / "corpus" / "programs"
ARCH = "x86_64"
BOOT_SECONDS = 600.0  # a boot takes half a minute; this is for a machine that does much else
LEAST_LOADED = 60  # more objects than this load as they are on each kernel

XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT = 1, 2, 3, 4  # enum xdp_action, linux/bpf.h

# BPF_PROG_TYPE_NETFILTER, BPF_NETFILTER (linux/bpf.h): younger than the runner's libbpf.
TYPES = {"verdict_netfilter": (32, 45)}

# Kernel -> objects that load there unpatched and must be refused, with a piece of the reason:
# inline finds no register and no slot, and 512 bytes and a wrapper's frame are more than the
# 512 of all frames together, as kernels before 6.12 count them.
_NO_ROOM = {"regs_stack_full": "512 bytes of stack and a wrapper's frame of 32 on older kernels"}
REFUSED = {"5.10": _NO_ROOM, "6.1": _NO_ROOM, "6.12": {}, "7.2": {}}

LEGACY = ("legacy_maps", "legacy_maps_g")


def entries() -> list[dict[str, Any]]:
    """What the corpus says can be a link."""
    index = tomllib.loads((PROGRAMS / "index.toml").read_text())["object"]
    return [entry for entry in index if entry["expect"] == "link"]


def programs_of(entry: dict[str, Any]) -> list[str]:
    """The programs of an object (functions in .text are none)."""
    sections = entry["sections"].items()
    return [name for section, names in sections if section != ".text" for name in names]


def load_job(entry: dict[str, Any], name: str, path: Path, programs: Sequence[str]) -> Job:
    """Load these programs of an object (none named: all), with the type the index tells."""
    link = Link(path, dict.fromkeys(programs))
    section = entry.get("load_type", "")
    return Job(name, [link], kind="load", section=section, types=TYPES.get(entry["name"]))


@dataclass(frozen=True, slots=True)
class Load:
    """One object to load as it is and patched for a kernel; what names it in jobs is `name`.

    `refused` tells why it cannot be patched for this kernel; `patched` is then what the
    transformer makes for the newest one, which must not load here.
    """

    object: str
    name: str
    plain: Job
    patched: Job
    refused: str = ""


def loads_of(kernel: str, folder: Path) -> Iterator[Load]:
    """Every program that can be patched, alone (`OBJECT:PROGRAM`), and every object of several
    programs as a whole (`OBJECT`): those beside the patched one must load as before."""
    for entry in entries():
        name, programs = str(entry["name"]), programs_of(entry)
        path = PROGRAMS / "el" / f"{name}.o"
        chosen = entry.get("program", programs[0])
        for program in programs:
            if program in entry.get("refused_programs", {}):
                continue
            hook = entry.get("hook") if program == chosen else None
            request = Request(index=1, program=program, hook=hook, kernel=kernel, arch=ARCH)
            refused = ""
            try:
                patched = transform_object(path.read_bytes(), request)
            except RefusedError as error:
                refused = str(error)
                request = replace(request, kernel=KERNELS[-1])
                patched = transform_object(path.read_bytes(), request)
            target = folder / f"{name}-{program}.o"
            target.write_bytes(patched.data)
            which = [(f"{name}:{program}", [program], [one.name for one in patched.entries])]
            if program == chosen and len(programs) > 1:
                which.append((name, [], []))
            for label, before, after in which:
                plain = load_job(entry, label, path, before)
                link = load_job(entry, f"{label}+link", target, after)
                yield Load(name, label, plain, link, refused)


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_loads_unpatched_loads_patched(
    kernel: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loads = list(loads_of(kernel, tmp_path))
    jobs = [job for load in loads for job in (load.plain, load.patched)]
    boot = boot_jobs(jobs, [kernel], ARCH, BOOT_SECONDS)[kernel]
    assert boot.release.startswith(kernel + "."), boot.release

    def error(job: Job) -> str:
        return str(boot.results[job.name].get("error", ""))

    there = [load for load in loads if not error(load.plain)]
    made = [load for load in there if not load.refused]
    refused = [load for load in there if load.refused]
    broken = {load.name: error(load.patched) for load in made if error(load.patched)}
    needless = [load.name for load in refused if not error(load.patched)]
    objects = {load.object for load in there}
    good = {load.object for load in made} - {load.object for load in made if load.name in broken}
    with capsys.disabled():
        print(
            f"\n{kernel} ({boot.release}): {len(objects)} objects ({len(there)} loads) unpatched,"
            f" {len(good)} ({len(made) - len(broken)}) patched, {len(refused)} refused,"
            f" {boot.seconds:.0f} s"
        )
        for load in loads:
            if load not in there:
                print(f"  not unpatched: {load.name}: {error(load.plain).rpartition(' | ')[2]}")
        for load in refused:
            print(f"  refused: {load.refused}")
    assert not broken
    assert not needless, "refused for this kernel, and yet it loads here"
    assert {load.object for load in refused} == REFUSED[kernel].keys()
    for load in refused:
        assert REFUSED[kernel][load.object] in load.refused
    # libbpf refuses them as they are, their maps are converted
    legacy = {load.name: error(load.patched) for load in loads if load.object in LEGACY}
    assert legacy == {"legacy_maps:legacy_maps": "", "legacy_maps_g:legacy_maps": ""}
    assert len(objects) > LEAST_LOADED


@dataclass(frozen=True, slots=True)
class Case:
    """A chain: (object, program) of each link, a packet, the code and whether the log link ran."""

    programs: Sequence[str]
    packet: bytes
    code: int
    logged: bool
    saves: bool = False  # link 1 saves REDIRECT and goes on


THESIS = ("filter", "metrics", "log")
BY_LENGTH = ("filter", "exits_const", "log")
REPEAT = 10


def tcp_packet(length: int) -> bytes:
    """An IPv6/TCP packet, which the log link records, of this many bytes."""
    return cost.packets()["ipv6-tcp"].data[:74].ljust(length, b"x")


# Codes by the sources: filter (nothing is in `blocked`), metrics and log pass everything;
# exits_const.c returns by length: to 100 PASS, to 200 DROP, to 300 REDIRECT, to 400 TX, then PASS.
CASES = {
    "thesis-tcp": Case(THESIS, cost.packets()["ipv6-tcp"].data, XDP_PASS, True),
    "thesis-udp": Case(THESIS, cost.packets()["ipv4-udp"].data, XDP_PASS, False),
    "pass-100": Case(BY_LENGTH, tcp_packet(100), XDP_PASS, True),
    "drop-101": Case(BY_LENGTH, tcp_packet(101), XDP_DROP, False),
    "redirect-300": Case(BY_LENGTH, tcp_packet(300), XDP_REDIRECT, False),
    "tx-400": Case(BY_LENGTH, tcp_packet(400), XDP_TX, False),
    "pass-500": Case(BY_LENGTH, tcp_packet(500), XDP_PASS, True),
    "pass-600": Case(BY_LENGTH, tcp_packet(600), XDP_PASS, True),
    "saved-300": Case(BY_LENGTH, tcp_packet(300), XDP_REDIRECT, True, saves=True),
    "saved-drop-200": Case(BY_LENGTH, tcp_packet(200), XDP_DROP, False, saves=True),
    "saved-pass-100": Case(BY_LENGTH, tcp_packet(100), XDP_PASS, True, saves=True),
}


def build_chain(case: Case, kernel: str, strategy: str, folder: Path) -> list[Link]:
    """The links of a case, made for this kernel with this strategy (the last one needs no patch
    where nothing is saved before it)."""
    links = []
    for index, name in enumerate(case.programs):
        last = index == len(case.programs) - 1
        base = Request(index=index, last=last, strategy=strategy, kernel=kernel, arch=ARCH)
        if case.saves:
            base = replace(
                base,
                redirect="REDIRECT" if index == 1 else None,
                saved="REDIRECT" if index == 2 else None,
            )
        patched = transform_object((PROGRAMS / "el" / f"{name}.o").read_bytes(), base)
        assert patched.strategy in ((strategy,) if not last else (strategy, "none"))
        target = folder / f"{strategy}-{case.saves}-{index}-{name}.o"
        target.write_bytes(patched.data)
        links.append(Link(target, {entry.name: entry.slot for entry in patched.entries}))
    return links


@pytest.mark.parametrize("kernel", KERNELS)
def test_chain_gives_the_right_verdicts(kernel: str, tmp_path: Path) -> None:
    jobs = {}
    for strategy in ("inline", "subprog"):
        for name, case in CASES.items():
            links = build_chain(case, kernel, strategy, tmp_path)
            job = Job(f"{strategy}/{name}", links, case.packet, repeat=REPEAT, rounds=3)
            jobs[job.name] = (job, case)
    boot = boot_jobs([job for job, _ in jobs.values()], [kernel], ARCH, BOOT_SECONDS)[kernel]
    assert boot.release.startswith(kernel + "."), boot.release
    seen = {
        name: result.get("error") or (result["retval"], result["records"])
        for name, result in boot.results.items()
    }
    assert seen == {
        name: (case.code, REPEAT if case.logged else 0) for name, (_, case) in jobs.items()
    }


def test_chain_costs_at_most_two_percent(tmp_path: Path) -> None:
    """Against chaining by hand; instructions counted by QEMU, so not a matter of the machine."""
    roots = [str(ROOT / root) for root in ("transform", "loader", "verify", "cli")]
    output = tmp_path / "cost.json"
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / "cost.py"), "--limit", "1.02", "-o", str(output)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(roots)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(output.read_text())
    assert list(document["kernels"]) == list(KERNELS)
    for kernel in KERNELS:
        packets = document["kernels"][kernel]["packets"]
        assert packets.keys() == cost.packets().keys()
        for row in packets.values():
            assert row["baseline"] < row["manual"]
            assert row["chain"] <= 1.02 * row["manual"]

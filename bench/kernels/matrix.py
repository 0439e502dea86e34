#!/usr/bin/env python3
"""The kernel matrix: boots Debian kernels under QEMU and test-runs chains of BPF programs there.

QEMU interprets (TCG) and counts: with `-icount shift=0` one guest instruction is one nanosecond of
guest time, so the duration the kernel reports for a test run is an exact number of instructions,
the same on every boot. `python bench/kernels/matrix.py JOBDIR` runs the job file `JOBDIR/jobs`
(its words are listed in runner.c); from Python, `run_matrix(jobs, kernels)` does the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.kernels import initramfs
from bench.kernels.fetch import (
    ARCHES,
    KERNELS,
    STORE,
    FetchError,
    Kernel,
    fetch_kernel,
    fetch_sysroot,
)

RUNNER_SOURCE = Path(__file__).with_name("runner.c")
BOOT_SECONDS = 120.0
TAIL_LINES = 12

# What makes two boots the same (measured, research/packets-and-kernels.md): one CPU, counted
# instructions, a virtual clock that starts at a fixed date, a seed, and nothing at random addresses
# (with a random kernel stack offset one program took 601 to 605 instructions on 6.12).
# `-cx16`: without it 6.12 crashed at random under QEMU 7.2.
_QEMU = {
    "x86_64": ["qemu-system-x86_64", "-M", "pc", "-cpu", "max,-cx16"],
    "aarch64": ["qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a57"],
}
_COMMON = [
    *("-accel", "tcg", "-smp", "1", "-m", "512", "-no-reboot"),
    *("-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"),
    *("-icount", "shift=0,sleep=off", "-rtc", "base=2026-01-01T00:00:00,clock=vm", "-seed", "1"),
]
_APPEND = "quiet panic=-1 oops=panic nokaslr norandmaps randomize_kstack_offset=off mitigations=off"
_CONSOLE = {"x86_64": "ttyS0", "aarch64": "ttyAMA0"}
_PACKAGE = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}


class MatrixError(Exception):
    """The matrix cannot run; the text is one line that says what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Link:
    """Programs of one object and the slot each goes into (none: loaded, in no slot)."""

    object: Path
    programs: Mapping[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """One thing to ask of a kernel.

    `kind` is "chain" (load, fill the slots, test-run slot 0 on `packet`) or "load" (only say
    whether the programs load). Durations are the least of `rounds` test runs of `repeat` runs
    each. `section` gives every program the type of that section name, `types` that of
    (enum bpf_prog_type, enum bpf_attach_type), for types that Debian's libbpf 1.1 does not know.
    """

    name: str
    links: Sequence[Link]
    packet: bytes = b""
    kind: str = "chain"
    slots: str = "bpfchain_slots"
    section: str = ""
    types: tuple[int, int] | None = None
    repeat: int = 1000
    rounds: int = 40


@dataclass(frozen=True, slots=True)
class Boot:
    """What one boot of one kernel said: its release and, per job, what the runner answered.

    A result is {"retval", "ns", "loaded", "hits", "max", "bytes"} for a chain, {"loaded"} for a
    load job and {"error"} otherwise. `ns` is guest instructions per run; `hits` of the rounds
    had that duration, `max` is the longest one.
    """

    kernel: str
    release: str
    seconds: float
    results: dict[str, dict[str, int | str]]
    console: str


def write_jobs(jobs: Sequence[Job], folder: Path) -> None:
    """Write the job file and copy the objects and packets it names into the folder."""
    copies: dict[str, str] = {}

    def keep(data: bytes, name: str) -> str:
        # The number tells apart what has one name, the name is for who reads an error.
        name = re.sub(r"[^\w.-]", "_", f"{len(copies)}-{name}")
        name = copies.setdefault(hashlib.sha256(data).hexdigest(), name)
        (folder / name).write_bytes(data)
        return name

    lines = []
    for job in jobs:
        if not re.fullmatch(r"[\w.+:/-]+", job.name):
            raise MatrixError(f"job name {job.name!r}: letters, digits and _.+:/- only")
        lines += [f"job {job.name}", f"kind {job.kind}", f"slots {job.slots}"]
        if job.section:
            lines.append(f"as {job.section}")
        if job.types:
            lines.append(f"type {job.types[0]} {job.types[1]}")
        for link in job.links:
            words = [p if slot is None else f"{p}={slot}" for p, slot in link.programs.items()]
            lines.append(
                " ".join(["link", keep(link.object.read_bytes(), link.object.name), *words])
            )
        if job.packet:
            lines.append(f"packet {keep(job.packet, 'packet.bin')}")
        lines += [f"repeat {job.repeat}", f"rounds {job.rounds}", "end"]
    if len({job.name for job in jobs}) != len(jobs):
        raise MatrixError("two jobs have the same name")
    (folder / "jobs").write_text("\n".join(lines) + "\n")


def build_runner(arch: str = "x86_64", store: Path = STORE) -> Path:
    """Compile runner.c into a static binary for the guest, once for each version of the source."""
    cross = arch != os.uname().machine
    compiler = f"{arch}-linux-gnu-gcc" if cross else "gcc"
    if not shutil.which(compiler):
        raise MatrixError(f"{compiler} is missing: apt-get install {compiler.replace('_', '-')}")
    source = RUNNER_SOURCE.read_bytes()
    runner = store / arch / f"runner-{hashlib.sha256(source).hexdigest()[:16]}"
    if runner.exists():
        return runner
    flags: list[str] = []
    if cross:
        usr = fetch_sysroot(arch, store) / "usr"
        flags = ["-isystem", str(usr / "include"), "-L", str(usr / "lib" / f"{arch}-linux-gnu")]
    runner.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=runner.parent) as scratch:
        binary = Path(scratch) / "runner"
        command = [compiler, "-O2", "-static", *flags, str(RUNNER_SOURCE), "-o", str(binary)]
        done = subprocess.run(
            [*command, "-lbpf", "-lelf", "-lz"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            first = re.search(r".*(error|cannot find).*", done.stderr)
            raise MatrixError(
                f"{RUNNER_SOURCE.name} does not compile: {first[0] if first else done.stderr}:"
                " apt-get install gcc libc6-dev libbpf-dev libelf-dev zlib1g-dev"
            )
        binary.rename(runner)
    return runner


def _console_end(text: str) -> str:
    said = [line for line in text.replace("\r", "").splitlines() if line.strip()]
    tail = "\n    ".join(said[-TAIL_LINES:]) or "(nothing)"
    return f"its console ends:\n    {tail}"


def parse_console(text: str, kernel: str, seconds: float = 0.0) -> Boot:
    """Read what the runner printed; raise MatrixError where it did not come to its end."""
    results: dict[str, dict[str, int | str]] = {}
    release = ""
    done = False
    for line in text.replace("\r", "").splitlines():
        # Firmware and boot messages may precede on the same line.
        match = re.search(r"\b(KERNEL|RESULT|ERROR|DONE) ((?:release|job|failed)=.*)", line)
        if not match:
            continue
        word, rest = match.groups()
        if word == "KERNEL":
            release = rest.split()[0].removeprefix("release=")
        elif word == "DONE":
            done = True
        else:
            name, _, answer = rest.removeprefix("job=").partition(" ")
            if word == "ERROR":
                results[name] = {"error": answer}
            else:
                pairs = (pair.split("=", 1) for pair in answer.split())
                results[name] = {k: int(v) if v.isdigit() else v for k, v in pairs}
    if not done or "?" in results:
        raise MatrixError(f"kernel {kernel} did not finish its jobs; {_console_end(text)}")
    return Boot(kernel, release, seconds, results, text)


def boot(kernel: Kernel, initrd: Path, timeout: float = BOOT_SECONDS) -> Boot:
    """Boot one kernel on the initramfs, let it run to its end and read its console."""
    line, arch = kernel.line, kernel.arch
    command = [*_QEMU[arch], *_COMMON, "-kernel", str(kernel.path), "-initrd", str(initrd)]
    command += ["-append", f"console={_CONSOLE[arch]} {_APPEND}"]
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as late:
        text = (late.stdout or b"").decode(errors="replace")
        raise MatrixError(
            f"kernel {line} did not stop within {timeout:.0f} s; {_console_end(text)}"
        ) from None
    text = done.stdout.decode(errors="replace")
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise MatrixError(f"{command[0]} failed ({done.returncode}): {' '.join(last)}")
    return parse_console(text, line, time.monotonic() - start)


def boot_all(
    folder: Path,
    kernels: Sequence[str] = KERNELS,
    arch: str = "x86_64",
    timeout: float = BOOT_SECONDS,
) -> dict[str, Boot]:
    """Boot each kernel on the job folder, as many at a time as there are CPUs.

    Raises MatrixError or FetchError with one line where something is missing or a boot fails.
    """
    qemu = _QEMU[arch][0]
    if not shutil.which(qemu):
        raise MatrixError(f"{qemu} is missing: apt-get install {_PACKAGE[arch]}")
    if not (folder / "jobs").is_file():
        raise MatrixError(f"{folder}: no job file `jobs` in it")
    runner = build_runner(arch)
    # In turn: apt's private folders have one writer.
    images = [fetch_kernel(kernel, arch) for kernel in kernels]
    with tempfile.TemporaryDirectory(prefix="bpfchain-matrix-") as scratch:

        def start(image: Kernel) -> Boot:
            initrd = Path(scratch) / f"{image.line}.gz"
            initrd.write_bytes(initramfs.build(runner, folder, image.config))
            return boot(image, initrd, timeout)

        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            return {one.kernel: one for one in pool.map(start, images)}


def boot_jobs(
    jobs: Sequence[Job],
    kernels: Sequence[str] = KERNELS,
    arch: str = "x86_64",
    timeout: float = BOOT_SECONDS,
) -> dict[str, Boot]:
    """Run the jobs on each kernel; a job without an answer is a MatrixError."""
    with tempfile.TemporaryDirectory(prefix="bpfchain-jobs-") as scratch:
        write_jobs(jobs, Path(scratch))
        boots = boot_all(Path(scratch), kernels, arch, timeout)
    for one in boots.values():
        silent = sorted({job.name for job in jobs} - one.results.keys())
        if silent:
            raise MatrixError(f"kernel {one.kernel} said nothing about {', '.join(silent)}")
    return boots


def run_matrix(
    jobs: Sequence[Job], kernels: Sequence[str] = KERNELS, arch: str = "x86_64"
) -> dict[str, dict[str, dict[str, int | str]]]:
    """{kernel: {job: result}}; the results are described at Boot."""
    return {name: one.results for name, one in boot_jobs(jobs, kernels, arch).items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a job folder on the kernels, print the results as JSON; 1 if a job failed."""
    parser = argparse.ArgumentParser(description="run BPF jobs on several kernels under QEMU")
    parser.add_argument("jobdir", type=Path, help="folder with the file `jobs` and what it names")
    parser.add_argument("--kernels", default=",".join(KERNELS), help="default: %(default)s")
    parser.add_argument("--arch", choices=sorted(ARCHES), default="x86_64")
    parser.add_argument("--timeout", type=float, default=BOOT_SECONDS, help="seconds per boot")
    parser.add_argument("-v", "--verbose", action="store_true", help="consoles on stderr")
    options = parser.parse_args(arguments)
    try:
        boots = boot_all(options.jobdir, options.kernels.split(","), options.arch, options.timeout)
    except (MatrixError, FetchError) as error:
        print(f"host: {error}", file=sys.stderr)
        return 5
    for one in boots.values():
        print(f"{one.kernel}: {one.release}, {one.seconds:.1f} s", file=sys.stderr)
        if options.verbose:
            print(one.console, file=sys.stderr)
    print(json.dumps({name: one.results for name, one in boots.items()}, indent=1))
    return int(any("error" in r for one in boots.values() for r in one.results.values()))


if __name__ == "__main__":
    sys.exit(main())

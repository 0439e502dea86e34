#!/usr/bin/env python3
"""What a chain costs per packet, in exact guest instructions, on each kernel of the matrix.

The thesis's three programs (IPv6/TCP filter, metrics, log) as links made by bpfchain-transform,
beside the same three chained by hand: `bench/manual/` is the corpus source with `return XDP_PASS`
made into a tail call, and this script refuses to measure where anything else differs.
How to read the table: bench/README.md.
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.chains import (
    MANUAL,
    PROGRAMS,
    RESULTS,
    BuildError,
    compile_c,
    first_line,
    transform,
)
from bench.kernels.fetch import ARCHES, KERNELS, FetchError, fetch_kernel
from bench.kernels.matrix import Boot, Job, Link, MatrixError, boot_jobs

# Object and program of each link, in order; the last one is not changed by hand.
CHAIN = (("filter", "filter"), ("metrics", "metrics"), ("log", "log_tcp"))
BASELINE = ("always_pass", "always_pass")

XDP_PASS = 2
LIMIT = 1.02  # chain / manual, for each packet


@dataclass(frozen=True, slots=True)
class Way:
    """Options of bpfchain-transform: for every link, for the first, for the ones after it."""

    every: Sequence[str] = ()
    first: Sequence[str] = ()
    later: Sequence[str] = ()


# Ways to chain with bpfchain-transform. `chain` is R empty, the one the limit is for.
WAYS: Mapping[str, Way] = {
    "chain": Way(),
    "slots": Way(first=("--redirect", "REDIRECT"), later=("--saved", "REDIRECT")),
    "subprog": Way(every=("--strategy", "subprog")),
}

# (arch, kernel, way) -> what the verifier says there, for what cannot work and must not: a way in
# this table that does load is a failure too, so that the table stays true.
EXPECTED: Mapping[tuple[str, str, str], str] = {
    (
        "aarch64",
        "5.10",
        "subprog",
    ): "tail_calls are not allowed in non-JITed programs with bpf-to-bpf calls",
}

BEGIN, END = "/* chained by hand: begin */\n", "/* chained by hand: end */\n\n"


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet and what the log link must do with it: records per run (0 or 1)."""

    data: bytes
    records: int


def _frame(ethertype: int, network: bytes) -> bytes:
    return bytes.fromhex("020000000002 020000000001") + struct.pack("!H", ethertype) + network


def packets() -> dict[str, Packet]:
    """The measured packets: one goes all the way through each link, one is of no interest to two.

    Checksums are zero: none of the programs looks at them.
    """
    tcp = struct.pack("!HHIIBBHHH", 40000, 443, 1, 0, 0x50, 0x18, 8192, 0, 0) + b"x" * 32
    nodes = bytes.fromhex("20010db8" + "00" * 11 + "01" + "20010db8" + "00" * 11 + "02")
    ipv6 = struct.pack("!IHBB", 6 << 28, len(tcp), 6, 64) + nodes + tcp
    udp = struct.pack("!HHHH", 40000, 53, 40, 0) + b"x" * 32
    ipv4 = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0)
    ipv4 += bytes((192, 0, 2, 1, 192, 0, 2, 2)) + udp
    return {
        "ipv6-tcp": Packet(_frame(0x86DD, ipv6), 1),
        "ipv4-udp": Packet(_frame(0x0800, ipv4), 0),
    }


def without_chaining(source: str) -> str:
    """The source of a hand-made link with its tail calls taken out again."""
    head, begin, rest = source.partition(BEGIN)
    block, end, body = rest.partition(END)
    if not begin or not end or "bpf_tail_call" not in block:
        raise BuildError("no block `chained by hand` with a tail call in it")
    return head + body.replace("return next(ctx);", "return XDP_PASS;")


def check_manual() -> None:
    """Raise BuildError where a hand-made link is more than its corpus source plus tail calls."""
    for index, (name, _) in enumerate(CHAIN[:-1]):
        source = (MANUAL / f"{name}.c").read_text()
        try:
            same = without_chaining(source) == (PROGRAMS / f"{name}.c").read_text()
        except BuildError as error:
            raise BuildError(f"bench/manual/{name}.c: {error}") from None
        if not same:
            raise BuildError(
                f"bench/manual/{name}.c differs from corpus/programs/{name}.c in more than its"
                " tail calls: copy the corpus source again and chain it"
            )
        if f"bpf_tail_call(ctx, &bpfchain_slots, {index + 1});" not in source:
            raise BuildError(f"bench/manual/{name}.c does not tail-call slot {index + 1}")


def build_manual(folder: Path) -> list[Link]:
    """Compile the hand-made links; the last one is the corpus's own object."""
    check_manual()
    links = []
    for index, (name, program) in enumerate(CHAIN):
        target = PROGRAMS / "el" / f"{name}.o"
        if index < len(CHAIN) - 1:
            target = compile_c(MANUAL / f"{name}.c", folder / f"manual-{name}.o")
        links.append(Link(target, {program: index}))
    return links


def build_chain(folder: Path, name: str, way: Way) -> list[Link]:
    """Transform the corpus objects into links with bpfchain-transform and the given options.

    Each entry program goes into the slot that the transformer's record names.
    """
    links = []
    for index, (source, _) in enumerate(CHAIN):
        target = folder / f"{name}-{source}.o"
        options = [*way.every, *(way.later if index else way.first)]
        options += ["--last"] * (index == len(CHAIN) - 1)
        slots = transform(PROGRAMS / "el" / f"{source}.o", index, target, options)
        links.append(Link(target, slots))
    return links


def build_ways(folder: Path) -> tuple[dict[str, list[Link]], dict[str, str]]:
    """All chains to measure, and for those that cannot be built the reason."""
    name, program = BASELINE
    ways = {
        "baseline": [Link(PROGRAMS / "el" / f"{name}.o", {program: 0})],
        "manual": build_manual(folder),
    }
    failed = {}
    for label, way in WAYS.items():
        try:
            ways[label] = build_chain(folder, label, way)
        except BuildError as error:
            failed[label] = str(error)
    return ways, failed


def check_result(job: Job, packet: Packet, result: Mapping[str, int | str]) -> str:
    """What is wrong with a result, or nothing: every link must have done its work."""
    if "error" in result:
        return str(result["error"])
    if result["retval"] != XDP_PASS:
        return f"returned {result['retval']}, not XDP_PASS"
    if len(job.links) > 1 and result["records"] != packet.records * job.repeat:
        return f"{result['records']} log records from {job.repeat} packets"
    if int(result["hits"]) < 2:
        return f"not settled: {result['ns']} instructions in one round of {job.rounds} only"
    return ""


def measure(
    ways: Mapping[str, Sequence[Link]], kernels: Sequence[str], arch: str
) -> tuple[dict[str, Boot], dict[str, dict[str, dict[str, int | str]]]]:
    """Boot the kernels; {kernel: {packet: {way: instructions or what went wrong}}}."""
    jobs = {
        (packet_name, way): Job(f"{packet_name}/{way}", links, packet.data)
        for packet_name, packet in packets().items()
        for way, links in ways.items()
    }
    boots = boot_jobs(list(jobs.values()), kernels, arch)
    table: dict[str, dict[str, dict[str, int | str]]] = {}
    for kernel, boot in boots.items():
        for (packet_name, way), job in jobs.items():
            result = boot.results[job.name]
            wrong = check_result(job, packets()[packet_name], result)
            row = table.setdefault(kernel, {}).setdefault(packet_name, {})
            row[way] = wrong or int(result["ns"])
    return boots, table


def _cell(row: Mapping[str, int | str], way: str) -> str:
    """`606 1.005 (1.006)`: instructions, the ratio to manual, and that without the baseline."""
    value, manual, baseline = row[way], row["manual"], row["baseline"]
    if isinstance(value, str):
        return "does not load"
    if isinstance(manual, str) or isinstance(baseline, str) or way in ("baseline", "manual"):
        return str(value)
    net = (value - baseline) / (manual - baseline)
    return f"{value} {value / manual:.3f} ({net:.3f})"


def print_table(table: Mapping[str, Mapping[str, Mapping[str, int | str]]]) -> None:
    """One table per packet: kernel x way."""
    print("guest instructions per packet, ratio to manual (the same without the baseline, which is")
    print("what the kernel's test run itself and a program that only returns take)")
    for packet in packets():
        ways = list(next(iter(table.values()))[packet])
        widths = [max(10, len(way) + 2) if way in ("baseline", "manual") else 22 for way in ways]
        print(f"\n{packet}")
        print("  kernel  " + "".join(f"{w:>{n}}" for w, n in zip(ways, widths, strict=True)))
        for kernel, rows in table.items():
            cells = [_cell(rows[packet], way) for way in ways]
            line = "".join(f"{c:>{n}}" for c, n in zip(cells, widths, strict=True))
            print(f"  {kernel:8}{line}")


def _unexpected(value: int | str, expected: str | None) -> str:
    """What is wrong with a measurement, given what it is expected to say (None: a number)."""
    if isinstance(value, int):
        return f"works, but is expected to say: {expected}" if expected else ""
    return "" if expected and expected in value else value


def find_failures(
    table: Mapping[str, Mapping[str, Mapping[str, int | str]]], limit: float, arch: str = "x86_64"
) -> list[str]:
    """One line for each measurement that failed and each kernel where the chain costs too much."""
    lines = []
    for kernel, rows in table.items():
        for packet, row in rows.items():
            for way, value in row.items():
                wrong = _unexpected(value, EXPECTED.get((arch, kernel, way)))
                if wrong:
                    lines.append(f"{kernel} {packet} {way}: {wrong}")
            chain, manual = row.get("chain"), row.get("manual")
            if isinstance(chain, int) and isinstance(manual, int) and chain > limit * manual:
                lines.append(
                    f"{kernel} {packet}: the chain costs {chain} instructions, manual {manual}:"
                    f" {chain / manual:.3f} times, allowed {limit}"
                )
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON; 1 where something failed or costs too much."""
    parser = argparse.ArgumentParser(description="instructions per packet of a chain of three")
    parser.add_argument("--kernels", default=",".join(KERNELS), help="default: %(default)s")
    parser.add_argument("--arch", choices=sorted(ARCHES), default="x86_64")
    parser.add_argument("--limit", type=float, default=LIMIT, help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, help="default: .build/bench/cost-ARCH.json")
    options = parser.parse_args(arguments)
    kernels = options.kernels.split(",")
    try:
        with tempfile.TemporaryDirectory(prefix="bpfchain-cost-") as scratch:
            ways, unbuilt = build_ways(Path(scratch))
            boots, table = measure(ways, kernels, options.arch)
        images = {kernel: fetch_kernel(kernel, options.arch) for kernel in kernels}
    except BuildError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 3
    except (MatrixError, FetchError) as error:
        print(f"host: {error}", file=sys.stderr)
        return 5
    print_table(table)
    failures = [f"{way}: {why}" for way, why in unbuilt.items()]
    failures += find_failures(table, options.limit, options.arch)
    expected = {
        f"{kernel} {way}": why
        for (arch, kernel, way), why in EXPECTED.items()
        if arch == options.arch and kernel in kernels
    }
    for where, why in expected.items():
        print(f"expected: {where}: {why}", file=sys.stderr)
    document = {
        "unit": "guest instructions per packet",
        "arch": options.arch,
        "limit": options.limit,
        "qemu": first_line([f"qemu-system-{options.arch}", "--version"]),
        "clang": first_line(["clang", "--version"]),
        "kernels": {
            kernel: {
                "release": boots[kernel].release,
                "version": images[kernel].version,
                "seconds": round(boots[kernel].seconds, 1),
                "packets": table[kernel],
            }
            for kernel in kernels
        },
        "expected": expected,
        "failures": failures,
    }
    output = options.output or RESULTS / f"cost-{options.arch}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(document, indent=1) + "\n")
    for line in failures:
        print(f"failed: {line}", file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())

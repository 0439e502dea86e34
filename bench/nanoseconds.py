#!/usr/bin/env python3
"""What a chain of eight links costs per packet on this machine's own kernel, in nanoseconds.

Instruction counts (bench/cost.py) do not see an indirect jump; time does. All ways to chain are
measured in one run, in turn, many rounds, so that what slows the machine slows all of them; each
way is loaded several times, because where the kernel puts the code moves the numbers too. Needs
root and a kernel that loads BPF. How to read the table: bench/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.chains import MANUAL, RESULTS, BuildError, compile_c, first_line

from bpfchain.loader.libbpf import ObjectFile
from bpfchain.loader.maps import Map
from bpfchain.loader.programs import Program
from bpfchain.transform.errors import BpfchainError
from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object

LINKS = 8
XDP_DROP, XDP_PASS, XDP_REDIRECT = 1, 2, 4
LIMIT = 1.05
"""slots / empty, where the machine was quiet: noise only adds, so it is the low end that repeats."""
SLOTS = "bpfchain_slots"

BODIES = {"byte": "byte", "verdict": "verdict_xdp"}
"""bench/manual/NAME.c -> its program."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to chain: by hand (``chained``, see chained.h) or by the transformer's options.

    ``first`` is what link 0 returns, the others return XDP_PASS. ``saved`` counts from link 1 on.
    """

    chained: int = 0
    redirect: str | None = None
    saved: str | None = None
    strategy: str = "inline"
    saved_code: str = "slots"
    first: int = XDP_PASS


SLOTS_R = Way(redirect="REDIRECT", saved="REDIRECT")
MAP_R = Way(redirect="REDIRECT", saved_code="map")
WAYS: Mapping[str, Way] = {
    "manual": Way(chained=1),
    "empty": Way(),
    "slots": SLOTS_R,
    "slots, saved": replace(SLOTS_R, first=XDP_REDIRECT),
    "subprog": Way(strategy="subprog"),
    "subprog, slots": replace(SLOTS_R, strategy="subprog"),
    "map": MAP_R,
    "map, saved": replace(MAP_R, first=XDP_REDIRECT),
    "indirect": Way(chained=2),
}
LIMITED = ("slots", "slots, saved")
"""Ways that must keep to the limit. ``indirect`` must not: it shows that the run can tell."""


@dataclass(frozen=True, slots=True)
class Built:
    """One link's object and the slots of its programs."""

    data: bytes
    slots: Mapping[str, int]


def key_of(name: str, index: int, way: Way) -> str:
    """What a map is known by: the chain's own by name; a link's by its index too, and for link 0
    by what it returns."""
    return (
        name if name.startswith("bpfchain_") else f"{index} {name} {way.first if not index else 0}"
    )


class Loaded:
    """A chain in the kernel, ready to be test-run."""

    def __init__(
        self, links: Sequence[Built], way: Way, bodies_maps: dict[str, Map], resources: ExitStack
    ) -> None:
        """``bodies_maps`` are the maps of the bodies, the same for all ways (where in memory a map
        lies moves the numbers by a tenth); the first way to be loaded makes them."""
        shared: dict[str, Map] = {}  # the chain's own maps, by the first object that has them
        programs: dict[int, Program] = {}
        self.runs: list[Map] = []
        for index, link in enumerate(links):
            obj = resources.enter_context(ObjectFile.open(link.data, f"link{index}"))
            for name, own in obj.maps.items():
                known = shared if name.startswith("bpfchain_") else bodies_maps
                if (key := key_of(name, index, way)) in known:
                    own.reuse(known[key])
            obj.load()
            for name, own in obj.maps.items():
                known = shared if name.startswith("bpfchain_") else bodies_maps
                if (key := key_of(name, index, way)) not in known:
                    known[key] = resources.enter_context(own.map())
            for name, slot in link.slots.items():
                programs[slot] = resources.enter_context(obj.programs[name].program())
            if "verdict" in obj.maps:
                code = way.first if index == 0 else XDP_PASS
                key = key_of("verdict", index, way)
                bodies_maps[key].update(bytes(4), code.to_bytes(4, sys.byteorder))
                self.runs.append(bodies_maps[key_of("runs", index, way)])
        for slot, program in programs.items():
            shared[SLOTS].set_fd(slot, program.fileno())
        self.head = programs[0]
        self.packet = bytes([way.first, *[XDP_PASS] * (LINKS - 1)]) + bytes(64 - LINKS)
        self.result = way.first

    def check(self) -> None:
        """Raise BuildError where not every link runs."""
        got = self.head.test_run(self.packet).retval
        if got != self.result:
            raise BuildError(f"the chain returned {got}, not {self.result}")
        if self.runs:
            before = self._counts()
            self.head.test_run(self.packet)
            counts = [b - a for a, b in zip(before, self._counts(), strict=True)]
            if counts != [1] * LINKS:
                raise BuildError(f"one packet, and the links ran {counts} times")
            return
        for link in range(LINKS):
            packet = bytearray(self.packet)
            packet[link] = XDP_DROP
            if (got := self.head.test_run(bytes(packet)).retval) != XDP_DROP:
                raise BuildError(f"the chain returned {got} where link {link} drops the packet")

    def _counts(self) -> list[int]:
        values = [runs.lookup(bytes(4)) or b"" for runs in self.runs]
        return [int.from_bytes(value, sys.byteorder) for value in values]

    def time(self, repeat: int) -> float:
        """Nanoseconds for one run, over ``repeat`` runs, by the kernel's clock.

        The kernel cuts off the fraction; half a nanosecond is its mean. Timing the system call
        from outside would have fractions, and 0.3 ms of the XDP dispatcher's rewriting in it.
        """
        return self.head.test_run(self.packet, repeat=repeat).duration_ns + 0.5


def build_links(folder: Path, body: str, way: Way) -> list[Built]:
    """The objects of one way."""
    links = []
    for index in range(LINKS):
        last = index == LINKS - 1
        target, flags = folder / f"{body}{index}.o", [f"-DLINK={index}"]
        if way.chained and not last:
            flags.append(f"-DCHAINED={way.chained}")
        compile_c(MANUAL / f"{body}.c", target, *flags)
        slots = {BODIES[body]: index}
        if not way.chained:
            saved = way.saved if index else None
            patched = transform_object(
                target.read_bytes(),
                Request(index=index, saved=saved, redirect=way.redirect, strategy=way.strategy,
                        saved_code=way.saved_code, last=last),
            )  # fmt: skip
            slots = {entry.name: entry.slot for entry in patched.entries}
            target.write_bytes(patched.data)
        links.append(Built(target.read_bytes(), slots))
    return links


Samples = dict[str, list[float]]
"""Way -> nanoseconds per packet, one for each round."""


def measure(
    links: Mapping[str, Sequence[Built]], body: str, loads: int, rounds: int, repeat: int
) -> Samples:
    """Load all ways ``loads`` times; each time ``rounds`` rounds in which every way has its turn."""
    samples: Samples = {name: [] for name in WAYS}
    order = random.Random(1)  # a fixed order of turns would favour who comes behind a light one
    for _ in range(loads):
        with ExitStack() as resources:
            names = order.sample(list(WAYS), len(WAYS))
            maps: dict[str, Map] = {}
            chains = {n: Loaded(links[n], WAYS[n], maps, resources) for n in names}
            for name, chain in chains.items():
                try:
                    chain.check()
                except BuildError as error:
                    raise BuildError(f"{body}, {name}: {error}") from None
                chain.time(repeat)  # warm
            for _ in range(rounds):
                for name in order.sample(names, len(names)):
                    samples[name].append(chains[name].time(repeat))
    return samples


@dataclass(frozen=True, slots=True)
class Row:
    """Nanoseconds and ratios to ``empty`` of one way: (quartile, median, quartile).

    ``quiet`` is the first decile of the nanoseconds: when nothing else ran.
    """

    quiet: float
    ns: tuple[float, float, float]
    ratio: tuple[float, float, float]


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return round(low, 4), round(middle, 4), round(high, 4)


def summarize(samples: Samples) -> dict[str, Row]:
    """The ratio is taken round by round, so that a slow moment does not count for one way only."""
    empty = samples["empty"]
    return {
        name: Row(
            statistics.quantiles(values, n=10)[0],
            _quartiles(values),
            _quartiles([a / b for a, b in zip(values, empty, strict=True)]),
        )
        for name, values in samples.items()
    }


def print_table(body: str, rows: Mapping[str, Row]) -> None:
    """One body: way, ns where it was quiet, then of all rounds, each with its ratio to empty."""
    empty = rows["empty"].quiet
    print(f"\n{body}, {LINKS} links")
    print(f"  {'way':15}{'quiet':>6}{'/ empty':>9}{'median':>8}  {'quartiles':14}{'/ empty':>7}")
    for name, row in rows.items():
        quiet = f"{row.quiet:6.1f}{row.quiet / empty:9.3f}"
        ns = f"{row.ns[1]:8.1f}  {f'{row.ns[0]:.1f}..{row.ns[2]:.1f}':14}"
        ratio = f"{row.ratio[1]:7.3f} ({row.ratio[0]:.3f}..{row.ratio[2]:.3f})"
        print(f"  {name:15}{quiet}{ns}{ratio}")


def find_failures(body: str, rows: Mapping[str, Row], limit: float) -> list[str]:
    """One line for each way over the limit, and one where the control stays below it."""
    ratio = {name: row.quiet / rows["empty"].quiet for name, row in rows.items()}
    lines = [
        f"{body}: {name} takes {ratio[name]:.3f} times what R empty takes, allowed {limit}"
        for name in LIMITED
        if ratio[name] > limit
    ]
    # The smallest body is where an indirect jump weighs most: not seen there, not seen at all.
    if body == "byte" and ratio["indirect"] <= limit:
        lines.append(
            f"{body}: the control with indirect jumps takes only {ratio['indirect']:.3f} times as"
            " long: this run cannot tell (no retpolines here, or too much noise)"
        )
    return lines


def machine() -> dict[str, str]:
    """What the numbers depend on."""
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    spectre = Path("/sys/devices/system/cpu/vulnerabilities/spectre_v2")
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": cpu,
        "cpus": str(os.cpu_count()),
        "spectre_v2": spectre.read_text().strip() if spectre.exists() else "unknown",
        "clang": first_line(["clang", "--version"]),
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the JSON; 1 where slots cost too much."""
    parser = argparse.ArgumentParser(description="nanoseconds per packet of a chain of eight")
    parser.add_argument("--loads", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=30, help="per load; default: %(default)s")
    parser.add_argument("--repeat", type=int, default=20_000, help="default: %(default)s")
    parser.add_argument("--limit", type=float, default=LIMIT, help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "nanoseconds.json")
    options = parser.parse_args(arguments)
    tables: dict[str, dict[str, Row]] = {}
    try:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        for body in BODIES:
            with tempfile.TemporaryDirectory(prefix="bpfchain-ns-") as scratch:
                links = {n: build_links(Path(scratch), body, way) for n, way in WAYS.items()}
            samples = measure(links, body, options.loads, options.rounds, options.repeat)
            tables[body] = summarize(samples)
    except (BuildError, BpfchainError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 3
    except OSError as error:  # BpfError and LibbpfError too
        print(f"host: {str(error).splitlines()[0]}", file=sys.stderr)
        return 5
    about = machine()
    rounds = options.loads * options.rounds
    print(f"{about['kernel']} on {about['cpu']} ({about['cpus']} CPUs, load {about['load']})")
    print(f"spectre_v2: {about['spectre_v2']}")
    print(
        f"{rounds} rounds of {options.repeat} runs, {options.loads} loads; nanoseconds per packet"
    )
    print("quiet: first decile of the rounds; the last ratio: median of the rounds' own ratios")
    failures = []
    for body, rows in tables.items():
        print_table(body, rows)
        failures += find_failures(body, rows, options.limit)
    document = {
        "unit": "nanoseconds per packet: lower quartile, median, upper quartile",
        "links": LINKS,
        "limit": options.limit,
        "rounds": rounds,
        "repeat": options.repeat,
        "machine": about,
        "bodies": {
            body: {
                n: {"quiet": row.quiet, "ns": row.ns, "ratio": row.ratio} for n, row in rows.items()
            }
            for body, rows in tables.items()
        },
        "failures": failures,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    for line in failures:
        print(f"failed: {line}", file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())

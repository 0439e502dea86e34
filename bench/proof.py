#!/usr/bin/env python3
"""How many packets a second the proof checks: original and patched program both run, and compared.

The links of the thesis's chain, the chain as a whole, and a program of about 100 executed
instructions (`hundred.c`), each in uBPF's interpreter, its JIT and this kernel's test run, in turn.
How to read the table: bench/README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.chains import PROGRAMS, RESULTS, ROOT, BuildError, compile_c

from bpfchain.emulator import _ubpf
from bpfchain.emulator.interpreter import Machine, Packets
from bpfchain.emulator.link import link_object
from bpfchain.transform.errors import BpfchainError
from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object
from bpfchain.verify.dynamic import check_dynamic
from bpfchain.verify.engines import engine_named
from bpfchain.verify.engines.protocol import Inputs, Setup
from bpfchain.verify.expected import Case
from bpfchain.verify.inputs import inputs_of
from bpfchain.verify.isolated import Pair
from bpfchain.verify.recording import Recording, builtin_recording
from bpfchain.verify.result import DynamicResult, Outcome
from bpfchain.verify.static.check import check_link
from bpfchain.verify.static.intent import Intent
from bpfchain.verify.whole import ChainLink, check_chain

CHAIN = ("filter", "metrics", "log")
"""As in examples/thesis/chain.toml: the last one is closed with --last."""
HUNDRED = "hundred"
EXECUTED = range(90, 121)
"""Instructions a packet that the original of `hundred.c` must execute, at the median."""
LIMITS = {"ubpf": 300_000, "ubpf-jit": 3_000_000}
"""Packets a second of one core at least, for `hundred.c`: column "batch"."""
ENGINES = ("ubpf", "ubpf-jit", "kernel")
ALONE = Case(None, False)

Rates = dict[tuple[str, str, str], list[float]]
"""(subject, engine, what) -> packets per CPU second, one a round."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A link, with what the static checker read of it."""

    name: str
    original: bytes
    patched: bytes
    intent: Intent


def cpu() -> float:
    """CPU seconds of this process and of its children that have ended (the JIT's)."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def subject(name: str, original: bytes, request: Request) -> Subject:
    """A link, proved by the static half. Raises BuildError where it is not."""
    patched = transform_object(original, request).data
    intent, static = check_link(original, patched)
    if static.outcome is not Outcome.EQUAL:
        raise BuildError(f"{name}: the static check says {static.outcome.word}")
    return Subject(name, original, patched, intent)


def build(folder: Path) -> list[Subject]:
    """The links of the chain, and the program of 100 instructions."""
    links = [
        subject(
            name,
            (PROGRAMS / "el" / f"{name}.o").read_bytes(),
            Request(index=index, last=index == len(CHAIN) - 1),
        )
        for index, name in enumerate(CHAIN)
    ]
    source = ROOT / "bench" / f"{HUNDRED}.c"
    made = compile_c(source, folder / "hundred.o").read_bytes()
    return [*links, subject(HUNDRED, made, Request(index=0))]


def recording(count: int) -> Recording:
    """The built-in recording's packets again and again, until there are so many."""
    whole = builtin_recording()
    times = range(count)
    packets = whole.packets * (count // len(whole.packets) + 1)
    return replace(whole, name=f"{count} packets", packets=packets[:count], times=tuple(times))


class Batches:
    """Both programs in native worlds of this process: what the engine does without the proof."""

    def __init__(self, one: Subject, inputs: Inputs, jit: bool) -> None:
        self._jit, self._name, self._count = jit, one.name, len(inputs)
        intent = one.intent
        names = (intent.program, intent.entry_name(None))
        self._machines = [
            Machine([link_object(data)], context="xdp") for data in (one.original, one.patched)
        ]
        self._programs = [
            machine.program(0, name) for machine, name in zip(self._machines, names, strict=True)
        ]
        self._saved = [machine.save() for machine in self._machines]
        self._maps = [
            spec.name for spec in self._machines[0].objects[0].maps
            if spec.name != intent.slots_map
        ]  # fmt: skip
        self._packets = Packets(inputs.packets, inputs.contexts[0], inputs.times).native

    def run(self) -> float:
        """Packets per CPU second. Raises BuildError where the two differ."""
        for machine, saved in zip(self._machines, self._saved, strict=True):
            machine.restore(saved)
        start = cpu()
        original, patched = (
            machine.world.run_batch(program, self._packets, jit=self._jit, coverage=False)
            for machine, program in zip(self._machines, self._programs, strict=True)
        )
        wrong = [f"packet {n}: {dimension}" for n, dimension in original.differences(patched, 1)]
        one, other = self._machines
        wrong += [
            f"map {name}" for name in self._maps if one.map(0, name).differs(other.map(0, name))
        ]
        seconds = cpu() - start
        if wrong or original.faults:
            raise BuildError(f"{self._name}: {wrong[0] if wrong else 'a fault'}: not equal")
        return self._count / seconds

    def executed(self) -> tuple[int, int]:
        """Instructions a packet, at the median: original, patched."""
        found = [
            machine.run(program, self._packets, coverage=False).instructions
            for machine, program in zip(self._machines, self._programs, strict=True)
        ]
        first, second = (int(statistics.median(memoryview(told).cast("I"))) for told in found)
        return first, second


def kernel_batch(one: Subject, inputs: Inputs) -> float:
    """The same by test runs, which are one system call a packet."""
    world = Setup(objects=(), hook=one.intent.hook, programs=())
    with Pair(engine_named("kernel"), one.original, one.patched, one.intent, world) as pair:
        start = cpu()
        original = pair.run_original(inputs, 0)
        difference = pair.compare(inputs, original, 0, ALONE).difference
        seconds = cpu() - start
    if difference is not None:
        raise BuildError(f"{one.name}: the two differ: {difference}")
    return len(inputs) / seconds


def checked(name: str, check: Callable[[], DynamicResult]) -> float:
    """Packets per CPU second of a whole check, from the recording to the result."""
    start = cpu()
    result = check()
    seconds = cpu() - start
    if result.outcome is not Outcome.EQUAL:
        raise BuildError(f"{name}: {result.findings[0].message}")
    return result.packets / seconds


def check_whole(
    links: Sequence[ChainLink], given: Sequence[Recording], engine: str
) -> DynamicResult:
    """The chain against the composed originals."""
    return check_chain(links, given, engine=engine).dynamic


def measure(
    subjects: Sequence[Subject], engines: Sequence[str], sizes: Mapping[str, int], rounds: int
) -> tuple[Rates, dict[str, tuple[int, int]]]:
    """Everything in turn, ``rounds`` times; the rates, and the executed instructions."""
    recordings = {engine: recording(sizes[engine]) for engine in engines}
    hook = subjects[0].intent.hook
    inputs = {engine: inputs_of(given, hook)[0] for engine, given in recordings.items()}
    natives = {
        (one.name, engine): Batches(one, inputs[engine], engine == "ubpf-jit")
        for one in subjects for engine in engines if engine != "kernel"
    }  # fmt: skip
    executed = {name: batch.executed() for (name, engine), batch in natives.items()
                if engine == "ubpf"}  # fmt: skip
    links = [ChainLink(original=one.original, patched=one.patched, intent=one.intent)
             for one in subjects if one.name != HUNDRED]  # fmt: skip
    rates: Rates = {}
    for _ in range(rounds):
        for engine in engines:
            given = [recordings[engine]]
            for one in subjects:
                native = natives.get((one.name, engine))
                rate = native.run() if native else kernel_batch(one, inputs[engine])
                rates.setdefault((one.name, engine, "batch"), []).append(rate)
                files = one.original, one.patched, one.intent
                rate = checked(one.name, partial(check_dynamic, *files, given, engine=engine))
                rates.setdefault((one.name, engine, "check"), []).append(rate)
            rate = checked("chain", partial(check_whole, links, given, engine))
            rates.setdefault(("chain", engine, "check"), []).append(rate)
    return rates, executed


def print_table(rates: Rates, engines: Sequence[str], executed: Mapping[str, object]) -> None:
    """One line a subject and kind of rate."""
    print(f"  {'subject':9}{'executed':12}{'rate':7}" + "".join(f"{e:>24}" for e in engines))
    for name, kind in dict.fromkeys((name, kind) for name, _, kind in rates):
        told = "{} {}".format(*executed[name]) if name in executed else ""  # type: ignore[misc]
        cells = ""
        for engine in engines:
            found = rates[name, engine, kind]
            cells += f"{max(found):>14,.0f} ({statistics.median(found):,.0f})".rjust(24)
        print(f"  {name:9}{told if kind == 'batch' else '':12}{kind:7}{cells}")


def find_failures(rates: Rates, executed: Mapping[str, tuple[int, int]]) -> list[str]:
    """One line for each limit that the best round does not reach."""
    failed = [
        f"{HUNDRED}: {max(found):,.0f} packets/s in {engine}, wanted {LIMITS[engine]:,}"
        for (name, engine, kind), found in rates.items()
        if name == HUNDRED and kind == "batch" and max(found) < LIMITS.get(engine, 0)
    ]
    if HUNDRED in executed and executed[HUNDRED][0] not in EXECUTED:
        failed.append(f"{HUNDRED}.c executes {executed[HUNDRED][0]} instructions, not about 100")
    return failed


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON; 1 where a limit is not reached."""
    parser = argparse.ArgumentParser(description="packets per second of the proof")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--packets", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--kernel-packets", type=int, default=1_000, help="default: %(default)s")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "proof.json")
    options = parser.parse_args(arguments)
    engines = ENGINES if os.geteuid() == 0 else ENGINES[:2]
    sizes = dict.fromkeys(engines, options.packets) | {"kernel": options.kernel_packets}
    _ubpf.allow_jit()  # the programs are our own: a crash ends this script
    try:
        with tempfile.TemporaryDirectory(prefix="bpfchain-proof-") as scratch:
            subjects = build(Path(scratch))
        rates, executed = measure(subjects, engines, sizes, options.rounds)
    except (BuildError, BpfchainError) as error:
        print(f"refused: {error}", file=sys.stderr)
        return 3
    except OSError as error:  # BpfError and LibbpfError too
        print(f"host: {str(error).splitlines()[0]}", file=sys.stderr)
        return 5
    load = f"{os.getloadavg()[0]:.1f}"
    print(f"Python {platform.python_version()}, Linux {platform.release()}, load {load}")
    print(f"packets per CPU second: the best of {options.rounds} rounds (the median)")
    print_table(rates, engines, executed)
    if "kernel" not in engines:
        print("  not measured: kernel (needs root)")
    failures = find_failures(rates, executed)
    document = {
        "unit": "packets per CPU second, one a round",
        "limits": LIMITS,
        "machine": {"kernel": platform.release(), "cpus": os.cpu_count(), "load": load},
        "packets": sizes,
        "executed": executed,
        "rates": {" ".join(key): [round(rate) for rate in found] for key, found in rates.items()},
        "failures": failures,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    for line in failures:
        print(f"failed: {line}", file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())

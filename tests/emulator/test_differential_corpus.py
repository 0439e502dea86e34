"""Every program of the corpus in the kernel and in the emulator: the built-in packets, mutated maps.

Of all types that the kernel runs on request. See ``differential`` for what is compared, and
``differences.toml`` for what differs and why.
"""

from __future__ import annotations

import functools
import struct
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from bpfchain.emulator.link import link_object
from bpfchain.transform.errors import RefusedError
from bpfchain.transform.policy import Hook, hook_of_section
from bpfchain.verify.engines import engine_named
from bpfchain.verify.engines.hooks import has_packets
from bpfchain.verify.engines.protocol import Inputs
from bpfchain.verify.inputs import inputs_of
from bpfchain.verify.mutate import mutated_packets
from bpfchain.verify.scenario import Scenario
from emulator.differential import Compared, compare, expect, seeds, setup_of, unknown
from emulator.handed import VMLINUX
from support.proofs import PROGRAMS, builtin, corpus

pytestmark = pytest.mark.usefixtures("kernel")

OF_THE_KERNEL = ("core_field", "core_raw_tp", "three_progs")
"""Objects with CO-RE fields of the kernel's structures, here resolved by its types in both."""
SEEDS = 6
LONG_SEEDS, LONG_PACKETS = 40, 2000


@dataclass(frozen=True, slots=True)
class Subject:
    """One program of a corpus object."""

    obj: str
    program: str
    hook: Hook

    def __str__(self) -> str:
        return f"corpus/{self.obj}/{self.program}"


def subjects() -> Iterator[Subject]:
    """All programs of types that the kernel runs, links and refused ones."""
    kernel = engine_named("kernel")
    index: list[dict[str, Any]] = tomllib.loads((PROGRAMS / "index.toml").read_text())["object"]
    for entry in index:
        for section, programs in entry["sections"].items():
            for program in programs:
                if section == ".text":
                    continue
                try:
                    hook = hook_of_section(section, entry.get("hook"), what=program)
                except RefusedError:
                    continue  # types that cannot be links, which no engine runs
                if kernel.refuses(hook) is None:
                    yield Subject(entry["name"], program, hook)


SUBJECTS = list(subjects())
TOTAL: Counter[str] = Counter()


@functools.cache
def inputs(hook: Hook) -> Inputs:
    if hook.name == "sk_lookup":  # the test run takes what a socket could be looked up for
        contexts = [
            struct.pack("<Q2I4s16x2H4s16x2I", 0, 2, protocol, bytes([10, 0, 0, 1]), port, 0,
                        bytes([10, 0, 0, last]), 80 + last, 0)
            for protocol, port, last in ((6, 0x3930, 2), (17, 0x3500, 9), (6, 0, 255))
        ]  # fmt: skip
        return Inputs([b""] * len(contexts), contexts)
    found = inputs_of(builtin(), hook)[0]
    if has_packets(hook):
        return found
    # a pointer into the kernel's memory would be followed there, to whatever this machine has
    safe = [
        n for n, context in enumerate(found.contexts) if b"\xff\xff" not in context.strip(b"\xff")
    ]
    assert len(safe) > 1
    return found.select(safe)


def run(subject: Subject, rounds: int, given: Inputs) -> Compared:
    """Without map contents, and with ``rounds`` mutated ones."""
    btf = VMLINUX.read_bytes() if subject.obj in OF_THE_KERNEL else None
    setup = setup_of(corpus(subject.obj), subject.hook, subject.program, btf=btf)
    compared = compare(setup, given)
    if not {"kernel load", "emulator load"} & compared.found.keys():
        linked = link_object(corpus(subject.obj), btf=btf)
        for seed in range(rounds):
            contents = seeds(linked, given.packets[:200], seed)
            if contents:
                changed = replace(setup, scenario=Scenario(maps=contents))
                compared.join(compare(changed, given))
    TOTAL["runs"] += compared.runs
    TOTAL["maps"] += compared.maps
    return compared


@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_corpus(subject: Subject) -> None:
    expect(str(subject), run(subject, SEEDS, inputs(subject.hook)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_corpus_at_length(subject: Subject) -> None:
    """Mutated packets too, and many map contents."""
    given = inputs(subject.hook)
    if given.packets[0]:
        made = mutated_packets(given.packets, (), 1, LONG_PACKETS)
        taken = [p for p in made if _taken(p, subject.hook)]
        given = Inputs(taken, [given.contexts[0]] * len(taken))
    expect(str(subject), run(subject, LONG_SEEDS, given))


def _taken(packet: bytes, hook: Hook) -> bool:
    from bpfchain.verify.packet_rules import admissible

    return admissible(packet, hook) is None


def test_the_list_names_what_is_there() -> None:
    assert unknown(map(str, SUBJECTS), "corpus/") == set()
    assert len(SUBJECTS) > 90
    assert len({subject.hook.prog_type for subject in SUBJECTS}) >= 9

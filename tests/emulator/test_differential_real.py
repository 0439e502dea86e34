"""Real objects of Debian packages in the kernel and in the emulator: packets and seeded maps."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from bpfchain.emulator.interpreter import _UNSIZED
from bpfchain.emulator.link import link_object
from bpfchain.loader.libbpf import ObjectFile
from bpfchain.loader.maps import possible_cpus
from bpfchain.loader.uapi import MapType
from bpfchain.transform.errors import RefusedError
from bpfchain.transform.policy import Hook, hook_of_section
from bpfchain.verify.engines import engine_named
from bpfchain.verify.engines.hooks import has_packets
from bpfchain.verify.engines.kernel_session import KernelSession
from bpfchain.verify.engines.protocol import Inputs
from bpfchain.verify.inputs import inputs_of
from bpfchain.verify.mutate import mutated_packets
from bpfchain.verify.packet_rules import admissible
from bpfchain.verify.scenario import Scenario
from emulator.differential import Compared, compare, expect, seeds, setup_of, unknown
from patched.kernel_code import OTHER_SIZES
from support.proofs import builtin
from support.real import RealObject, real_objects

pytestmark = [pytest.mark.usefixtures("kernel"), pytest.mark.real]

SEEDS, LONG_SEEDS = 2, 30
HOOKS = {"filter": "socket", "loadbalancer": "socket"}
"""Sections whose hook the name does not tell: Suricata's."""


@dataclass(frozen=True, slots=True)
class Subject:
    """One program of a real object; the same bytes of several packages count once."""

    real: RealObject
    program: str
    hook: Hook

    def __str__(self) -> str:
        return f"real/{self.real.name}/{self.program}"


def subjects() -> Iterator[Subject]:
    """Programs on packets of types that the kernel runs."""
    kernel = engine_named("kernel")
    seen = set()
    for real in real_objects():
        if real.sha256 in seen:
            continue
        seen.add(real.sha256)
        try:
            linked = link_object(real.data)
        except RefusedError:
            continue  # tests of the linker say which and why
        for name, section in linked.sections.items():
            try:
                hook = hook_of_section(section, HOOKS.get(section), what=name)
            except RefusedError:
                continue
            if has_packets(hook) and kernel.refuses(hook) is None:
                yield Subject(real, name, hook)


@functools.cache
def inputs(hook: Hook, long: bool) -> Inputs:
    found = inputs_of(builtin(), hook)[0]
    if not long:
        return found
    made = [p for p in mutated_packets(found.packets, (), 7, 3000) if admissible(p, hook) is None]
    return Inputs(made, [found.contexts[0]] * len(made))


@pytest.fixture(autouse=True)
def _sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the objects leave to their loader: entries of maps, as many as the emulator gives them."""
    opened = KernelSession._open

    def sized(self: KernelSession, number: int, data: bytes) -> ObjectFile:
        obj = opened(self, number, data)
        for found in obj.maps.values():
            if not found.max_entries and found.type not in (MapType.RINGBUF, *OTHER_SIZES):
                cpus = found.type == MapType.CPUMAP  # no kernel makes more than it has
                found.set_max_entries(possible_cpus() if cpus else _UNSIZED)
        return obj

    monkeypatch.setattr(KernelSession, "_open", sized)


def run(subject: Subject, rounds: int, long: bool) -> Compared:
    setup = setup_of(subject.real.data, subject.hook, subject.program)
    given = inputs(subject.hook, long)
    compared = compare(setup, given)
    if "kernel load" in compared.found or "emulator load" in compared.found:
        return compared
    linked = link_object(subject.real.data)
    for seed in range(rounds):
        contents = seeds(linked, given.packets[:200], seed)
        if contents:
            compared.join(compare(replace(setup, scenario=Scenario(maps=contents)), given))
    return compared


def check(rounds: int, long: bool) -> None:
    total = Compared()
    names, ran, wrong = set(), 0, []
    for subject in subjects():
        names.add(str(subject))
        found = run(subject, rounds, long)
        total.join(replace(found, found={}))
        ran += found.runs > 0
        try:
            expect(str(subject), found)
        except AssertionError as error:
            wrong.append(f"{subject.real.label}: {error}")
    print(f"{len(names)} programs, {ran} run: {total.runs} runs, {total.maps} maps, "
          f"{len(total.verdicts)} verdicts")  # fmt: skip
    assert not wrong, "\n".join(wrong)
    assert not unknown(names, "real/")
    assert ran > 50


@pytest.mark.long
def test_real_objects() -> None:
    check(SEEDS, long=False)


@pytest.mark.exhaustive
def test_real_objects_at_length() -> None:
    """Mutated packets and many map contents."""
    check(LONG_SEEDS, long=True)

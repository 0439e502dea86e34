"""Random programs that the verifier takes, original and patched, in the kernel and in the emulator.

``semantics.random_programs`` writes them. ``BPFCHAIN_DIFFERENTIAL=COUNT`` or ``COUNT,SEED`` runs
another number, or others.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import replace

import pytest

from bpfchain.emulator.link import link_object
from bpfchain.transform.errors import RefusedError
from bpfchain.transform.policy import hook_named
from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object
from bpfchain.verify.engines.protocol import Inputs, Marker
from bpfchain.verify.scenario import MapEntry, Scenario
from emulator.differential import Compared, compare, expect, setup_of
from semantics.places import TC, XDP
from semantics.random_programs import VALUE_SIZE
from semantics.test_random_programs import generate, options

pytestmark = pytest.mark.usefixtures("kernel")

GIVEN = os.environ.get("BPFCHAIN_DIFFERENTIAL", "2000") + ",1"
COUNT, SEED = (int(part) for part in GIVEN.split(",")[:2])
LONG = 20_000
BATCHES = 4
PACKETS = (
    bytes(64), bytes(range(14, 14 + 60)), b"\xff" * 128, bytes(range(256)) * 4,
    bytes.fromhex("00 00 00 00 00 00 02 00 00 00 00 01 0806") + b"\x81" * 30,
)  # fmt: skip
SLOTS = "bpfchain_slots"


def contexts(hook: str) -> list[bytes]:
    """One a packet: an skb's mark, priority and cb differ."""
    if hook == "xdp":
        return [b""] * len(PACKETS)
    made = []
    for number in range(len(PACKETS)):
        context = bytearray(192)
        context[8:12] = (number * 0x4000_0001 & 0xFFFF_FFFF).to_bytes(4, "little")
        context[32:36] = (number * 3).to_bytes(4, "little")
        context[48:68] = bytes(range(number, number + 20))
        made.append(bytes(context))
    return made


def run(hook_name: str, count: int, seed: int, batch: int) -> None:
    place = XDP if hook_name == "xdp" else TC
    hook = hook_named(hook_name)
    inputs = Inputs(PACKETS, contexts(hook_name))
    seen: Counter[str] = Counter()
    total = Compared()
    for number in range(count):
        name = f"{hook_name} {seed}.{batch}.{number}"
        rng = random.Random(f"differential {name}")
        data = generate(rng, hook_name)
        entries = tuple(
            MapEntry(bytes([key, 0, 0, 0]), rng.randbytes(VALUE_SIZE))
            for key in rng.sample(range(4), 2)
        )
        scenario = Scenario(maps={"table": entries} if rng.random() < 0.5 else {})
        setup = setup_of(data, hook, "prog", scenario=scenario)
        original = compare(setup, inputs)
        if "kernel load" in original.found:
            seen["not loaded"] += 1
            continue
        seen["original"] += 1
        expect(f"random/{name}", original)
        total.join(original)
        spec, index, state, last, marked = options(rng, place)
        request = Request(
            index=index, hook=place.name, success=spec.success.option, last=last,
            redirect=",".join(map(str, spec.redirect)) or None,
            saved=None if state is None else str(state), strategy=rng.choice(("inline", "subprog")),
        )  # fmt: skip
        try:
            made = transform_object(data, request)
        except RefusedError:
            seen["refused"] += 1
            continue
        link, slots = replace(setup, objects=(made.data,)), None
        if any(spec.name == SLOTS for spec in link_object(made.data).maps):
            link = replace(link, slots_map=SLOTS)
            if marked:
                slots = {index + 1: Marker(7), 33 + index + 1: Marker(8)}
        patched = compare(link, inputs, slots)
        expect(f"random/{name} {request.strategy}", patched)
        seen[f"patched, {'marked' if slots else 'alone'}"] += 1
        total.join(patched)
    print(f"{hook_name}: {dict(seen)}, {total.runs} runs, {total.maps} maps, {total.verdicts}")
    assert seen["original"] * 2 > count, "the generator writes too little that loads"
    assert seen["patched, marked"] + seen["patched, alone"] > seen["original"] // 3
    assert len(total.verdicts) > 3


@pytest.mark.parametrize("batch", range(BATCHES))
@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_random_programs(hook: str, batch: int) -> None:
    run(hook, -(-COUNT // (2 * BATCHES)), SEED, batch)


@pytest.mark.exhaustive
@pytest.mark.parametrize("batch", range(2 * BATCHES))
@pytest.mark.parametrize("hook", ["xdp", "tc"])
def test_more_random_programs(hook: str, batch: int) -> None:
    run(hook, LONG // (4 * BATCHES), SEED + 1, batch)

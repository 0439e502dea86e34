"""What libbpf hands to the kernel is the original's code, CO-RE relocations resolved alike; and the
verifier's log shows the original's source lines.

Each program is loaded alone, its object's others left out, so that objects with programs that this
kernel refuses are in it too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest

from bpfchain.loader.libbpf import LibbpfError
from bpfchain.loader.uapi import ProgType
from bpfchain.transform.errors import BpfchainError
from patched.expected import differences as differences_from_list
from patched.expected import rules
from patched.kernel_code import Given, differences, give, reached
from patched.objects import corpus_objects, hook_for, patch, programs_of
from patched.test_real_loaders import distinct, hook_of

pytestmark = pytest.mark.usefixtures("kernel")
STRATEGIES = ("inline", "subprog")


def source_lines(log: str) -> set[str]:
    """Source lines in a verifier log: ``; TEXT @ FILE:LINE``, or ``; TEXT`` of older kernels."""
    return set(re.findall(r"^(?:\d+: )?; (.+?)\s*$", log, re.M))


def own_lines(log: str) -> set[str]:
    return {line for line in source_lines(log) if "bpfchain" not in line}


def noise(said: str) -> set[str]:
    """libbpf's warnings, without section numbers and verifier logs."""
    lines = [line for line in said.splitlines() if line.startswith("libbpf: ")]
    return {re.sub(r"\(\d+\)", "()", line) for line in lines if "PROG LOAD LOG" not in line}


def complaints(
    data: bytes, program: str, section: str, hook: str | None, level: int
) -> tuple[list[str], int, int, str | None]:
    """What differs; how many patched programs were compared, and with how many instructions; why
    the original does not load, None if it does.
    """
    row = hook_for(section, hook)
    assert row is not None
    kind = row.prog_type_id
    try:
        old, alone = give(data, program, kind, level), True
    except LibbpfError:
        try:  # the others are needed where a map's initial values name them
            old, alone = give(data, program, kind, level, alone=False), False
        except LibbpfError as error:
            return [], 0, 0, f"{error}\n{error.log}"
    said: list[str] = []
    count = 0
    for strategy in STRATEGIES:
        done = patch(data, program, section, hook, strategy)
        if isinstance(done, BpfchainError):
            continue
        try:
            new = give(done.data, program, kind, level, alone=alone)
        except LibbpfError as error:
            said.append(f"{program}: {strategy}: does not load: {error}")
            continue
        count += 1
        said += [f"{program}: {strategy}: {line}" for line in compared(old, new, done.strategy)]
    return said, count, count * reached(old), None


def compared(old: Given, new: Given, strategy: str) -> Iterable[str]:
    yield from differences(old, new, strategy)
    missing = own_lines(old.said) - own_lines(new.said)
    if missing:
        yield f"source lines are not in the verifier's log: {sorted(missing)[:5]}"
    odd = noise(new.said) - noise(old.said)
    if odd:
        yield f"libbpf says what it did not say before: {sorted(odd)}"


LOADABLE = [
    one
    for one in corpus_objects()
    if one.expect == "link"
    and not one.name.startswith("legacy_maps")  # libbpf reads them only after the patch
]


@pytest.mark.parametrize("one", LOADABLE, ids=lambda one: str(one.name))
def test_corpus(one: object) -> None:
    name, path, hook = one.name, one.path, one.hook  # type: ignore[attr-defined]
    data = path.read_bytes()
    total = 0
    for program, section in programs_of(data).items():
        if hook_for(section, hook) is None:
            continue
        level = 0 if name.startswith("jump_") else 2  # a log of 32,768 instructions is no use
        said, count, _, _ = complaints(data, program, section, hook, level)
        assert not said, "\n".join(said)
        total += count
    if one.host:  # type: ignore[attr-defined]
        return
    assert total > 0, "the original does not load"


def test_source_lines_are_in_the_log() -> None:
    """So that the comparison of logs compares something."""
    (one,) = [o for o in corpus_objects() if o.name == "filter"]
    given = give(one.path.read_bytes(), "filter", ProgType.XDP, 2)
    assert any("ctx->data_end" in line for line in own_lines(given.said))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_difference_is_found(strategy: str) -> None:
    (one,) = [o for o in corpus_objects() if o.name == "static_subprog"]
    data = one.path.read_bytes()
    done = patch(data, one.program, one.section, one.hook, strategy)
    assert not isinstance(done, BpfchainError)
    old, new = give(data, one.program, ProgType.XDP), give(done.data, one.program, ProgType.XDP)
    assert differences(old, new, strategy) == []
    assert reached(old) > 10
    kept = new.insns
    broken = 0
    for at, insn in enumerate(kept):
        if insn.code & 7 == 7:  # an ALU64 instruction
            changed = Given(
                (*kept[:at], type(insn)(insn.code ^ 0x10, insn.registers, 0, 5), *kept[at + 1 :]),
                new.maps, "",
            )  # fmt: skip
            broken += bool(differences(old, changed, strategy))
    assert broken > 5


@pytest.mark.real
@pytest.mark.timeout(600)
@pytest.mark.parametrize("half", range(4))
def test_real(half: int) -> None:
    said: list[str] = []
    loaded: dict[str, str | None] = {}
    programs = instructions = 0
    for one in distinct()[half::4]:
        for program, section in programs_of(one.data).items():
            hook = hook_of(section)
            if hook_for(section, hook) is None:
                continue
            found, count, met, why = complaints(one.data, program, section, hook, 0)
            said += [f"{one.label}: {line}" for line in found]
            programs, instructions = programs + count, instructions + met
            loaded[f"{one.label} {program}"] = why
    print(f"{programs} patched programs compared, {instructions} instructions")
    assert programs > 100
    assert sum(why is None for why in loaded.values()) > 0.7 * len(loaded)
    said += differences_from_list(rules("expected_real.toml", "alone"), loaded)
    assert not said, "\n".join(said)

"""The engines against each other: the same programs on the same packets, and what each must do.

Where they differ the kernel is right; every difference that is left is explained here by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from bpfchain.transform.errors import OptionError, UsageError
from bpfchain.transform.policy import hook_named
from bpfchain.verify.engines import ENGINES, engine_named
from bpfchain.verify.engines.protocol import (
    FAULTED,
    NO_MARKER,
    Inputs,
    LoadError,
    Marker,
    ProgramRef,
    Runs,
    Session,
    Setup,
)
from bpfchain.verify.inputs import inputs_of
from bpfchain.verify.scenario import MapEntry, Scenario
from support.proofs import Subject, builtin, compiled, corpus, subjects

KERNEL = engine_named("kernel")
NOT_LOADED = {
    "legacy_maps": "libbpf reads no legacy maps since 1.0",
    "legacy_maps_g": "libbpf reads no legacy maps since 1.0",
    "ksyms_var_typed": "needs a kernel with CONFIG_KALLSYMS_ALL",
}
"""Objects that the kernel does not load."""
UNMODELLED = {
    "ksyms_func": "kernel function", "ksyms_weak": "kernel function",
    "callback_timer": "bpf_timer_init", "sk_ref": "bpf_sk_lookup_tcp",
    "cgroup_storage": "bpf_get_local_storage",
}  # fmt: skip
"""Objects that call what uBPF's side does not model, and what that is."""
OWN_TYPES = {
    "core_field": "CO-RE fields of the kernel's structures, here those of the object's own types",
    "core_raw_tp": "CO-RE fields of the kernel's structures, here those of the object's own types",
    "three_progs": "CO-RE fields of the kernel's structures, here those of the object's own types",
    "kconfig": "the kernel's own configuration, here none is given",
}
"""Objects whose maps (with kconfig: verdicts too) hold what they read of the kernel."""
REFERENCES = {"map_in_map": "outer", "tailcall_values": "jumps"}
"""Maps that hold maps or programs: ids in the kernel, indexes here."""

SUBJECTS = [s for s in subjects() if KERNEL.refuses(s.hook) is None]


def setup_of(subject: Subject) -> Setup:
    return Setup(
        objects=(subject.data,), hook=subject.hook, programs=(ProgramRef(0, subject.program),)
    )


def told(runs: Runs, number: int, *, verdict: bool) -> tuple[object, ...]:
    """What both kinds of engine tell of a packet."""
    records = [event for event in runs.events(number) if event[0] == "ringbuf"]
    code = runs.codes[number] if verdict else None
    return runs.ended[number], code, runs.packet(number), runs.metadata(number), records


def same_maps(kernel: Session, other: Session, subject: Subject) -> int:
    """Compare all maps that programs can change; per-CPU ones by the first CPU."""
    count = 0
    for name in kernel.map_names(0):
        if kernel.map_note(0, name) or REFERENCES.get(subject.obj) == name:
            continue
        ours, theirs = kernel.map_items(0, name), other.map_items(0, name)
        assert [key for key, _ in ours] == [key for key, _ in theirs], name
        for (key, a), (_, b) in zip(ours, theirs, strict=True):
            assert a[: len(b)] == b, f"map {name}[{key.hex()}]"
        count += 1
    return count


@pytest.mark.parametrize("engine", ["ubpf", "ubpf-jit"])
@pytest.mark.parametrize("subject", SUBJECTS, ids=str)
def test_they_agree_with_the_kernel(subject: Subject, engine: str, kernel: None) -> None:
    inputs, _ = inputs_of(builtin(), subject.hook)
    (program,) = setup_of(subject).programs
    with ExitStack() as stack:
        if subject.obj in NOT_LOADED:
            with pytest.raises(LoadError):
                stack.enter_context(KERNEL.open(setup_of(subject)))
            return
        ours = stack.enter_context(KERNEL.open(setup_of(subject)))
        theirs = stack.enter_context(engine_named(engine).open(setup_of(subject)))
        a, b = ours.run(program, inputs), theirs.run(program, inputs)
        if subject.obj in UNMODELLED:
            assert len(b.faults) == len(inputs)
            if engine == "ubpf" or "kernel" not in UNMODELLED[subject.obj]:
                assert all(UNMODELLED[subject.obj] in f.what for f in b.faults.values())
            return
        assert b.faults == {}
        taken = [n for n in range(len(inputs)) if n not in a.not_taken]
        for n in taken:
            verdict = subject.obj != "kconfig"
            assert told(a, n, verdict=verdict) == told(b, n, verdict=verdict), (
                f"packet {n}, {len(inputs.packets[n])} bytes"
            )
        if subject.obj not in OWN_TYPES and len(taken) == len(inputs):
            same_maps(ours, theirs, subject)
        least = 400 if inputs.packets[0] else 1
        assert len(taken) >= least, set(a.not_taken.values())


def test_enough_programs_are_compared() -> None:
    names = {subject.obj for subject in SUBJECTS}
    assert len(SUBJECTS) > 80
    assert NOT_LOADED.keys() | UNMODELLED.keys() | OWN_TYPES.keys() | REFERENCES.keys() <= names
    kinds = {subject.hook.prog_type for subject in SUBJECTS}
    assert len(kinds) >= 9


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("subject", [s for s in SUBJECTS if s.obj == "verdict_tc"], ids=str)
def test_skb_context_comes_back(subject: Subject, engine: str, kernel: None) -> None:
    """mark, priority and cb are those that were given, in all engines."""
    context = bytearray(192)
    context[8:12], context[32:36] = b"\x07\0\0\0", b"\x09\0\0\0"
    context[48:68] = bytes(range(20))
    inputs = Inputs([bytes(64)], [bytes(context)])
    with engine_named(engine).open(setup_of(subject)) as session:
        runs = session.run(setup_of(subject).programs[0], inputs)
    after = runs.context(0)
    assert after[8:12] == context[8:12]
    assert after[32:36] == context[32:36]
    assert after[48:68] == context[48:68]


TAILS = """
struct {
    __uint(type, BPF_MAP_TYPE_PROG_ARRAY);
    __uint(max_entries, 264);
    __type(key, __u32);
    __type(value, __u32);
} slots SEC(".maps");
struct {
    __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
    __uint(max_entries, 2);
    __type(key, __u32);
    __type(value, __u64);
} counts SEC(".maps");
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, 8);
    __type(key, __u32);
    __type(value, __u32);
} verdicts SEC(".maps");
SEC("xdp") int head(struct xdp_md *ctx)
{
    __u32 zero = 0;
    __u64 *count = bpf_map_lookup_elem(&counts, &zero);
    __u8 *data = (void *)(long)ctx->data;
    if (count)
        *count += 1;
    if ((void *)(data + 14) > (void *)(long)ctx->data_end)
        return 0;
    bpf_tail_call(ctx, &slots, data[0]);
    return 2;
}
SEC("xdp") int target(struct xdp_md *ctx)
{
    __u32 key = 5, *found = bpf_map_lookup_elem(&verdicts, &key);
    return found ? *found : 3;
}
"""
HEAD, TARGET = ProgramRef(0, "head"), ProgramRef(0, "target")


def tails(**more: object) -> Setup:
    return Setup(
        objects=(compiled(TAILS),), hook=hook_named("xdp"), programs=(HEAD, TARGET),
        slots_map="slots", **more,  # type: ignore[arg-type]
    )  # fmt: skip


def first_bytes(*values: int) -> Inputs:
    return Inputs([bytes([value]) + bytes(63) for value in values])


def ends(runs: Runs) -> Sequence[tuple[int, int]]:
    return [
        (ended, code if ended == NO_MARKER else 0)
        for ended, code in zip(runs.ended, runs.codes, strict=True)
    ]


@pytest.mark.parametrize("engine", ENGINES)
def test_slots_hold_markers_programs_or_nothing(engine: str, kernel: None) -> None:
    inputs = first_bytes(0, 1, 2, 200)
    with engine_named(engine).open(tails()) as session:
        assert ends(session.run(HEAD, inputs)) == [(NO_MARKER, 2)] * 4
        session.reset({1: Marker(41), 2: TARGET, 200: Marker(0)})
        assert ends(session.run(HEAD, inputs)) == [(NO_MARKER, 2), (41, 0), (NO_MARKER, 3), (0, 0)]
        session.reset({0: Marker(7)})
        assert ends(session.run(HEAD, inputs))[:2] == [(7, 0), (NO_MARKER, 2)]
        session.reset()
        assert ends(session.run(HEAD, inputs))[:2] == [(7, 0), (NO_MARKER, 2)]
        session.reset({})
        assert ends(session.run(HEAD, inputs)) == [(NO_MARKER, 2)] * 4


@pytest.mark.parametrize("engine", ENGINES)
def test_maps_persist_until_reset(engine: str, kernel: None) -> None:
    inputs = first_bytes(0, 0, 0)
    with engine_named(engine).open(tails()) as session, engine_named(engine).open(tails()) as other:

        def count() -> list[tuple[bytes, bytes]]:
            return [(key, value[:8]) for key, value in session.map_items(0, "counts")]

        assert count() == []
        session.run(HEAD, inputs)
        session.run(HEAD, inputs)
        assert count() == [(bytes(4), bytes([6]) + bytes(7))]
        assert session.map_differs(0, "counts", other, 0)
        other.run(HEAD, first_bytes(*[9] * 6))
        assert not session.map_differs(0, "counts", other, 0)
        session.reset()
        assert count() == []
        session.map_update(0, "counts", bytes(4), bytes([2]) + bytes(7))
        assert count() == [(bytes(4), bytes([2]) + bytes(7))]
        session.reset()
        assert count() == []


@pytest.mark.parametrize("engine", ENGINES)
def test_a_scenario_fills_maps(engine: str, kernel: None) -> None:
    scenario = Scenario(maps={"verdicts": (MapEntry(5, 1),), "of_another_link": (MapEntry(0, 0),)})
    with engine_named(engine).open(tails(scenario=scenario)) as session:
        assert session.run(TARGET, first_bytes(0)).codes[0] == 1
        session.reset()
        assert session.run(TARGET, first_bytes(0)).codes[0] == 1
    wrong = Scenario(maps={"verdicts": (MapEntry(bytes(3), 1),)})
    with pytest.raises(UsageError, match="verdicts"):
        engine_named(engine).open(tails(scenario=wrong))


@pytest.mark.parametrize("engine", ENGINES)
def test_maps_of_one_name_are_one_map(engine: str, kernel: None) -> None:
    setup = Setup(
        objects=(compiled(TAILS), compiled(TAILS)),
        hook=hook_named("xdp"),
        programs=(HEAD, ProgramRef(1, "head")),
        slots_map="slots",
        share={(0, "counts"): "all", (1, "counts"): "all"},
    )
    with engine_named(engine).open(setup) as session:
        session.reset({1: ProgramRef(1, "head")})
        session.run(HEAD, first_bytes(0))
        session.run(ProgramRef(1, "head"), first_bytes(0))
        for number in (0, 1):
            ((_, value),) = session.map_items(number, "counts")
            assert value[:8] == bytes([2]) + bytes(7)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_no_program_is_said(engine: str, kernel: None) -> None:
    setup = Setup(
        objects=(corpus("filter"),), hook=hook_named("xdp"), programs=(ProgramRef(0, "nothing"),)
    )
    with pytest.raises(LoadError, match="no program nothing"):
        engine_named(engine).open(setup)


def test_an_unknown_engine_names_the_nearest() -> None:
    with pytest.raises(OptionError) as caught:
        engine_named("kernal")
    assert caught.value.hint == "did you mean kernel?"


def test_only_the_interpreter_counts_and_covers() -> None:
    inputs = first_bytes(0, 1)
    with engine_named("ubpf").open(tails()) as session:
        runs = session.run(HEAD, inputs, coverage=True)
        covered = session.coverage(HEAD)
    assert min(runs.instructions) > 10
    assert covered is not None
    assert sum(covered.executed) == len({n for n, seen in enumerate(covered.executed) if seen}) > 10
    assert covered.origin[0] == ("xdp", 0)
    with engine_named("ubpf-jit").open(tails()) as session:
        assert session.run(HEAD, inputs, coverage=True).instructions[0] == 0
        assert session.coverage(HEAD) is None


@pytest.mark.parametrize("fill", [0x00, 0xA5])
@pytest.mark.parametrize("engine", ["ubpf", "ubpf-jit"])
def test_the_fill_lies_on_the_stack(engine: str, fill: int) -> None:
    source = """
    SEC("xdp") int residue(struct xdp_md *ctx)
    {
        __u64 word;
        asm volatile("%0 = *(u64 *)(r10 - 64)" : "=r"(word));
        return word & 0xff;
    }"""
    setup = Setup(
        objects=(compiled(source),), hook=hook_named("xdp"), programs=(ProgramRef(0, "residue"),)
    )
    with engine_named(engine).open(setup) as session:
        runs = session.run(setup.programs[0], first_bytes(0), fill=fill)
    assert runs.ended[0] != FAULTED
    assert runs.codes[0] == fill


@pytest.mark.parametrize(
    "name", ["kprobe", "tracepoint", "perf_event", "cgroup/connect4", "sk_msg", "xdp/devmap"]
)
def test_the_kernel_says_what_it_does_not_run(name: str) -> None:
    hook = hook_named(name)
    assert KERNEL.refuses(hook) == f"the kernel runs no {name} programs on request"
    assert engine_named("ubpf").refuses(hook) is None

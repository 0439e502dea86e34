"""A patched program alone does what the original does; with a next link it does what the reference
makes of the original's code. All corpus programs of types that the kernel test-runs with packets."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from bpfchain.loader.libbpf import LibbpfError, ObjectFile
from bpfchain.loader.maps import Map
from bpfchain.loader.programs import Program, TestRun
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import MapType, ProgType
from bpfchain.transform.errors import RefusedError
from bpfchain.transform.request import Patched, Request
from semantics.chains import ANY, OBJECTS, STRATEGIES, Codes, Single, Spec, corpus, listed, patched
from semantics.packets import MARKS, PACKETS
from semantics.places import SKB_IN, SKB_OUT, SOCKET, TC, TCX_IN, XDP, default
from semantics.tally import TALLY
from support.bpfcode import U32
from support.kernel import Chain

# section (or --hook, where the section names none) -> hook, its default S, two codes to save
_XDP = ("xdp", XDP.default, (4, 0))
HOOKS: dict[str, tuple[str, Codes, tuple[int, ...]]] = {
    "xdp": _XDP, "?xdp": _XDP, "xdp.frags": _XDP,
    "tc": ("tc", TC.default, (7, 0)), "classifier": ("tc", TC.default, (7, 0)),
    "tcx/ingress": ("tcx/ingress", TCX_IN.default, (7, 0)),
    "tcx/egress": ("tcx/egress", TCX_IN.default, (7, 0)),
    "cgroup_skb/ingress": ("cgroup_skb/ingress", SKB_IN.default, (0, 1)),
    "cgroup_skb/egress": ("cgroup_skb/egress", SKB_OUT.default, (0, 3)),
    "socket": ("socket", SOCKET.default, (0, -1)),
    **{name: (name, default("list", 0), (7, 0)) for name in ("lwt_in", "lwt_out", "lwt_xmit")},
}  # fmt: skip
SKB_TYPES = (ProgType.SCHED_CLS, ProgType.CGROUP_SKB)
"""Types whose test run takes a ``__sk_buff`` as context."""
COMPARED = {MapType.ARRAY, MapType.HASH, MapType.PERCPU_ARRAY, MapType.PERCPU_HASH,
            MapType.LRU_HASH, MapType.LPM_TRIE}  # fmt: skip

NO_LOAD = {"ksyms_var_typed": "needs a kernel with CONFIG_KALLSYMS_ALL: patched or not"}
"""The kernel refuses the original; where it does not, the program is compared as any other."""
CONVERTED = {"legacy_maps", "legacy_maps_g"}
"""libbpf reads no legacy maps since 1.0: the original here is what only had its maps converted."""
INLINE_ALL_THE_SAME = {
    "tailcall_subprog": "its tail call replaces the frame of a function, and returns to the program"
}
"""The index says that these refuse inline; they need not (see test_bodies)."""
NO_MARKER = {"cgroup_storage": "a PROG_ARRAY takes only programs with the same cgroup storage"}
OTHER_MAPS = {
    "callback_timer": "the map holds a timer, which fires later",
    "padded_key": "its key has bytes that it never writes",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """One program of one object at one hook."""

    obj: str
    program: str
    section: str
    named: str | None
    no_inline: str
    no_subprog: str
    others: tuple[str, ...] = ()
    """Programs that it calls through the initial entries of its own map."""
    options: tuple[tuple[str, str], ...] = ()

    @property
    def hook(self) -> tuple[str, Codes, tuple[int, ...]]:
        return HOOKS[self.named or self.section]


def _subjects() -> Iterator[Subject]:
    index = tomllib.loads((OBJECTS.parent / "index.toml").read_text())["object"]
    for entry in index:
        taken = entry["name"] == "name_taken"
        if entry["expect"] != "link" and not taken:
            continue
        refused = entry.get("refused_programs", {})
        for section, programs in entry["sections"].items():
            if (entry.get("hook") or section) not in HOOKS:
                continue
            for program in programs:
                if program not in refused:
                    yield Subject(
                        entry["name"], program, section, entry.get("hook"),
                        entry.get("inline", "") if entry["name"] not in INLINE_ALL_THE_SAME else "",
                        entry.get("subprog", ""), tuple(refused),
                        (("slots_map", "other_slots"),) if taken else (),
                    )  # fmt: skip


SUBJECTS = list(_subjects())


@pytest.fixture(autouse=True)
def _one_cpu() -> Iterator[None]:
    """Per-CPU maps count on one CPU, in both."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def make(
    subject: Subject, strategy: str, spec: Spec, *, index: int, saved: str | None = None,
    last: bool = False,
) -> Patched:  # fmt: skip
    return patched(
        subject.obj,
        Request(
            index=index, program=subject.program, hook=subject.hook[0], strategy=strategy,
            last=last, success=spec.success.option, saved=saved,
            redirect=",".join(map(str, spec.redirect)) or None,
            allow=frozenset({"redirect-hazard"}),
            **dict(subject.options),  # type: ignore[arg-type]
        ),
    )  # fmt: skip


def load_original(stack: ExitStack, subject: Subject, made: Patched) -> tuple[Chain, Program]:
    """The program as it is, under the name and with the types of the patched one."""
    hook = made.link.hook
    data = corpus(subject.obj)
    if subject.obj in CONVERTED:
        with pytest.raises(LibbpfError, match="maps"):
            ObjectFile.open(data)
        alone = patched(subject.obj, Request(index=0, program=subject.program, last=True))
        assert alone.strategy == "none"
        data = alone.data
    chain = Chain(
        [(data, made.link.index, {0: (0, subject.program)})],
        max_entries=4, slots_map="not_in_it", prog_type=ProgType(hook.prog_type_id),
        expected_attach_type=hook.attach_type_id, programs={subject.program, *subject.others},
    )  # fmt: skip
    stack.enter_context(chain)
    return chain, chain.head


def loads(subject: Subject, made: Patched) -> bool:
    """Whether the original does."""
    with ExitStack() as stack:
        try:
            load_original(stack, subject, made)
        except LibbpfError:
            return False
    return True


def inputs(type: ProgType) -> Iterator[tuple[bytes, bytes | None]]:
    """Packets, and for types with an skb some with a mark."""
    for packet in PACKETS:
        yield packet, None
    if type in SKB_TYPES:
        for mark in MARKS:
            yield PACKETS[0], bytes(8) + U32.pack(mark) + bytes(180)


def try_run(program: Program, data: bytes, ctx: bytes | None) -> TestRun | str:
    """A run, or the kernel's error for a packet that the type does not take (too short)."""
    try:
        return program.test_run(data, ctx)
    except BpfError as error:
        return f"errno {error.errno}"


def content(map: Map) -> object:
    if map.per_cpu:
        return {key: map.lookup_percpu(key) for key in map.keys()}  # noqa: SIM118
    return dict(map.items())


def compare_maps(subject: Subject, plain: Chain, link: Single) -> int:
    """Every map of the original has the same content in the patched one; how many they were."""
    index = link.made.link.index
    count = 0
    for name in plain.maps(index):
        ours = plain.map(index, name)
        if ours.type in COMPARED and subject.obj not in OTHER_MAPS:
            theirs = link.chain.map(index, name)
            assert content(ours) == content(theirs), f"{subject.obj}: map {name}"
            count += 1
    return count


def impossible(subject: Subject, strategy: str) -> bool:
    """Whether the index says that this strategy refuses the program; then it must."""
    reason = subject.no_inline if strategy == "inline" else subject.no_subprog
    if not reason:
        return False
    with pytest.raises(RefusedError):
        make(subject, strategy, Spec(subject.hook[1]), index=0)
    return True


CASES = [(s, strategy) for s in SUBJECTS for strategy in STRATEGIES]


@pytest.mark.parametrize(
    ("subject", "strategy"), CASES, ids=[f"{s.obj}-{s.program}-{strategy}" for s, strategy in CASES]
)
def test_equal_alone(subject: Subject, strategy: str) -> None:
    if impossible(subject, strategy):
        return
    _, success, saveable = subject.hook
    codes = ",".join(map(str, saveable))
    # of bodies of 32,000 instructions the verifier takes its time
    variants = 3 if len(corpus(subject.obj)) > 100_000 else 6
    for spec, index, state, last in (
        (Spec(success), 0, None, False),
        (Spec(success, saveable), 5, None, False),
        (Spec(success), 5, saveable[0], False),
        (Spec(ANY, saveable[1:]), 5, saveable[0], False),
        (Spec(ANY), 5, saveable[1], True),
        (Spec(listed()), 32, saveable[0], False),
    )[:variants]:
        saved = codes if index else None
        made = make(subject, strategy, spec, index=index, saved=saved, last=last)
        for marked in (False, True):
            compare(subject, made, spec, state, marked)


def compare(subject: Subject, made: Patched, spec: Spec, state: int | None, marked: bool) -> None:
    """One patched program beside the original on all packets, both freshly loaded."""
    if marked and (subject.obj in NO_MARKER or made.link.index == 32):
        return
    with ExitStack() as stack:
        if subject.obj in NO_LOAD and not loads(subject, made):
            with pytest.raises(LibbpfError):
                stack.enter_context(Single(made))
            return
        link = stack.enter_context(Single(made, subject.others))
        plain, original = load_original(stack, subject, made)
        if marked:
            link.mark()
        runs = 0
        for data, ctx in inputs(ProgType(made.link.hook.prog_type_id)):
            first = try_run(original, data, ctx)
            if isinstance(first, str):
                assert try_run(link.program(state), data, ctx) == first
                continue
            seen, second = link.run(state, data, ctx)
            where = f"{subject.obj}/{subject.program} {made.strategy} {spec} state {state}: {data.hex()}"
            assert seen == link.right(spec, state, first.signed), where
            if state is None and not marked:
                assert second.signed == first.signed, where
            assert second.data_out == first.data_out, where
            assert second.ctx_out == first.ctx_out, where
            runs += 1
        assert runs > 20, "the kernel took too few of the packets"
        TALLY.add("runs beside the original", runs)
        TALLY.add("maps beside the original's", compare_maps(subject, plain, link))


def test_enough_is_compared() -> None:
    """The lists above have not swallowed the corpus."""
    assert len(SUBJECTS) > 80
    names = {subject.obj for subject in SUBJECTS}
    assert NO_LOAD.keys() | CONVERTED | NO_MARKER.keys() | OTHER_MAPS.keys() <= names
    assert {subject.hook[0] for subject in SUBJECTS} == {hook for hook, _, _ in HOOKS.values()}

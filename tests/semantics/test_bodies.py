"""Bodies that leave a program by other ways than its own exits: tail calls, LD_ABS, callbacks."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bpfchain.loader.libbpf import ObjectFile
from bpfchain.loader.programs import Program, load_raw
from bpfchain.loader.uapi import AttachType, ProgType
from bpfchain.transform.errors import RefusedError
from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object
from semantics.chains import ANY, STRATEGIES, Single, Spec, corpus, excluding, listed, patched
from semantics.tally import TALLY
from support.bpfcode import U32, U64, compile_bpf, returns

XDP_SPECS = [
    Spec(success, redirect)
    for success in (listed(2), listed(0, 1), ANY, excluding(1), listed())
    for redirect in ((), (4,), (0, 2))
]
SAVED = {"saved": "0,4", "index": 3}
STATES = (None, 0, 4)
LENGTHS = (60, 61, 62, 63, 101, 102, 200, 513, 514, 600)


def request(spec: Spec, **options: object) -> Request:
    redirect = ",".join(map(str, spec.redirect)) or None
    return Request(
        success=spec.success.option, redirect=redirect, **options,  # type: ignore[arg-type]
        allow=frozenset({"redirect-hazard"}),  # the targets of own tail calls are not known
    )  # fmt: skip


@contextmanager
def original(name: str, *programs: str) -> Iterator[tuple[ObjectFile, Program]]:
    """The corpus object as it is, with the first of these programs."""
    with ObjectFile.open(corpus(name), "original") as obj:
        for program in obj.programs.values():
            program.set_autoload(program.name in programs)
        obj.load()
        with obj.programs[programs[0]].program() as loaded:
            yield obj, loaded


def compare(link: Single, spec: Spec, plain: Program, lengths: tuple[int, ...]) -> None:
    """Each entry, next absent and there: what the reference makes of the original's code."""
    for _ in ("next absent", "next there"):
        for length, state in itertools.product(lengths, STATES):
            code = plain.test_run(bytes(length)).signed
            seen, _run = link.run(state, bytes(length))
            TALLY.add("entry runs of one link")
            assert seen == link.right(spec, state, code), f"{spec} state {state}, {length} bytes"
        link.mark()


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("targets", [(), (0,), (1, 2), (0, 1, 2)])
def test_own_tail_calls(targets: tuple[int, ...], last: bool) -> None:
    """The chain goes on with what the callee returned, as the original would have."""
    with original("tailcall_own", "tailcall_own") as (obj, plain):
        for spec, codes in itertools.product(XDP_SPECS, ((2, 1, 4), (0, 3, 2), (4, 2, 1))):
            made = patched("tailcall_own", request(spec, strategy="subprog", last=last, **SAVED))
            with Single(made) as link, obj.maps["jumps"].map() as jumps:
                callees = [
                    load_raw(ProgType.XDP, returns(codes[n]), expected_attach_type=AttachType.XDP)
                    for n in targets
                ]
                for n, callee in zip(targets, callees, strict=True):
                    jumps.set_fd(n, callee.fileno())
                    link.map("jumps").set_fd(n, callee.fileno())
                    # the codes are the callees', not the entry's own PASS and DROP
                    if n == 0:
                        assert plain.test_run(bytes(600)).signed == codes[0]
                compare(link, spec, plain, LENGTHS)
                for callee in callees:
                    callee.close()


@pytest.mark.parametrize("last", [False, True])
def test_tail_call_to_its_own_object(last: bool) -> None:
    """``values`` name the target: above 100 bytes its DROP is the code."""
    with original("tailcall_values", "entry", "target") as (_, plain):
        assert [plain.test_run(bytes(n)).signed for n in (60, 200)] == [2, 1]
        for spec in XDP_SPECS:
            options = request(spec, program="entry", strategy="subprog", last=last, **SAVED)
            with Single(patched("tailcall_values", options), others=("target",)) as link:
                compare(link, spec, plain, LENGTHS)


TAILCALL_BELOW = """
struct { __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 1);
         __uint(key_size, 4); __uint(value_size, 4); } jumps SEC(".maps");
static __noinline int maybe(struct xdp_md *ctx) {
    int code = 3;
    bpf_tail_call(ctx, &jumps, 0);
    asm volatile("" : "+r"(code)); /* or clang tells the caller that it is 3 */
    return code;
}
SEC("xdp") int below(struct xdp_md *ctx) { return (maybe(ctx) + 1) & 7; }
"""


@pytest.mark.parametrize("callee", [None, 3, 0, 1, 7])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_tail_call_in_a_subprogram(strategy: str, callee: int | None, tmp_path: Path) -> None:
    """The callee returns to the program in place of the function that called it, so that the
    program's own exits are passed in either strategy."""
    data = compile_bpf(tmp_path, TAILCALL_BELOW)
    own = ((3 if callee is None else callee) + 1) & 7
    with load_raw(
        ProgType.XDP, returns(callee or 0), expected_attach_type=AttachType.XDP
    ) as target:
        for spec, last in itertools.product(XDP_SPECS, (False, True)):
            with Single(
                transform_object(data, request(spec, strategy=strategy, last=last, **SAVED))
            ) as link:
                if callee is not None:
                    link.map("jumps").set_fd(0, target.fileno())
                for _ in ("next absent", "next there"):
                    for state in STATES:
                        seen, _run = link.run(state, bytes(64))
                        assert seen == link.right(spec, state, own), f"{spec} state {state}"
                        TALLY.add("entry runs of one link")
                    link.mark()


@pytest.mark.parametrize("name", ["tailcall_own", "tailcall_values", "ldabs", "ldabs_tc"])
def test_inline_refuses_other_ways_out(name: str) -> None:
    program = "entry" if name == "tailcall_values" else None
    with pytest.raises(RefusedError, match="past the epilogue"):
        transform_object(corpus(name), Request(index=0, program=program, strategy="inline"))


@pytest.mark.parametrize("last", [False, True])
def test_load_behind_the_packet(last: bool) -> None:
    """LD_ABS and LD_IND beyond the end leave the body with 0, and the wrapper decides."""
    with original("ldabs", "ldabs") as (_, plain):
        # the kernel takes the Ethernet header off before a socket filter sees the packet
        short, long = bytes(14 + 8), bytes(14) + b"\x0d" + bytes(11) + b"\x86\xdd" + bytes(40)
        assert plain.test_run(short).signed == 0
        assert plain.test_run(long).signed == len(long) - 14
        for success, redirect in itertools.product(
            (listed(0), excluding(0), ANY, listed(22)), ((), (0,), (-1,))
        ):
            spec = Spec(success, redirect)
            options = request(spec, strategy="subprog", saved="0,-1", index=1, last=last)
            with Single(patched("ldabs", options)) as link:
                for _ in ("next absent", "next there"):
                    for packet, state in itertools.product((short, long), (None, 0, -1)):
                        code = plain.test_run(packet).signed
                        seen, _run = link.run(state, packet)
                        assert seen == link.right(spec, state, code), f"{spec} {state}"
                        TALLY.add("entry runs of one link")
                    link.mark()


LDABS_FAR = """
unsigned long long load_half(void *skb, unsigned long long offset) asm("llvm.bpf.load.half");
SEC("tc") int far(struct __sk_buff *skb) { return load_half(skb, 3000) == 1 ? 2 : 3; }
"""


def test_load_behind_the_packet_on_tc(tmp_path: Path) -> None:
    """There 0 is OK, which lets the packet on: the chain must go on too."""
    data = compile_bpf(tmp_path, LDABS_FAR)
    for success, redirect in itertools.product((None, 3), ((), (0,))):
        spec = Spec(excluding(2, 4, 7, 8) if success is None else listed(3), redirect)
        options = request(spec, strategy="subprog", saved="0,7", index=1)
        with Single(transform_object(data, options)) as link:
            for _ in ("next absent", "next there"):
                for (length, code), state in itertools.product(((64, 0), (3100, 3)), (None, 0, 7)):
                    seen, _run = link.run(state, bytes(length))
                    assert seen == link.right(spec, state, code), f"{spec} {state}"
                    TALLY.add("entry runs of one link")
                link.mark()


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    "name", ["static_subprog", "global_subprog", "callback_loop", "callback_map", "decl_tag"]
)
def test_exits_of_functions_are_not_the_programs(name: str, strategy: str) -> None:
    """Functions and callbacks return to the program, whatever S is: their codes are in it too."""
    packets = [bytes([a, b]) + bytes(n) for a in (0, 1, 2, 127, 128, 255) for b in (0, 1, 3, 200)
               for n in (58, 61, 70, 83)]  # fmt: skip
    with original(name, name) as (_obj, plain):
        codes = [plain.test_run(packet).signed for packet in packets]
        for spec in (Spec(ANY), Spec(listed(2)), Spec(listed(0, 1, 3), (4,)), Spec(ANY, (0, 1, 2))):
            made = patched(name, request(spec, strategy=strategy, **SAVED))
            with Single(made) as link:
                for _ in ("next absent", "next there"):
                    for (packet, code), state in itertools.product(
                        zip(packets, codes, strict=True), STATES
                    ):
                        seen, _run = link.run(state, packet)
                        assert seen == link.right(spec, state, code), (
                            f"{spec} {state} {packet[:2]!r}"
                        )
                        TALLY.add("entry runs of one link")
                    link.mark()
    # (of the other two every run on an empty map, or on interface 1, gives one code)
    assert len(set(codes)) > 1 or name in ("callback_map", "global_subprog")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_callback_of_a_map_walk(strategy: str) -> None:
    """Elements of the map change the code: the callback ran for each and returned 0 to go on."""
    made = patched("callback_map", request(Spec(listed(2)), index=0, strategy=strategy))
    with Single(made) as link, original("callback_map", "callback_map") as (obj, plain):
        link.mark()
        with obj.maps["numbers"].map() as numbers:
            for values in itertools.product((0, 2, 5), repeat=4):
                for key, value in enumerate(values):
                    for one in (numbers, link.map("numbers")):
                        one.update(U32.pack(key), U64.pack(value))
                code = plain.test_run(bytes(64)).signed
                assert code == (1 if sum(v >> 1 for v in values) & 1 else 2)
                seen, _run = link.run(None, bytes(64))
                assert seen == link.right(Spec(listed(2)), None, code)
                TALLY.add("entry runs of one link")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_timer_callback_is_not_patched(strategy: str) -> None:
    """It runs once after each run of the program and not the chain (S holds its 0)."""
    made = patched("callback_timer", request(Spec(ANY), index=0, strategy=strategy))
    with Single(made) as link:
        link.mark()
        for number in range(1, 4):
            assert link.run(None, bytes(64))[0] == link.right(Spec(ANY), None, 0)
            deadline = time.monotonic() + 10
            while True:
                value = link.map("elements").lookup(U32.pack(0))
                assert value is not None
                (fired,) = U64.unpack(value[16:24])
                if fired == number or time.monotonic() > deadline:
                    break
                time.sleep(0.002)
            time.sleep(0.01)
            assert fired == number
        assert link.run(None, bytes(64))[0][1] == [0]  # one marker: the timers ran none

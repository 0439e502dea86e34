"""Chains on real hooks with real packets: clsact, tcx, cgroups, with something that denies behind."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from bpfchain.loader.libbpf import ObjectFile
from bpfchain.loader.links import Link, link_create, link_create_tcx
from bpfchain.loader.programs import Program
from bpfchain.loader.uapi import AttachType
from bpfchain.verify.reference import chain_result
from semantics.chains import KEY, S32, STRATEGIES, Driven, Markers, Place, Spec, corpus, listed
from semantics.places import BIND4, RECVMSG4, SKB_OUT, TC, TCX_OUT
from semantics.tally import TALLY
from support.nets import child_cgroup, in_netns, make_pair, received, send, tool

PACKETS = 20
SHOT = 2
CODES = (-1, 9, 1, 0, 2, 3, 6, 4, 0x7FFF_FFFF)

Attach = Callable[[ExitStack, Program, int, int], None]
"""Attach a program (descriptors kept by the stack) at interface, as the n-th of the hook."""


@pytest.fixture
def clsact(bpffs: Path) -> Attach:
    def attach(stack: ExitStack, program: Program, ifindex: int, nth: int) -> None:
        if nth == 0:
            tool("tc", "qdisc", "add", "dev", "left", "clsact")
            stack.callback(tool, "tc", "qdisc", "del", "dev", "left", "clsact")
        path = bpffs / f"at{nth}"
        program.pin(path)
        stack.callback(path.unlink)
        tool(
            "tc", "filter", "add", "dev", "left", "egress", "prio", str(nth + 1), "handle", "1",
            "bpf", "da", "object-pinned", str(path),
        )  # fmt: skip

    return attach


@pytest.fixture
def tcx() -> Attach:
    def attach(stack: ExitStack, program: Program, ifindex: int, nth: int) -> None:
        stack.enter_context(link_create_tcx(program, ifindex, AttachType.TCX_EGRESS))

    return attach


@pytest.fixture(params=["clsact", "tcx"])
def hook(request: pytest.FixtureRequest) -> tuple[Place, Attach]:
    """A place and how its programs are attached."""
    place = TC if request.param == "clsact" else TCX_OUT
    return place, request.getfixturevalue(request.param)


def passed(attach: Attach, head: Program, deny: Program | None, ifindex: int) -> int:
    """How many packets come through ``head`` and what stands behind it on the hook."""
    with ExitStack() as stack:
        attach(stack, head, ifindex, 0)
        if deny is not None:
            attach(stack, deny, ifindex, 1)
        before = received("right")
        send("left", PACKETS)
        return received("right") - before


def test_the_hook_sees_the_code(hook: tuple[Place, Attach]) -> None:
    """Alone on its hook, with a denying program behind: a patched program lets as many packets
    through as the original, and the denying one runs as often."""
    place, attach = hook

    def work() -> None:
        ifindex = make_pair()
        with Markers(place.type, place.attach) as markers:
            deny = markers.make(0, SHOT)
            with ObjectFile.open(corpus(place.obj), "plain") as plain:
                for program in plain.programs.values():
                    program.set_autoload(program.name == place.program)
                    program.set_type(place.type)
                    program.set_expected_attach_type(place.attach)
                plain.load()
                with (
                    plain.programs[place.program].program() as original,
                    plain.maps["verdict"].map() as verdict,
                ):
                    expected = {}
                    for code, behind in itertools.product(CODES, (None, deny)):
                        verdict.update(KEY, S32.pack(code))
                        count = passed(attach, original, behind, ifindex)
                        expected[code, behind is deny] = count, len(markers.ran(1))
            assert expected[-1, False] == expected[9, False] == (PACKETS, 0)
            assert expected[-1, True] == (0, PACKETS)
            # clsact goes on to the next filter, tcx lets the packet on past its other programs
            # (tcx_run and tcx_action_code, include/net/tcx.h)
            assert expected[9, True] == ((0, PACKETS) if place is TC else (PACKETS, 0))
            assert expected[0, True] == (PACKETS, 0)
            for strategy, redirect in itertools.product(STRATEGIES, ((), (-1, 0))):
                with Driven(place, [Spec(place.default, redirect)], [strategy]) as chain:
                    for code, behind in itertools.product(CODES, (None, deny)):
                        chain.set([code])
                        count = passed(attach, chain.chain.head, behind, ifindex)
                        seen = count, len(markers.ran(1))
                        TALLY.add("real packets", PACKETS)
                        assert seen == expected[code, behind is deny], f"{strategy} {code}"

    in_netns(work)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_denying_link_behind(hook: tuple[Place, Attach], strategy: str) -> None:
    """The second link denies, and runs after every code that lets a packet on (S by default)."""
    place, attach = hook

    def work() -> None:
        ifindex = make_pair()
        specs = [Spec(place.default)] * 2
        with Driven(place, specs, [strategy] * 2) as chain:
            for code in CODES:
                chain.set([code, SHOT])
                chain.ran()
                count = passed(attach, chain.chain.head, None, ifindex)
                _, links = chain_result(specs, lambda n, c=code: (c, SHOT)[n])  # type: ignore[misc]
                right = [PACKETS, PACKETS if links == 2 else 0]
                assert (count, chain.ran()) == (0, right), f"{strategy} {code}"
                TALLY.add("real packets", PACKETS)
            for code in (-1, 9, 1, 3):  # and without it
                chain.set([code, code])
                assert passed(attach, chain.chain.head, None, ifindex) == PACKETS

    in_netns(work)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_saved_codes_reach_the_hook(hook: tuple[Place, Attach], strategy: str) -> None:
    """-1 saved, then 0: the hook goes on to the denying program; 0 saved, then -1: it does not."""
    place, attach = hook

    def work() -> None:
        ifindex = make_pair()
        with (
            Markers(place.type, place.attach) as markers,
            Driven(
                place, [Spec(place.default, (-1, 0)), Spec(place.default)], [strategy] * 2
            ) as chain,
        ):
            deny = markers.make(0, SHOT)
            for codes, through in (
                ((-1, 0), 0),
                ((0, -1), PACKETS),
                ((-1, 9), 0),
                ((3, 0), PACKETS),
            ):
                chain.set(codes)
                assert passed(attach, chain.chain.head, deny, ifindex) == through, str(codes)
                assert len(markers.ran(1)) == PACKETS - through
                TALLY.add("real packets", PACKETS)

    in_netns(work)


# ---- cgroups: a process of its own joins the group

_IN_GROUP = """
import json, os, socket, subprocess, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as group:
    group.write(str(os.getpid()))
what, count = sys.argv[2], int(sys.argv[3])
errors, got = 0, 0
if what == "bind":
    for _ in range(count):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            try:
                one.bind(("127.0.0.1", 0))
                got += 1
            except PermissionError:
                errors += 1
else:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        one.settimeout(5)
        for _ in range(count):
            try:
                one.sendto(b"x", one.getsockname())
            except PermissionError:
                errors += 1
        one.setblocking(False)
        try:
            while one.recvfrom(16):
                got += 1
        except BlockingIOError:
            pass
print(json.dumps([got, errors]))
"""


def in_group(group: Path, what: str) -> tuple[int, int]:
    """What a process in the group got, and how often it was not permitted."""
    out = tool(sys.executable, "-c", _IN_GROUP, str(group), what, str(PACKETS))
    got, errors = json.loads(out)
    return got, errors


def check_group(
    folder: Path, place: Place, what: str, strategy: str, specs: list[Spec],
    vectors: Sequence[tuple[int, ...]], allowed: Callable[[int], bool],
) -> None:  # fmt: skip
    """Attach the chain to a cgroup; for each vector of codes a process there tries ``what``."""

    def work() -> None:
        tool("ip", "link", "set", "lo", "up")
        with child_cgroup(folder) as group, ExitStack() as stack:
            descriptor = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, descriptor)
            chain = stack.enter_context(Driven(place, specs, [strategy] * len(specs)))
            attached: Link = link_create(chain.chain.head, descriptor, place.attach)
            stack.enter_context(attached)
            for codes in vectors:
                chain.set(codes)
                chain.ran()
                got, refused = in_group(group, what)
                result, links = chain_result(specs, lambda n, c=codes: c[n])  # type: ignore[misc]
                right = PACKETS if allowed(result) else 0
                # egress 2 drops too, but tells the sender of congestion, which is no error (UDP)
                errors = 0 if place is SKB_OUT and result == 2 else PACKETS - right
                assert (got, refused) == (right, errors), f"{codes} -> {result}"
                assert chain.ran() == [PACKETS] * links + [0] * (len(specs) - links), str(codes)
                TALLY.add("real packets", PACKETS)

    in_netns(work)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_cgroup_egress(strategy: str, tmp_path: Path) -> None:
    """3 lets a packet on: a denying link behind it denies. 2 denies by itself."""
    specs = [Spec(SKB_OUT.default), Spec(SKB_OUT.default)]
    vectors = [(3, 0), (1, 0), (3, 2), (3, 3), (3, 1), (1, 3), (2, 1), (0, 3)]
    check_group(tmp_path, SKB_OUT, "send", strategy, specs, vectors, lambda code: bool(code & 1))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_cgroup_egress_saved(strategy: str, tmp_path: Path) -> None:
    """0 and 2 saved (the packet is denied in the end, later links see it all the same)."""
    specs = [Spec(SKB_OUT.default, (0, 2)), Spec(listed(1, 3))]
    vectors = [(0, 1), (2, 3), (1, 1), (3, 0), (0, 0)]
    check_group(tmp_path, SKB_OUT, "send", strategy, specs, vectors, lambda code: bool(code & 1))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_cgroup_bind4(strategy: str, tmp_path: Path) -> None:
    specs = [Spec(BIND4.default), Spec(BIND4.default, (2,)), Spec(BIND4.default)]
    vectors = [(3, 1, 1), (3, 0, 1), (1, 2, 1), (2, 1, 1), (3, 3, 3), (1, 1, 0), (0, 3, 3)]
    check_group(tmp_path, BIND4, "bind", strategy, specs, vectors, lambda code: bool(code & 1))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_cgroup_recvmsg4(strategy: str, tmp_path: Path) -> None:
    """Nothing but 1 can be returned there; both links run for every message."""
    specs = [Spec(RECVMSG4.default), Spec(RECVMSG4.default, (1,)), Spec(RECVMSG4.default)]
    check_group(tmp_path, RECVMSG4, "send", strategy, specs, [(1, 1, 1)], lambda code: code == 1)

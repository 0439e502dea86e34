"""The tcx and clsact drivers on veth pairs, ingress and egress, among programs of others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from bpfchain.loader import netlink, query
from bpfchain.loader.hooks import (
    Direction,
    Kind,
    NoSuchHookError,
    Target,
    driver,
    interface_target,
    tcx,
)
from bpfchain.loader.links import link_create_tcx
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import AttachType, ProgType
from bpfchain.transform.errors import HostError, UsageError
from bpfchain.transform.policy import hook_named
from support.bpfcode import bpf_descriptors
from support.counting import Counting, gone
from support.nets import in_netns, make_pair, send, tool

pytestmark = pytest.mark.usefixtures("kernel")

FRAMES = 7
UNSPEC = -1
TCX_MAX = 63
"""BPF_MPROG_MAX less one, which the kernel keeps as the list's end."""
DIRECTIONS: tuple[Direction, ...] = ("ingress", "egress")
KINDS: tuple[Kind, ...] = ("tcx", "clsact")
TYPES = {"ingress": AttachType.TCX_INGRESS, "egress": AttachType.TCX_EGRESS}


def at_left(kind: Kind, direction: Direction, hook: str = "tc", priority: int = 0) -> Target:
    return interface_target(
        hook_named(hook), "left", direction=direction, kind=kind, priority=priority
    )


def classifier(name: str = "counting", value: int = UNSPEC, attach_type: int = 0) -> Counting:
    return Counting(ProgType.SCHED_CLS, value, attach_type, name=name)


def traffic(direction: Direction) -> None:
    send("right" if direction == "ingress" else "left", FRAMES)


def in_pair(work: Callable[[], None]) -> None:
    before = bpf_descriptors()

    def run() -> None:
        make_pair()
        work()

    in_netns(run)
    assert bpf_descriptors() == before


def qdiscs() -> str:
    return tool("tc", "qdisc", "show", "dev", "left")


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_attached_exchanged_found_again_detached(
    kind: Kind, direction: Direction, bpffs: Path
) -> None:
    def work() -> None:
        before = qdiscs()
        target = at_left(kind, direction)
        assert target.place == f"{kind}_{direction}"
        hook = driver(target)
        pin = bpffs / "link"
        with classifier() as first, classifier() as second:
            attached = hook.attach(first.program, target)
            assert attached.program_id == first.id
            traffic(direction)
            assert first.reaches(FRAMES)
            traffic("egress" if direction == "ingress" else "ingress")
            assert first.runs == FRAMES

            attached.swap(second.program, first.program)
            assert attached.program_id == second.id
            traffic(direction)
            assert second.reaches(FRAMES)
            assert first.runs == FRAMES
            with pytest.raises(HostError, match=f"program {second.id} is there"):
                attached.swap(second.program, first.program)

            attached.pin(pin)
            assert attached.pinnable == pin.exists() == (kind == "tcx")
            attached.close()
            assert hook.find(target, own=[first.id]) is None
            found = hook.find(target, pin=pin, own=[second.id])
            assert found is not None
            assert found.program_id == second.id
            found.detach()
            found.unpin(pin)
            assert hook.find(target, own=[second.id]) is None
            traffic(direction)
            assert second.runs == FRAMES
        assert not pin.exists()
        assert qdiscs() == before
        assert gone(first)
        assert gone(second)

    in_pair(work)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_hooks_of_either_kind(direction: Direction) -> None:
    """A tcx chain goes to tcx, or to clsact if asked; a tc chain to clsact, or to tcx if asked."""

    def work() -> None:
        own = interface_target(hook_named(f"tcx/{direction}"), "left")
        assert (own.kind, own.direction) == ("tcx", direction)
        assert interface_target(hook_named("tc"), "left", direction=direction).kind == "clsact"
        for kind in KINDS:
            target = at_left(kind, direction, f"tcx/{direction}")
            with classifier(attach_type=TYPES[direction]) as program:
                attached = driver(target).attach(program.program, target)
                traffic(direction)
                assert program.reaches(FRAMES)
                attached.detach()

    in_pair(work)


def test_the_direction_must_be_known() -> None:
    with pytest.raises(UsageError, match="needs --direction"):
        interface_target(hook_named("tc"), "lo")
    with pytest.raises(UsageError, match="--direction egress contradicts"):
        interface_target(hook_named("tcx/ingress"), "lo", direction="egress")


# ---- tcx


def test_neighbours_on_tcx_are_reported_and_stay() -> None:
    def work() -> None:
        target = at_left("tcx", "ingress")
        hook = driver(target)
        kind = AttachType.TCX_INGRESS
        index = target.ifindex or 0
        with (
            classifier("ahead") as ahead,
            classifier() as ours,
            classifier("later") as later,
            classifier("filter") as filtered,
            link_create_tcx(ahead.program, index, kind),
        ):
            attached = hook.attach(ours.program, target)
            with link_create_tcx(later.program, index, kind):
                netlink.add_clsact(index)
                netlink.set_filter(index, "ingress", 5, 9, filtered.program.fileno(), "x", new=True)
                seen = hook.foreign(target, [ours.id])
                assert [(one.kind, one.program_id, one.name) for one in seen] == [
                    ("tcx program", ahead.id, "ahead"),
                    ("tcx program", later.id, "later"),
                    ("clsact filter", filtered.id, "filter"),
                ]
                assert seen[0].what.endswith("on tcx runs before the chain")
                assert "runs behind the chain" in seen[1].what
                assert "priority 5, runs behind all of tcx" in seen[2].what
                assert not any(one.exclusive for one in seen)
                traffic("ingress")
                assert filtered.reaches(FRAMES)
                assert ahead.runs == ours.runs == later.runs == FRAMES
                attached.detach()
                left = query.prog_query(index, kind).programs
                assert [one.program_id for one in left] == [ahead.id, later.id]

    in_pair(work)


def test_a_full_hook_and_a_program_twice() -> None:
    def work() -> None:
        target = at_left("tcx", "egress")
        hook = driver(target)
        with ExitStack() as held, classifier() as last:
            attached = hook.attach(last.program, target)
            with pytest.raises(HostError, match="this very program is there already"):
                hook.attach(last.program, target)
            attached.detach()
            for _ in range(TCX_MAX):
                one = held.enter_context(classifier())
                held.callback(hook.attach(one.program, target).close)
            with pytest.raises(HostError, match=f"{TCX_MAX} programs are there, no more fit"):
                hook.attach(last.program, target)

    in_pair(work)


def test_a_kernel_without_tcx(monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows no such attach type: EINVAL for attaching and for asking."""

    def unknown(*_: object, **__: object) -> None:
        raise BpfError(22, "BPF_LINK_CREATE")

    def work() -> None:
        target = at_left("tcx", "ingress")
        with classifier() as program:
            monkeypatch.setattr(tcx, "link_create_tcx", unknown)
            monkeypatch.setattr(query, "prog_query", unknown)
            with pytest.raises(NoSuchHookError, match="this kernel has no tcx") as no:
                driver(target).attach(program.program, target)
            assert no.value.hint == "a clsact filter does it there"
            assert driver(target).foreign(target, ()) == ()
            clsact = at_left("clsact", "ingress")
            attached = driver(clsact).attach(program.program, clsact)
            assert driver(clsact).foreign(clsact, [program.id]) == ()
            attached.detach()

    in_pair(work)


# ---- clsact


def test_filters_of_others_are_reported_and_stay(bpffs: Path) -> None:
    def work() -> None:
        target = at_left("clsact", "ingress")
        hook = driver(target)
        with (
            classifier("early") as early,
            classifier("late") as late,
            classifier("intcx") as in_tcx,
            classifier() as ours,
            link_create_tcx(in_tcx.program, target.ifindex or 0, AttachType.TCX_INGRESS),
        ):
            tool("tc", "qdisc", "add", "dev", "left", "clsact")
            for name, one, priority in (("early", early, 1), ("late", late, 50000)):
                one.program.pin(bpffs / name)
                tool("tc", "filter", "add", "dev", "left", "ingress", "prio", str(priority), "bpf",
                     "da", "pinned", str(bpffs / name))  # fmt: skip
            tool("tc", "filter", "add", "dev", "left", "ingress", "prio", "60000", "protocol", "all",
                 "u32", "match", "u8", "0", "0", "at", "0", "classid", "1:1")  # fmt: skip
            unattached = hook.foreign(target, ())
            attached = hook.attach(ours.program, target)
            seen = hook.foreign(target, [ours.id])
            assert [(one.kind, one.program_id, one.name) for one in seen] == [
                ("tcx program", in_tcx.id, "intcx"),
                ("clsact filter", early.id, "early"),
                ("clsact filter", late.id, "late"),
                ("clsact filter", None, None),
            ]
            assert seen == unattached
            assert seen[0].what.endswith("on tcx runs before all clsact filters")
            assert "priority 1, runs before the chain" in seen[1].what
            assert "priority 50000, runs behind the chain" in seen[2].what
            assert seen[3].what.startswith("u32 filters of clsact, priority 60000, runs behind")
            traffic("ingress")
            assert late.reaches(FRAMES)
            assert early.runs == ours.runs == in_tcx.runs == FRAMES
            attached.detach()
            assert hook.foreign(target, ()) == unattached
            assert "clsact" in qdiscs()

    in_pair(work)


def test_filters_at_the_same_priority(bpffs: Path) -> None:
    """One that tc put where a chain's would go: the next free number is taken."""

    def work() -> None:
        target = at_left("clsact", "egress")
        with classifier("theirs") as theirs, classifier() as ours, classifier() as more:
            theirs.program.pin(bpffs / "theirs")
            tool("tc", "qdisc", "add", "dev", "left", "clsact")
            tool("tc", "filter", "add", "dev", "left", "egress", "prio", "49088", "bpf", "da",
                 "pinned", str(bpffs / "theirs"))  # fmt: skip
            attached = driver(target).attach(ours.program, target)
            seen = {
                one.program_id: one.priority
                for one in netlink.filters(target.ifindex or 0, "egress")
            }
            assert seen == {ours.id: 49087, theirs.id: 49088}
            chosen = at_left("clsact", "egress", priority=49088)
            with pytest.raises(HostError, match="a filter of priority 49088 is there"):
                driver(chosen).attach(more.program, chosen)
            chosen = at_left("clsact", "egress", priority=12)
            other = driver(chosen).attach(more.program, chosen)
            assert netlink.filters(target.ifindex or 0, "egress")[0].priority == 12
            other.detach()
            attached.detach()

    in_pair(work)


def test_the_qdisc_goes_with_the_last_filter_if_a_chain_made_it() -> None:
    def work() -> None:
        ways = [at_left("clsact", direction) for direction in DIRECTIONS]
        with classifier() as first, classifier() as second:
            for order in (ways, ways[::-1]):
                for program, target in zip((first, second), ways, strict=True):
                    driver(target).attach(program.program, target).close()
                for i, target in enumerate(order):
                    assert "clsact" in qdiscs()
                    found = driver(target).find(target, own=[first.id, second.id])
                    assert found is not None, i
                    found.detach()
                assert "clsact" not in qdiscs()

    in_pair(work)


def test_a_qdisc_that_was_there_stays() -> None:
    def work() -> None:
        target = at_left("clsact", "ingress")
        tool("tc", "qdisc", "add", "dev", "left", "clsact")
        with classifier() as program:
            driver(target).attach(program.program, target).detach()
        assert "clsact" in qdiscs()
        tool("tc", "qdisc", "del", "dev", "left", "clsact")
        tool("tc", "qdisc", "add", "dev", "left", "ingress")
        with classifier() as program:
            attached = driver(target).attach(program.program, target)
            traffic("ingress")
            assert program.reaches(FRAMES)
            attached.detach()
            egress = at_left("clsact", "egress")
            with pytest.raises(HostError, match="qdisc ingress is there, which has no egress"):
                driver(egress).attach(program.program, egress)
        assert "ingress" in qdiscs()

    in_pair(work)


def test_a_filter_that_someone_changed_is_left_alone(bpffs: Path) -> None:
    def work() -> None:
        target = at_left("clsact", "ingress")
        with classifier() as ours, classifier("theirs") as theirs:
            attached = driver(target).attach(ours.program, target)
            theirs.program.pin(bpffs / "theirs")
            tool("tc", "filter", "replace", "dev", "left", "ingress", "prio", "49088", "handle", "1",
                 "bpf", "da", "pinned", str(bpffs / "theirs"))  # fmt: skip
            for change in (attached.detach, lambda: attached.swap(ours.program, ours.program)):
                with pytest.raises(
                    HostError, match=f"program {theirs.id} is there, the chain's is"
                ):
                    change()
            assert attached.program_id == theirs.id
            tool("tc", "filter", "del", "dev", "left", "ingress")
            assert attached.program_id == 0
            with pytest.raises(HostError, match="no program is there"):
                attached.swap(theirs.program, ours.program)
            attached.detach()

    in_pair(work)


def test_netlink_says_what_the_kernel_says() -> None:
    def work() -> None:
        index = at_left("clsact", "ingress").ifindex or 0
        with classifier() as program, pytest.raises(netlink.NetlinkError) as no:
            netlink.set_filter(index, "ingress", 1, 1, program.program.fileno(), "x", new=True)
        assert str(no.value) == (
            f"bpf filter of interface {index}: Parent Qdisc doesn't exists (EINVAL)"
        )
        assert netlink.filters(index, "ingress") == ()
        with pytest.raises(netlink.NetlinkError) as no:
            netlink.xdp_programs(4000)
        assert no.value.errno == 19
        netlink.add_clsact(index)
        assert netlink.clsact_kind(index) == "clsact"
        assert not netlink.add_clsact(index)
        netlink.delete_clsact(index)
        assert netlink.clsact_kind(index) is None

    in_pair(work)

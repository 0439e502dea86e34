"""The XDP driver on veth pairs: native and generic, with frames that must reach the program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bpfchain.loader import netlink, netns, query
from bpfchain.loader.hooks import Mode, Target, driver, interface_target
from bpfchain.loader.links import Link, LinkInfo
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import AttachType, LinkType, ProgType
from bpfchain.transform.errors import HostError, UsageError
from bpfchain.transform.policy import hook_named
from support.bpfcode import XDP_DROP, XDP_PASS, bpf_descriptors, compile_bpf
from support.counting import Counting, gone
from support.nets import in_netns, make_pair, send, tool, until_up

pytestmark = pytest.mark.usefixtures("kernel")

XDP = hook_named("xdp")
MODES: tuple[Mode, ...] = ("native", "generic")
FRAMES = 7


def xdp(name: str = "counting", value: int = XDP_PASS) -> Counting:
    return Counting(ProgType.XDP, value, AttachType.XDP, name=name)


def in_pair(work: Callable[[], None]) -> None:
    """Run ``work`` in a namespace with ``left`` and ``right``; no descriptor may stay open."""
    before = bpf_descriptors()

    def run() -> None:
        make_pair()
        work()

    in_netns(run)
    assert bpf_descriptors() == before


@pytest.mark.parametrize("mode", MODES)
def test_attached_exchanged_found_again_detached(mode: Mode, bpffs: Path) -> None:
    def work() -> None:
        target = interface_target(XDP, "left", mode=mode)
        hook = driver(target)
        with xdp() as first, xdp() as second:
            attached = hook.attach(first.program, target)
            assert attached.program_id == first.id
            programs = netlink.xdp_programs(target.ifindex or 0)
            assert getattr(programs, mode) == programs.any == first.id
            send("right", FRAMES)
            assert first.reaches(FRAMES)

            attached.swap(second.program, first.program)
            send("right", FRAMES)
            assert second.reaches(FRAMES)
            assert first.runs == FRAMES

            attached.pin(bpffs / "link")
            attached.close()
            found = hook.find(target, pin=bpffs / "link")
            assert found is not None
            assert found.program_id == second.id
            send("right", FRAMES)
            assert second.reaches(2 * FRAMES)

            found.detach()
            found.unpin(bpffs / "link")
            assert netlink.xdp_programs(target.ifindex or 0).any == 0
            assert hook.find(target, pin=bpffs / "link", own=[second.id]) is None
            send("right", FRAMES)
            assert second.runs == 2 * FRAMES
        assert gone(first)
        assert gone(second)

    in_pair(work)


def test_the_mode_is_the_kernels_choice_where_none_is_named() -> None:
    def work() -> None:
        with xdp() as program:
            for name, mode in (("left", "native"), ("lo", "generic")):
                target = interface_target(XDP, name)
                attached = driver(target).attach(program.program, target)
                assert getattr(netlink.xdp_programs(target.ifindex or 0), mode) == program.id
                attached.detach()

    in_pair(work)


def test_an_exchange_is_refused_if_another_program_is_there() -> None:
    def work() -> None:
        target = interface_target(XDP, "left")
        with xdp() as first, xdp() as second, xdp() as third:
            attached = driver(target).attach(first.program, target)
            with pytest.raises(HostError) as no:
                attached.swap(third.program, second.program)
            assert no.value.message == (
                f"left xdp was changed by someone: program {first.id} is there,"
                f" the chain's is {second.id}"
            )
            assert attached.program_id == first.id
            attached.detach()

    in_pair(work)


def test_found_without_a_pin_by_the_programs_id() -> None:
    def work() -> None:
        target = interface_target(XDP, "left")
        hook = driver(target)
        with xdp() as program:
            attached = hook.attach(program.program, target)
            assert hook.find(target) is None
            assert hook.find(target, own=[program.id + 1]) is None
            found = hook.find(target, own=[program.id])
            assert found is not None
            found.detach()
            assert attached.program_id == 0
            attached.close()

    in_pair(work)


def _by_ip(path: Path) -> None:
    tool("ip", "link", "set", "dev", "left", "xdpgeneric", "pinned", str(path))


def _by_bpftool(path: Path) -> None:
    tool("bpftool", "net", "attach", "xdpdrv", "pinned", str(path), "dev", "left")


@pytest.mark.parametrize(("attach", "how"), [(_by_ip, "generic"), (_by_bpftool, "native")])
@pytest.mark.parametrize("mode", MODES)
def test_a_program_without_a_link_is_reported_and_displaced_only_by_force(
    attach: Callable[[Path], None], how: str, mode: Mode, bpffs: Path
) -> None:
    def work() -> None:
        target = interface_target(XDP, "left", mode=mode)
        hook = driver(target)
        with xdp("theirs") as theirs, xdp() as ours:
            theirs.program.pin(bpffs / "theirs")
            attach(bpffs / "theirs")
            (one,) = hook.foreign(target, [ours.id])
            assert (one.kind, one.program_id, one.name) == ("xdp program", theirs.id, "theirs")
            assert one.exclusive
            assert f"program theirs (id {theirs.id}, {how}, without a link" in one.what
            assert hook.foreign(target, [theirs.id]) == ()
            with pytest.raises(
                HostError, match=f"it is taken: program theirs .id {theirs.id}"
            ) as no:
                hook.attach(ours.program, target)
            assert "--force" in (no.value.hint or "")
            assert netlink.xdp_programs(target.ifindex or 0).any == theirs.id

            attached = hook.attach(ours.program, target, force=True)
            assert getattr(netlink.xdp_programs(target.ifindex or 0), mode) == ours.id
            attached.detach()

    in_pair(work)


def test_a_link_of_others_is_reported_and_displaced_only_by_force() -> None:
    def work() -> None:
        target = interface_target(XDP, "left")
        hook = driver(target)
        with xdp("theirs") as theirs, xdp() as ours:
            held = hook.attach(theirs.program, target)
            with pytest.raises(HostError, match="by a bpf_link"):
                hook.attach(ours.program, target)
            assert held.program_id == theirs.id
            attached = hook.attach(ours.program, target, force=True)
            assert (held.program_id, attached.program_id) == (0, ours.id)
            held.close()
            attached.detach()

    in_pair(work)


def test_what_xdp_loader_loads_is_recognised(tmp_path: Path) -> None:
    """With its dispatcher where this kernel lets that be, else as a program of its own."""
    compile_bpf(tmp_path, 'SEC("xdp") int one(struct xdp_md *ctx) { return XDP_PASS; }')

    def work() -> None:
        target = interface_target(XDP, "left", mode="generic")
        tool("xdp-loader", "load", "-m", "skb", "left", str(tmp_path / "p.o"))
        number = netlink.xdp_programs(target.ifindex or 0).any
        (seen,) = driver(target).foreign(target, ())
        assert seen.program_id == number
        if seen.name == "xdp_dispatcher":
            assert seen.kind == "libxdp dispatcher"
            assert "that calls 1 programs: one (id " in seen.what
        else:
            assert (seen.kind, seen.name) == ("xdp program", "one")
        with xdp() as ours, pytest.raises(HostError, match=f"it is taken: .*{number}"):
            driver(target).attach(ours.program, target)
        assert netlink.xdp_programs(target.ifindex or 0).any == number
        tool("xdp-loader", "unload", "left", "--all")
        assert driver(target).foreign(target, ()) == ()

    in_pair(work)


def test_a_dispatcher_is_recognised_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it calls is told by the links that extend it: given here, as not every kernel lets
    programs be extended."""

    def work() -> None:
        target = interface_target(XDP, "left")
        with xdp(query.DISPATCHER) as theirs, xdp("inside") as inside:
            held = driver(target).attach(theirs.program, target)
            (seen,) = driver(target).foreign(target, ())
            assert (seen.kind, seen.program_id) == ("libxdp dispatcher", theirs.id)
            assert "that calls 0 programs;" in seen.what
            links = (
                LinkInfo(7, LinkType.TRACING, inside.id, theirs.id, 0),
                LinkInfo(8, LinkType.TRACING, theirs.id, theirs.id, AttachType.TRACE_FENTRY),
                LinkInfo(9, LinkType.TRACING, theirs.id, inside.id, 0),
            )
            monkeypatch.setattr(query, "links", lambda: iter(links))
            (seen,) = driver(target).foreign(target, ())
            assert f"that calls 1 programs: inside (id {inside.id});" in seen.what
            held.detach()

    in_pair(work)


def test_names_with_a_dot_and_names_that_are_not_there() -> None:
    def work() -> None:
        tool("ip", "link", "set", "left", "down")
        tool("ip", "link", "set", "left", "name", "eth0.100")
        tool("ip", "link", "set", "eth0.100", "up")
        until_up("eth0.100", "right")
        target = interface_target(XDP, "eth0.100")
        assert (target.place, target.key, str(target)) == ("xdp", "eth0.100", "eth0.100 xdp")
        with xdp(value=XDP_DROP) as program:
            attached = driver(target).attach(program.program, target)
            send("right", FRAMES)
            assert program.reaches(FRAMES)
            attached.detach()
        with pytest.raises(HostError) as no:
            interface_target(XDP, "eth0.10")
        assert no.value.message == "no interface eth0.10 in this network namespace"
        assert no.value.hint == "did you mean eth0.100?"

    in_pair(work)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="XDP has no egress"):
        interface_target(XDP, "lo", direction="egress")
    with pytest.raises(UsageError, match="--mode native is for XDP"):
        interface_target(hook_named("tcx/ingress"), "lo", mode="native")
    with pytest.raises(UsageError, match="goes to xdp, not to tcx"):
        interface_target(XDP, "lo", kind="tcx")
    with pytest.raises(UsageError, match="is not attached to an interface"):
        interface_target(hook_named("cgroup/connect4"), "lo")
    with pytest.raises(UsageError, match="cannot be attached by bpfchain"):
        interface_target(hook_named("xdp/devmap"), "lo")


def test_a_driver_without_native_xdp() -> None:
    def work() -> None:
        target = interface_target(XDP, "lo", mode="native")
        with xdp() as program, pytest.raises(HostError, match="lo has no native XDP") as no:
            driver(target).attach(program.program, target)
        assert no.value.hint == "use --mode generic"

    in_pair(work)


def test_native_and_generic_exclude_each_other() -> None:
    def work() -> None:
        native = interface_target(XDP, "left", mode="native")
        generic = interface_target(XDP, "left", mode="generic")
        with xdp() as first, xdp() as second:
            attached = driver(native).attach(first.program, native)
            with pytest.raises(HostError, match="it is taken: program counting"):
                driver(generic).attach(second.program, generic)
            attached.detach()

    in_pair(work)


def test_an_interface_that_went_leaves_nothing_to_find(bpffs: Path) -> None:
    def work() -> None:
        target = interface_target(XDP, "left")
        hook = driver(target)
        with xdp() as program:
            attached = hook.attach(program.program, target)
            attached.pin(bpffs / "link")
            tool("ip", "link", "del", "left")
            assert attached.program_id == 0
            with pytest.raises(HostError, match="no interface left"):
                hook.find(target, pin=bpffs / "link")
            make_pair()
            again = interface_target(XDP, "left")
            assert again.ifindex != target.ifindex
            with pytest.raises(HostError, match="is another one now"):
                hook.find(target, pin=bpffs / "link")
            assert hook.find(again, pin=bpffs / "link") is None
            attached.close()
            with (
                Link.get_pinned(bpffs / "link") as left,
                xdp() as other,
                pytest.raises(BpfError, match="ENOLINK"),
            ):
                left.update(other.program)
            attached.unpin(bpffs / "link")

    in_pair(work)


def test_two_namespaces_with_the_same_interface_index(bpffs: Path) -> None:
    seen: list[tuple[str, Target]] = []

    def work() -> None:
        target = interface_target(XDP, "left")
        seen.append((netns.key(), target))
        pin = bpffs / f"link_{netns.key()}"
        with xdp() as program:
            attached = driver(target).attach(program.program, target)
            attached.pin(pin)
            attached.close()
            if len(seen) == 1:
                in_pair(work)
            send("right", FRAMES)
            assert program.reaches(FRAMES)
            found = driver(target).find(target, pin=pin)
            assert found is not None
            assert found.program_id == program.id
            found.detach()
            found.unpin(pin)

    in_pair(work)
    (first, one), (second, other) = seen
    assert one == other
    assert first != second
    assert first.isdecimal(), "this kernel knows cookies"

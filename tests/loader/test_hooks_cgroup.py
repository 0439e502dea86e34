"""The cgroup driver on cgroups of its own, with processes in them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfchain.loader import query
from bpfchain.loader.hooks import Target, cgroup_target, driver
from bpfchain.loader.hooks.cgroup import takes
from bpfchain.loader.links import Link
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import AttachType, ProgType
from bpfchain.transform.errors import HostError, RefusedError, UsageError
from bpfchain.transform.policy import hook_named
from support.bpfcode import bpf_descriptors
from support.counting import Counting, gone
from support.nets import child_cgroup, tool

pytestmark = pytest.mark.usefixtures("kernel")

TIMES = 5
ALLOW, DENY = 1, 0
EVENTS = {
    # what a process does to make TIMES events of a kind, and nothing else of that kind
    "cgroup/connect4": "s.connect(('127.0.0.1', 9))",
    "cgroup/sendmsg4": "s.sendto(b'x', ('127.0.0.1', 9))",
    "cgroup_skb/egress": "s.sendto(b'x', ('127.0.0.1', 9))",
    "cgroup/bind4": "s.bind(('127.0.0.1', 0)); s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "cgroup/sock_create": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
}


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Path]:
    before = bpf_descriptors()
    (tmp_path / "mounted").mkdir()
    with child_cgroup(tmp_path / "mounted") as folder:
        yield folder
    assert bpf_descriptors() == before


def program(hook: str, value: int = ALLOW, name: str = "counting") -> Counting:
    row = hook_named(hook)
    return Counting(ProgType(row.prog_type_id), value, row.attach_type_id, name=name)


def events(group: Path, kind: str) -> int:
    """Make TIMES events in a process inside the cgroup; how many of them were denied."""
    code = f"""
import os, socket
outside = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # imports what is needed
open({str(group / "cgroup.procs")!r}, "w").write(str(os.getpid()))
s = {"outside" if kind == "cgroup/sock_create" else "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)"}
denied = 0
for _ in range({TIMES}):
    try:
        {EVENTS[kind]}
    except PermissionError:
        denied += 1
print(denied)
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def at(group: Path, hook: str) -> Target:
    return cgroup_target(hook_named(hook), group)


@pytest.mark.parametrize("kind", EVENTS)
def test_attached_exchanged_found_again_detached(kind: str, group: Path, bpffs: Path) -> None:
    target = at(group, kind)
    assert (target.place, target.key) == (kind, str(group))
    hook = driver(target)
    pin = bpffs / "link"
    with program(kind) as first, program(kind, DENY) as second:
        attached = hook.attach(first.program, target)
        assert attached.program_id == first.id
        assert events(group, kind) == 0
        assert first.reaches(TIMES)

        attached.swap(second.program, first.program)
        assert events(group, kind) == TIMES
        assert second.reaches(TIMES)
        assert first.runs == TIMES
        with pytest.raises(HostError, match=f"program {second.id} is there"):
            attached.swap(second.program, first.program)

        attached.pin(pin)
        attached.close()
        found = hook.find(target, pin=pin)
        assert found is not None
        assert found.program_id == second.id
        by_id = hook.find(target, own=[first.id, second.id])
        assert by_id is not None
        by_id.close()
        assert hook.find(target, own=[first.id]) is None

        found.detach()
        assert hook.find(target, pin=pin, own=[second.id]) is None
        assert hook.foreign(target, ()) == ()
        found.unpin(pin)
        assert events(group, kind) == 0
        assert second.runs == TIMES
    assert gone(first)
    assert gone(second)


def test_a_program_of_another_attach_type_is_refused(group: Path) -> None:
    """The kernel would take it (seen on 6.18): connect6 in the place of connect4."""
    target = at(group, "cgroup/connect4")
    with program("cgroup/connect4") as four, program("cgroup/connect6") as six:
        assert takes(four.program, AttachType.CGROUP_INET4_CONNECT)
        assert not takes(six.program, AttachType.CGROUP_INET4_CONNECT)
        attached = driver(target).attach(four.program, target)
        with pytest.raises(RefusedError, match="not of attach type BPF_CGROUP_INET4_CONNECT"):
            attached.swap(six.program, four.program)
        assert attached.program_id == four.id
        with pytest.raises(RefusedError, match="the kernel takes no such program"):
            driver(target).attach(six.program, target)
        attached.detach()


@pytest.mark.parametrize("hook", ["cgroup_skb/ingress", "cgroup_skb/egress"])
def test_skb_programs_are_of_both_directions_unless_they_return_more(
    hook: str, group: Path
) -> None:
    """The kernel's own rule, asked for by ``takes``: egress with codes 2 and 3 is egress only."""
    wide = Counting(ProgType.CGROUP_SKB, 3, AttachType.CGROUP_INET_EGRESS)
    with wide, program(hook) as narrow:
        target = at(group, hook)
        assert takes(narrow.program, target.hook.attach_type_id)
        assert takes(wide.program, target.hook.attach_type_id) == hook.endswith("egress")


def test_a_pin_of_another_cgroup_or_kind_is_not_found(group: Path, bpffs: Path) -> None:
    target = at(group, "cgroup/connect4")
    inner = group / "inner"
    inner.mkdir()
    try:
        with program("cgroup/connect4") as one:
            attached = driver(target).attach(one.program, target)
            attached.pin(bpffs / "link")
            below = at(inner, "cgroup/connect4")
            assert driver(below).find(below, pin=bpffs / "link") is None
            other = at(group, "cgroup/connect6")
            assert driver(other).find(other, pin=bpffs / "link") is None
            attached.detach()
            attached.unpin(bpffs / "link")
    finally:
        inner.rmdir()


def test_programs_of_others_are_reported_and_stay(group: Path, bpffs: Path) -> None:
    target = at(group, "cgroup/connect4")
    hook = driver(target)
    inner = group / "inner"
    inner.mkdir()
    try:
        with (
            program("cgroup/connect4", name="ahead") as ahead,
            program("cgroup/connect4") as ours,
            program("cgroup/connect4", name="later") as later,
        ):
            for name, one in (("ahead", ahead), ("later", later)):
                one.program.pin(bpffs / name)
            command = ["bpftool", "cgroup", "attach", str(group), "connect4", "pinned"]
            tool(*command, str(bpffs / "ahead"), "multi")
            attached = hook.attach(ours.program, target)
            tool(*command, str(bpffs / "later"), "multi")
            seen = hook.foreign(target, [ours.id])
            assert [(one.program_id, one.name) for one in seen] == [
                (ahead.id, "ahead"), (later.id, "later"),
            ]  # fmt: skip
            assert "at this cgroup, runs before the chain" in seen[0].what
            assert "at this cgroup, runs behind the chain" in seen[1].what
            below = at(inner, "cgroup/connect4")
            assert {one.program_id for one in hook.foreign(below, ())} == {
                ahead.id, ours.id, later.id,
            }  # fmt: skip
            assert all("at a cgroup above" in one.what for one in hook.foreign(below, ()))
            assert events(group, "cgroup/connect4") == 0
            assert ahead.runs == ours.runs == later.runs == TIMES
            attached.detach()
            assert [one.program_id for one in hook.foreign(target, ())] == [ahead.id, later.id]
            for name in ("ahead", "later"):
                tool("bpftool", "cgroup", "detach", str(group), "connect4", "pinned",
                     str(bpffs / name))  # fmt: skip
    finally:
        inner.rmdir()


@pytest.mark.parametrize("flags", [[], ["override"]])
@pytest.mark.parametrize("above", [False, True])
def test_a_program_that_forbids_others_is_named(
    flags: list[str], above: bool, group: Path, bpffs: Path
) -> None:
    inner = group / "inner"
    inner.mkdir()
    try:
        target = at(inner if above else group, "cgroup/connect4")
        with program("cgroup/connect4", name="alone") as alone, program("cgroup/connect4") as ours:
            alone.program.pin(bpffs / "alone")
            tool("bpftool", "cgroup", "attach", str(group), "connect4", "pinned",
                 str(bpffs / "alone"), *flags)  # fmt: skip
            if flags and above:  # may be overridden below
                driver(target).attach(ours.program, target).detach()
            else:
                with pytest.raises(HostError) as no:
                    driver(target).attach(ours.program, target)
                assert f"alone (id {alone.id}) at {group} was attached so that" in no.value.message
            tool("bpftool", "cgroup", "detach", str(group), "connect4", "pinned",
                 str(bpffs / "alone"))  # fmt: skip
    finally:
        inner.rmdir()


def test_a_cgroup_that_went_leaves_nothing(tmp_path: Path, bpffs: Path) -> None:
    (tmp_path / "mounted").mkdir()
    with child_cgroup(tmp_path / "mounted") as group:
        inner = group / "inner"
        inner.mkdir()
        target = at(inner, "cgroup/connect4")
        with program("cgroup/connect4") as one, program("cgroup/connect4") as two:
            attached = driver(target).attach(one.program, target)
            attached.pin(bpffs / "link")
            inner.rmdir()
            # the kernel detaches some time after
            for _ in range(100_000):
                if attached.program_id == 0:
                    break
                os.sched_yield()
            assert attached.program_id == 0
            with pytest.raises(HostError, match="not attached any more"):
                attached.swap(two.program, one.program)
            inner.mkdir()
            again = at(inner, "cgroup/connect4")
            assert driver(again).find(again, pin=bpffs / "link") is None
            attached.close()
            (bpffs / "link").unlink()
            inner.rmdir()


def test_what_is_no_cgroup(group: Path, tmp_path: Path) -> None:
    row = hook_named("cgroup/connect4")
    with pytest.raises(HostError, match="is not a cgroup of version 2"):
        cgroup_target(row, tmp_path)
    (group / "inner").mkdir()
    with pytest.raises(HostError, match="no cgroup") as no:
        cgroup_target(row, group / "iner")
    assert no.value.hint == f"did you mean {group}/inner?"
    (group / "inner").rmdir()
    with pytest.raises(UsageError, match="is not attached to a cgroup"):
        cgroup_target(hook_named("xdp"), group)


def test_asking_for_more_programs_than_expected(group: Path) -> None:
    """64 fit in one cgroup, so its children see more than the first buffer holds."""
    inner = group / "inner"
    inner.mkdir()
    held: list[Link] = []
    target, below = at(group, "cgroup/connect4"), at(inner, "cgroup/connect4")
    with program("cgroup/connect4") as shared:
        try:
            more = []
            for place in (target, below):
                for _ in range(64):
                    one = program("cgroup/connect4")
                    more.append(one)
                    attached = driver(place).attach(one.program, place)
                    held.append(attached.link)  # type: ignore[attr-defined]
            with pytest.raises(HostError, match="as many programs as fit"):
                driver(target).attach(shared.program, target)
            fd = os.open(inner, os.O_RDONLY)
            try:
                kind = AttachType.CGROUP_INET4_CONNECT
                running = query.prog_query(fd, kind, effective=True).programs
                here = query.prog_query(fd, kind).programs
                with pytest.raises(BpfError, match="EINVAL"):
                    query.prog_query(fd, AttachType.XDP_DEVMAP)
            finally:
                os.close(fd)
            assert {one.program_id for one in running} == {one.id for one in more}
            assert [one.program_id for one in here] == [one.id for one in more[64:]]
        finally:
            for link in held:
                link.close()
            for one in more:
                one.__exit__(None, None, None)
    inner.rmdir()

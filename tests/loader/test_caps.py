"""Which capabilities there are, and the drivers with no others than they need, as another user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bpfchain.loader import caps
from bpfchain.loader.links import link_create, link_create_tcx
from bpfchain.loader.uapi import AttachType, ProgType
from support.bpfcode import bpf_descriptors
from support.counting import Counting
from support.nets import child_cgroup, in_netns, make_pair

pytestmark = pytest.mark.usefixtures("kernel")

USER = 65534
NEEDED = ("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON")

# Becomes another user with the capabilities in argv[1], then runs the code on stdin. All modules
# are loaded before, because that user may not be able to read the interpreter's.
BECOME = """
import ctypes, json, os, sys, traceback
from pathlib import Path
from bpfchain.loader import caps, grace, netlink, netns, perf, query
from bpfchain.loader.hooks import *
from bpfchain.loader.hooks import cgroup, clsact, network, socket, tcx, tracing, xdp
from bpfchain.loader.programs import Program
from bpfchain.loader.syscall import BpfError
from bpfchain.transform.errors import BpfchainError, HostError
from bpfchain.transform.policy import hook_named
from bpfchain.loader.uapi import AttachType, ProgType
from support.counting import Counting
import difflib, encodings.idna
code = compile(sys.stdin.read(), "child", "exec")
libc = ctypes.CDLL(None, use_errno=True)
def checked(result):
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
numbers = [caps.NUMBERS[name] for name in sys.argv[1].split(",") if name]
checked(libc.prctl(8, 1, 0, 0, 0))  # PR_SET_KEEPCAPS
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
low = sum(1 << n for n in numbers if n < 32)
high = sum(1 << n - 32 for n in numbers if n >= 32)
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
checked(libc.capset(header, data))
answer = {}
exec(code)
print(json.dumps(answer))
"""


def as_user(code: str, *held: str) -> Any:
    """Run ``code`` as another user with these capabilities alone: what it left in ``answer``."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BECOME, ",".join(held)],
        input=textwrap.dedent(code), capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def in_pair(work: Callable[[], None]) -> None:
    before = bpf_descriptors()

    def run() -> None:
        make_pair()
        work()

    in_netns(run)
    assert bpf_descriptors() == before


# ---- capabilities


def test_the_effective_ones_are_named() -> None:
    code = "answer = [sorted(caps.effective()), caps.missing(%r)]" % (NEEDED,)  # noqa: UP031
    assert as_user(code, "CAP_BPF", "CAP_PERFMON") == [
        ["CAP_BPF", "CAP_PERFMON"],
        ["CAP_NET_ADMIN"],
    ]
    assert as_user(code) == [[], list(NEEDED)]
    assert as_user(code, "CAP_SYS_ADMIN", "CAP_NET_ADMIN") == [sorted(caps.NUMBERS), []]


def test_before_5_8_it_is_cap_sys_admin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caps, "_last", lambda: 37)
    for bits, held, missing in (
        (1 << 21 | 1 << 12, {"CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"}, ()),
        (1 << 12, {"CAP_NET_ADMIN"}, ("CAP_SYS_ADMIN",)),
        (0, set(), ("CAP_SYS_ADMIN", "CAP_NET_ADMIN")),
    ):
        status = {"CapEff": f"{bits:016x}"}
        monkeypatch.setattr(caps, "_status", lambda status=status: status)
        assert caps.effective() == held
        assert caps.missing(NEEDED) == missing


def test_what_to_do_about_eperm(monkeypatch: pytest.MonkeyPatch) -> None:
    hint = "answer = caps.permission_hint(%r)" % (NEEDED,)  # noqa: UP031
    assert as_user(hint, "CAP_PERFMON") == (
        "this process lacks CAP_BPF and CAP_NET_ADMIN: run it as root or grant that"
    )
    assert "security module" in as_user(hint, *NEEDED)
    monkeypatch.setattr(caps, "in_user_namespace", lambda: True)
    assert "user namespace" in caps.permission_hint(())


def test_a_user_namespace_is_seen() -> None:
    assert not caps.in_user_namespace()
    code = "from bpfchain.loader import caps; print(caps.in_user_namespace())"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", code],
        capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    if "unshare failed" in done.stderr:
        pytest.skip(f"no user namespaces on this host: {done.stderr.strip()}")
    assert done.stdout.strip() == "True"


# ---- the drivers as another user


@pytest.fixture
def theirs(bpffs: Path) -> Path:
    """A folder of the bpffs that belongs to the other user, who can get there."""
    folder = bpffs / "theirs"
    folder.mkdir(mode=0o700)
    for path in (bpffs, bpffs.parent):
        path.chmod(0o755)
    os.chown(folder, USER, USER)
    return folder


INTERFACE = """
answer["known"] = query.program_name({theirs})
for kind, hook in (("xdp", "xdp"), ("tcx", "tcx/ingress"), ("clsact", "tc")):
    row = hook_named(hook)
    direction = None if kind == "xdp" else "ingress"
    target = interface_target(row, "left", kind=kind, direction=direction)
    with Counting(ProgType(row.prog_type_id), 2, row.attach_type_id) as one, \\
            Counting(ProgType(row.prog_type_id), 2, row.attach_type_id) as two:
        pin = Path({pins!r}, kind)
        attached = driver(target).attach(one.program, target)
        attached.swap(two.program, one.program)
        attached.pin(pin)
        attached.close()
        found = driver(target).find(target, pin=pin, own=[two.id])
        answer[kind] = [
            found.program_id == two.id,
            [[seen.kind, seen.program_id, seen.name] for seen in driver(target).foreign(target, [two.id])],
        ]
        found.detach()
        found.unpin(pin)
        answer[kind].append(driver(target).find(target, pin=pin, own=[two.id]) is None)
grace.wait()
answer["netns"] = netns.key()
"""


def test_interfaces_with_the_capabilities_that_they_need(theirs: Path) -> None:
    def work() -> None:

        tcx = AttachType.TCX_INGRESS
        with Counting(ProgType.SCHED_CLS, -1, tcx, name="neighbour") as other:
            held = link_create_tcx(other.program, 3, tcx)
            answer = as_user(INTERFACE.format(pins=str(theirs), theirs=other.id), *NEEDED)
            held.close()
        unnamed = [["tcx program", other.id, None]]
        assert answer.pop("netns").isdecimal()
        assert answer == {
            "known": None, "xdp": [True, [], True], "tcx": [True, unnamed, True],
            "clsact": [True, unnamed, True],
        }  # fmt: skip

    in_pair(work)
    assert list(theirs.iterdir()) == []


def test_a_program_of_unknown_name_in_the_way() -> None:
    code = """
    target = interface_target(hook_named("xdp"), "left")
    with Counting(ProgType.XDP, 2, 37) as one:
        for force in (False, True):
            try:
                driver(target).attach(one.program, target, force=force)
            except HostError as error:
                answer[str(force)] = [error.message, error.hint]
    """

    def work() -> None:
        from bpfchain.loader.links import link_create

        with Counting(ProgType.XDP, 2, AttachType.XDP) as other:
            held = link_create(other.program, 3, AttachType.XDP)
            answer = as_user(code, *NEEDED)
            assert held.info().prog_id == other.id
            held.close()
        assert answer["False"] == [
            "cannot attach to left xdp: it is taken: a program of unknown name"
            f" (id {other.id}, native)",
            "detach it first, or displace it with --force",
        ]
        message, hint = answer["True"]
        assert message.startswith(
            f"cannot displace program {other.id} of unknown name from left xdp: "
        )
        assert hint == "a bpf_link of others can be detached only with CAP_SYS_ADMIN"

    in_pair(work)


def test_cgroups_sockets_and_tracing(theirs: Path, tmp_path: Path) -> None:
    code = """
    def check(target, value):
        row = target.hook
        pid = os.getpid() if row.prog_type_id in (5, 7, 17) else None
        with Counting(ProgType(row.prog_type_id), value, row.attach_type_id, pid=pid) as one:
            pin = Path({pins!r}, "link")
            attached = driver(target).attach(one.program, target)
            attached.pin(pin)
            seen = [
                attached.program_id == one.id,
                [[other.program_id, other.name] for other in driver(target).foreign(target, [one.id])],
            ]
            attached.detach()
            attached.unpin(pin)
            answer[str(target.kind)] = seen
    import socket as sockets
    check(cgroup_target(hook_named("cgroup/connect4"), {group!r}), 1)
    with sockets.socket() as one:
        check(socket_target(hook_named("socket"), one.fileno()), 1)
    check(named_target(hook_named("raw_tp"), "task_rename"), 0)
    check(named_target(hook_named("perf_event"), "software:0:1000000"), 0)
    check(named_target(hook_named("sk_lookup"), ""), 1)
    check(named_target(hook_named("netfilter"), "ip/input"), 1)
    """
    (tmp_path / "mounted").mkdir()
    for path in (tmp_path, *tmp_path.parents):
        path.chmod(path.stat().st_mode | 0o111)
    with (
        child_cgroup(tmp_path / "mounted") as group,
        Counting(ProgType.CGROUP_SOCK_ADDR, 1, AttachType.CGROUP_INET4_CONNECT) as other,
    ):
        fd = os.open(group, os.O_RDONLY)
        held = link_create(other.program, fd, AttachType.CGROUP_INET4_CONNECT)
        os.close(fd)
        answers: list[Any] = []
        code = code.format(pins=str(theirs), group=str(group))
        in_pair(lambda: answers.append(as_user(code, *NEEDED)))
        held.close()
    fine = [True, []]
    assert answers == [
        {
            "cgroup": [True, [[other.id, None]]], "socket": fine, "raw_tp": fine,
            "perf_event": fine, "sk_lookup": fine, "netfilter": fine,
        }
    ]  # fmt: skip


MISSING = """
def attempt(name, target):
    try:
        attached = driver(target).attach(program, target)
    except BpfchainError as error:
        answer[name] = [error.kind, error.hint]
    else:
        attached.detach()
        answer[name] = "attached"
for name, kind in (("XDP", "xdp"), ("SCHED_CLS", "clsact"), ("SCHED_CLS", "tcx")):
    with Program.get_pinned(Path({pins!r}, name)) as program:
        hook = hook_named("xdp" if kind == "xdp" else "tc")
        way = None if kind == "xdp" else "ingress"
        attempt(kind, interface_target(hook, "left", kind=kind, direction=way))
with Program.get_pinned(Path({pins!r}, "PERF_EVENT")) as program:
    attempt("perf_event", named_target(hook_named("perf_event"), "software:0:1000000"))
"""


def test_a_missing_capability_is_named(theirs: Path) -> None:
    """Programs that someone else loaded, so that only attaching is left."""

    def work() -> None:
        answers = {}
        for name in ("XDP", "SCHED_CLS", "PERF_EVENT"):
            attach_type = AttachType.XDP if name == "XDP" else 0
            with Counting(ProgType[name], 2 if name == "XDP" else 0, attach_type) as one:
                one.program.pin(theirs / name)
                os.chown(theirs / name, USER, USER)
        for left_out in NEEDED:
            held = [name for name in NEEDED if name != left_out]
            answers[left_out] = as_user(MISSING.format(pins=str(theirs)), *held)
        for left_out, answer in answers.items():
            no = ["host", f"this process lacks {left_out}: run it as root or grant that"]
            # 6.18 asks for none of them for the links of a program that is loaded.
            assert all(said in (no, "attached") for said in answer.values())
        assert answers["CAP_NET_ADMIN"]["clsact"] != "attached"
        assert answers["CAP_PERFMON"]["perf_event"] != "attached"

    in_pair(work)
    for pin in theirs.iterdir():
        pin.unlink()

"""The tracing drivers: tracepoints, uprobes, perf events, raw tracepoints, and kprobes if any."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from bpfchain.loader import perf
from bpfchain.loader.hooks import (
    Attachment,
    SwapNotPossibleError,
    Target,
    driver,
    named_target,
    tracing,
)
from bpfchain.loader.hooks.tracing import EventAttachment, ManyLinks
from bpfchain.loader.links import link_create_perf
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import AttachType, ProgType
from bpfchain.transform.errors import HostError, RefusedError, UsageError
from bpfchain.transform.policy import hook_named
from support.bpfcode import bpf_descriptors
from support.counting import Counting, gone

pytestmark = pytest.mark.usefixtures("kernel", "tracefs", "nothing_open")

TIMES = 5
_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_NAME, _PR_GET_NAME = 15, 16
_MS_NODEV_NOEXEC_NOSUID = 0xE


@pytest.fixture(scope="module")
def tracefs(kernel: None) -> Iterator[None]:
    """tracefs, mounted in the tests' own mount namespace."""
    root = b"/sys/kernel/tracing"
    if Path(os.fsdecode(root), "events").exists():
        yield
        return
    if _libc.mount(b"tracefs", root, b"tracefs", _MS_NODEV_NOEXEC_NOSUID, None):
        pytest.skip(f"no tracefs on this kernel: {os.strerror(ctypes.get_errno())}")
    yield
    _libc.umount2(root, 2)


@pytest.fixture
def nothing_open() -> Iterator[None]:
    before = bpf_descriptors()
    yield
    assert bpf_descriptors() == before


def program(type: ProgType, *, pid: int | None = None) -> Counting:
    return Counting(type, 0, pid=os.getpid() if pid is None else pid)


def rename() -> None:
    """TIMES task_rename events of this process."""
    name = ctypes.create_string_buffer(16)
    _libc.prctl(_PR_GET_NAME, name)
    for _ in range(TIMES):
        _libc.prctl(_PR_SET_NAME, name)


def burn() -> None:
    """CPU time of this process, more than 20 milliseconds."""
    end = os.times().user + 0.05
    while os.times().user < end:
        pass


def libc_place(function: str) -> str:
    """``path:offset`` of a function of the C library that this process uses."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    path = next(line.split()[-1] for line in maps if "/libc.so.6" in line)
    with Path(path).open("rb") as file:
        elf = ELFFile(file)
        (symbol,) = elf.get_section_by_name(".dynsym").get_symbol_by_name(function)
        address = symbol["st_value"]
        segment = next(
            s for s in elf.iter_segments("PT_LOAD")
            if s["p_vaddr"] <= address < s["p_vaddr"] + s["p_filesz"]
        )  # fmt: skip
        return f"{path}:{address - segment['p_vaddr'] + segment['p_offset']:#x}"


def get_parent() -> None:
    for _ in range(TIMES):
        _libc.getppid()


def check(target: Target, type: ProgType, event: object, times: int, pin: Path) -> None:
    """Attach, make events, drop everything but the pin, find, detach."""
    assert callable(event)
    hook = driver(target)
    assert not hook.swaps
    with program(type) as one, program(type) as two:
        attached: Attachment | None = hook.attach(one.program, target)
        assert attached is not None
        assert attached.program_id == one.id
        event()
        assert one.runs == times
        with pytest.raises(SwapNotPossibleError, match="cannot exchange its program"):
            attached.swap(two.program, one.program)
        attached.pin(pin)
        attached.close()
        event()
        assert one.runs == 2 * times
        attached = hook.find(target, pin=pin)
        assert attached is not None
        assert attached.program_id == one.id
        attached.detach()
        event()
        assert one.runs == 2 * times
        assert not pin.exists(), "only with its pin such a link ends"
        assert hook.find(target, pin=pin) is None
    assert gone(one)


def test_a_tracepoint(bpffs: Path) -> None:
    target = named_target(hook_named("tracepoint"), "task/task_rename")
    assert (target.place, target.key, target.in_netns) == ("tracepoint", "task/task_rename", False)
    check(target, ProgType.TRACEPOINT, rename, TIMES, bpffs / "link")


def test_a_raw_tracepoint(bpffs: Path) -> None:
    target = named_target(hook_named("raw_tp"), "task_rename")
    check(target, ProgType.RAW_TRACEPOINT, rename, TIMES, bpffs / "link")


def test_a_uprobe(bpffs: Path) -> None:
    place = libc_place("getppid")
    for at_return in (False, True):
        target = named_target(hook_named("kprobe"), place, kind="uprobe", at_return=at_return)
        assert target.place == ("uretprobe" if at_return else "uprobe")
        check(target, ProgType.KPROBE, get_parent, TIMES, bpffs / "link")


def test_a_kprobe(bpffs: Path) -> None:
    target = named_target(hook_named("kprobe"), "__x64_sys_getppid")
    if (perf._SOURCES / "kprobe").exists():
        check(target, ProgType.KPROBE, get_parent, TIMES, bpffs / "link")
        absent = named_target(hook_named("kprobe"), "no_such_function+4")
        with program(ProgType.KPROBE) as one, pytest.raises(HostError, match="no probe can be put"):
            driver(absent).attach(one.program, absent)
    else:
        with program(ProgType.KPROBE) as one, pytest.raises(HostError, match="has no kprobes"):
            driver(target).attach(one.program, target)


def test_a_perf_event_on_every_cpu(bpffs: Path) -> None:
    target = named_target(hook_named("perf_event"), "software:0:1000000")
    hook = driver(target)
    cpus = len(perf.online_cpus())
    with program(ProgType.PERF_EVENT) as one:
        attached: Attachment | None = hook.attach(one.program, target)
        assert isinstance(attached, ManyLinks) or cpus == 1
        burn()
        runs = one.runs
        assert runs >= 10, "20 milliseconds of CPU time and one event each"
        assert attached is not None
        with pytest.raises(SwapNotPossibleError):
            attached.swap(one.program, one.program)
        attached.pin(bpffs / "link")
        attached.close()
        assert len(list(bpffs.iterdir())) == cpus
        attached = hook.find(target, pin=bpffs / "link")
        assert attached is not None
        assert attached.program_id == one.id
        burn()
        assert one.runs > runs
        attached.detach()
        assert list(bpffs.iterdir()) == []
        runs = one.runs
        burn()
        assert one.runs == runs
        again = hook.attach(one.program, target)
        again.pin(bpffs / "link")
        again.unpin(bpffs / "link")
        assert list(bpffs.iterdir()) == []
        again.close()
    assert gone(one)


def test_a_kernel_without_links_of_perf_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 5.15: the attachment is the event's, and ends with this process."""

    def unknown(*_: object) -> None:
        raise BpfError(22, "BPF_LINK_CREATE")

    monkeypatch.setattr(tracing, "link_create_perf", unknown)
    target = named_target(hook_named("tracepoint"), "task/task_rename")
    with program(ProgType.TRACEPOINT) as one, program(ProgType.XDP, pid=1) as other:
        attached = driver(target).attach(one.program, target)
        assert isinstance(attached, EventAttachment)
        assert (attached.pinnable, attached.lasts) == (False, False)
        rename()
        assert one.runs == TIMES
        with pytest.raises(SwapNotPossibleError):
            attached.swap(one.program, one.program)
        attached.detach()
        assert attached.program_id == 0
        rename()
        assert one.runs == TIMES
        with pytest.raises(RefusedError, match="the kernel takes no such program"):
            driver(target).attach(other.program, target)


def test_other_programs_on_a_tracepoint_are_reported() -> None:
    target = named_target(hook_named("tracepoint"), "task/task_rename")
    hook = driver(target)
    with program(ProgType.TRACEPOINT) as theirs, program(ProgType.TRACEPOINT) as ours:
        with perf.tracepoint("task/task_rename") as event:
            held = link_create_perf(theirs.program, event.fileno(), AttachType.PERF_EVENT)
        attached = hook.attach(ours.program, target)
        (seen,) = (one for one in hook.foreign(target, [ours.id]) if one.program_id == theirs.id)
        assert (seen.name, seen.exclusive) == ("counting", False)
        assert ours.id in {one.program_id for one in hook.foreign(target, ())}
        with pytest.raises(HostError, match="this very program is there already"):
            hook.attach(ours.program, target)
        rename()
        assert theirs.runs == ours.runs == TIMES
        attached.detach()
        rename()
        assert (theirs.runs, ours.runs) == (2 * TIMES, TIMES)
        held.close()


@pytest.mark.parametrize(
    ("hook", "name", "message", "hint"),
    [
        ("tracepoint", "task/task_renam", "no tracepoint task/task_renam", "task_rename"),
        ("tracepoint", "tsk/task_rename", "no tracepoint tsk/task_rename", "did you mean task?"),
        ("raw_tp", "no_such", "no raw tracepoint no_such", "without the group"),
        ("perf_event", "77:0:1", "cannot open perf event 77:0:1 on CPU 0", "software events"),
    ],
)
def test_names_that_are_not_there(hook: str, name: str, message: str, hint: str) -> None:
    target = named_target(hook_named(hook), name)
    with program(ProgType(target.hook.prog_type_id)) as one, pytest.raises(HostError) as no:
        driver(target).attach(one.program, target)
    assert message in no.value.message
    assert hint in (no.value.hint or "")


@pytest.mark.parametrize(
    ("hook", "kind", "name", "message"),
    [
        ("tracepoint", None, "task_rename", "named group/name"),
        ("kprobe", "uprobe", "/bin/true", "is no place for a uprobe"),
        ("kprobe", "kprobe", "do_exit+x", "is no place for a kprobe"),
        ("perf_event", None, "software:0", "type:config:period"),
        ("perf_event", None, "soft:0:1", "type:config:period"),
    ],
)
def test_names_that_make_no_sense(hook: str, kind: str | None, name: str, message: str) -> None:
    target = named_target(hook_named(hook), name, kind=kind)  # type: ignore[arg-type]
    with (
        program(ProgType(target.hook.prog_type_id)) as one,
        pytest.raises(UsageError, match=message),
    ):
        driver(target).attach(one.program, target)


def test_a_uprobe_that_cannot_be(tmp_path: Path) -> None:
    target = named_target(hook_named("kprobe"), f"{tmp_path}/none:0x10", kind="uprobe")
    with program(ProgType.KPROBE) as one, pytest.raises(HostError, match="no probe can be put"):
        driver(target).attach(one.program, target)


def test_targets_of_the_wrong_kind() -> None:
    with pytest.raises(UsageError, match="not by a name"):
        named_target(hook_named("xdp"), "eth0")
    with pytest.raises(UsageError, match="has no return"):
        named_target(hook_named("tracepoint"), "a/b", at_return=True)

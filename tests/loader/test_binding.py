"""The binding on this machine's kernel: maps, programs, descriptors and pins, links."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bpfchain.loader import maps as maps_module
from bpfchain.loader.libbpf import ObjectFile
from bpfchain.loader.links import (
    Link,
    link_create,
    link_create_netfilter,
    link_create_tcx,
    raw_tracepoint_open,
)
from bpfchain.loader.maps import Map, possible_cpus
from bpfchain.loader.programs import Program, VerifierError, enable_run_statistics, load_raw
from bpfchain.loader.syscall import BpfError
from bpfchain.loader.uapi import (
    BPF_EXIST,
    BPF_NOEXIST,
    XDP_FLAGS_SKB_MODE,
    AttachType,
    LinkType,
    MapType,
    ProgType,
)
from support.bpfcode import (
    EXIT,
    PACKET,
    U32,
    U64,
    XDP_TX,
    bpf_descriptors,
    compile_bpf,
    returns,
    tail_calls,
)

pytestmark = pytest.mark.usefixtures("kernel")

Compile = Callable[..., bytes]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compiles BPF C, see ``support.bpfcode.compile_bpf``."""

    def make(source: str, **defines: object) -> bytes:
        return compile_bpf(tmp_path_factory.mktemp("bpf"), source, **defines)

    return make


def bpftool(*arguments: object) -> Any:
    """What bpftool says of it, as a second opinion."""
    command = ["bpftool", "-j", *map(str, arguments)]
    return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)


# ---- maps


def test_map_round_trip() -> None:
    with Map.create(MapType.HASH, 4, 8, 3, name="round_trip") as numbers:
        assert numbers.lookup(U32.pack(1)) is None
        for key in (1, 2, 70000):
            numbers.update(U32.pack(key), U64.pack(key * 3), BPF_NOEXIST)
        assert numbers.lookup(U32.pack(70000)) == U64.pack(210000)
        assert dict(numbers.items()) == {U32.pack(k): U64.pack(k * 3) for k in (1, 2, 70000)}
        with pytest.raises(BpfError, match=r"BPF_MAP_UPDATE_ELEM on map round_trip.*EEXIST") as no:
            numbers.update(U32.pack(1), U64.pack(0), BPF_NOEXIST)
        assert no.value.errno == errno.EEXIST
        with pytest.raises(BpfError, match="ENOENT"):
            numbers.update(U32.pack(5), U64.pack(0), BPF_EXIST)
        with pytest.raises(BpfError, match="E2BIG"):
            numbers.update(U32.pack(5), U64.pack(0))
        numbers.delete(U32.pack(2))
        assert set(numbers.keys()) == {U32.pack(1), U32.pack(70000)}
        with pytest.raises(BpfError, match="ENOENT"):
            numbers.delete(U32.pack(2))
        numbers.freeze()
        with pytest.raises(BpfError, match="EPERM"):
            numbers.update(U32.pack(1), U64.pack(0))
        assert numbers.lookup(U32.pack(1)) == U64.pack(3)
    with pytest.raises(ValueError, match="closed"):
        numbers.lookup(U32.pack(1))


def test_map_sizes_are_checked_before_the_kernel_reads_them() -> None:
    with Map.create(MapType.ARRAY, 4, 8, 1) as numbers:
        with pytest.raises(ValueError, match="keys of 4 bytes, not 8"):
            numbers.lookup(bytes(8))
        with pytest.raises(ValueError, match="values of 8 bytes, not 4"):
            numbers.update(bytes(4), bytes(4))
    with pytest.raises(ValueError, match="no name for a BPF object"):
        Map.create(MapType.ARRAY, 4, 8, 1, name="sixteen_letters_")


def test_map_info_is_what_bpftool_says() -> None:
    with Map.create(MapType.LRU_HASH, 4, 12, 64, name="seen") as seen:
        said = bpftool("map", "show", "id", seen.id)
        info = seen.info()
        assert said["id"] == info.id
        assert (said["type"], said["name"]) == ("lru_hash", info.name)
        assert (said["bytes_key"], said["bytes_value"]) == (info.key_size, info.value_size)
        assert said["max_entries"] == info.max_entries == 64
        with Map.from_id(seen.id) as again:
            seen.update(U32.pack(9), bytes(12))
            assert again.lookup(U32.pack(9)) == bytes(12)


@pytest.mark.parametrize("kind", [MapType.PERCPU_ARRAY, MapType.PERCPU_HASH])
def test_per_cpu_values(kind: MapType) -> None:
    with Map.create(kind, 4, 4, 2) as counts:  # 4 bytes: each CPU's value is padded to 8
        values = [U32.pack(0x01020304 + cpu) for cpu in range(possible_cpus())]
        counts.update_percpu(U32.pack(1), values)
        assert counts.lookup_percpu(U32.pack(1)) == values
        with pytest.raises(TypeError, match="use lookup_percpu"):
            counts.lookup(U32.pack(1))
        with pytest.raises(TypeError, match="use update_percpu"):
            counts.update(U32.pack(1), U32.pack(1))
        with pytest.raises(ValueError, match="values of 4 bytes"):
            counts.update_percpu(U32.pack(1), values[:-1])
        said = bpftool("map", "dump", "id", counts.id)
        mine = next(e for e in said if e["key"] == ["0x01", "0x00", "0x00", "0x00"])
        in_hex = [[f"0x{byte:02x}" for byte in value] for value in values]
        assert [entry["value"] for entry in mine["values"]] == in_hex


@pytest.mark.parametrize(("text", "count"), [("0-1\n", 2), ("0\n", 1), ("0-3,8,10-11\n", 7)])
def test_possible_cpus(text: str, count: int) -> None:
    assert maps_module._count_cpus(text) == count


def test_queue_has_no_key() -> None:
    with Map.create(MapType.QUEUE, 0, 4, 2) as queue:
        queue.update(b"", U32.pack(11))
        queue.update(b"", U32.pack(12))
        assert [queue.pop(), queue.pop(), queue.pop()] == [U32.pack(11), U32.pack(12), None]


# ---- programs


@pytest.mark.parametrize("verdict", range(5))
def test_xdp_verdicts(verdict: int) -> None:
    with load_raw(ProgType.XDP, returns(verdict), name="verdict") as program:
        run = program.test_run(PACKET)
        assert (run.retval, run.signed, run.data_out) == (verdict, verdict, PACKET)


def test_negative_verdict() -> None:
    with load_raw(ProgType.SCHED_CLS, returns(-1)) as program:
        run = program.test_run(PACKET)
        assert (run.retval, run.signed) == (0xFFFFFFFF, -1)


def test_run_gives_packet_and_context_back(compiled: Compile) -> None:
    source = """
    SEC("tc") int grow(struct __sk_buff *skb) {
        skb->mark += 5;
        bpf_skb_change_tail(skb, skb->len + 1000, 0);
        return 0;
    }
    SEC("xdp") int where(struct xdp_md *ctx) {
        return ctx->ingress_ifindex == 1 && ctx->rx_queue_index == 0 ? XDP_TX : XDP_DROP;
    }"""
    with ObjectFile.open(compiled(source), "ctx") as obj:
        obj.load()
        with obj.programs["grow"].program() as grow, obj.programs["where"].program() as where:
            packet = bytes(12) + b"\x88\xb5" + b"payload".ljust(50, b".")
            context = bytes(8) + U32.pack(37) + bytes(180)  # struct __sk_buff: mark is third
            run = grow.test_run(packet, context)
            assert run.data_out == packet + bytes(1000)
            assert U32.unpack_from(run.ctx_out, 8) == (42,)
            xdp_md = struct.pack("=6I", 0, len(packet), 0, 1, 0, 0)
            run = where.test_run(packet, xdp_md)
            assert run.retval == XDP_TX
            assert run.ctx_out == xdp_md
            assert where.test_run(packet).ctx_out == b""


def test_run_without_a_packet() -> None:
    # r0 = ((u64 *)ctx)[1]: the second argument of the tracepoint
    second = bytes.fromhex("7910080000000000") + EXIT
    with load_raw(ProgType.RAW_TRACEPOINT, second) as program:
        assert program.test_run(ctx=struct.pack("=2Q", 5, 77)).retval == 77
    with load_raw(ProgType.SK_LOOKUP, returns(1), "GPL", AttachType.SK_LOOKUP) as program:
        context = bytearray(72)  # struct bpf_sk_lookup
        struct.pack_into("=2I", context, 8, 2, 6)  # AF_INET, TCP
        assert program.test_run(ctx=bytes(context)).retval == 1


def test_run_refused() -> None:
    with (
        load_raw(ProgType.XDP, returns(2)) as program,
        pytest.raises(BpfError, match=r"BPF_PROG_TEST_RUN with 5 bytes: .*\(EINVAL\)"),
    ):
        program.test_run(bytes(5))
    with (
        load_raw(ProgType.KPROBE, returns(0)) as program,
        pytest.raises(BpfError, match="not supported by the kernel"),
    ):
        program.test_run(PACKET)


def test_program_info_is_what_bpftool_says() -> None:
    with Map.create(MapType.PROG_ARRAY, 4, 4, 2) as slots, load_raw(
        ProgType.XDP, tail_calls(slots, 1, 2), name="told"
    ) as program:  # fmt: skip
        info = program.info()
        said = bpftool("prog", "show", "id", info.id)
        assert (said["type"], said["name"], said["tag"]) == ("xdp", info.name, info.tag)
        assert tuple(said["map_ids"]) == info.map_ids == (slots.id,)
        assert said["bytes_xlated"] == info.translated_bytes > 0
        assert info.type is ProgType.XDP
        assert (info.name, info.created_by_uid) == ("told", 0)
        with Program.from_id(info.id) as again:
            assert again.info() == info


def test_run_statistics() -> None:
    with load_raw(ProgType.XDP, returns(2)) as program:
        program.test_run(PACKET, repeat=3)
        before = program.info().run_count
        with enable_run_statistics():
            program.test_run(PACKET, repeat=50)
        program.test_run(PACKET, repeat=3)
        assert program.info().run_count == before + 50
        assert program.info().run_time_ns > 0


def test_refused_program_tells_why() -> None:
    with pytest.raises(VerifierError) as no:
        load_raw(ProgType.XDP, EXIT, name="empty")
    assert no.value.errno == errno.EACCES
    assert "R0 !read_ok" in no.value.log
    assert str(no.value) == (
        "BPF_PROG_LOAD of program empty: Permission denied (EACCES):"
        " instruction 0 (exit): R0 !read_ok"
    )
    with pytest.raises(VerifierError, match="gave no reason") as no:
        load_raw(ProgType.XDP, EXIT, log=False)
    assert no.value.log == ""
    with pytest.raises(ValueError, match="7 bytes"):
        load_raw(ProgType.XDP, EXIT[:7])


def test_a_long_log_is_kept_to_its_end() -> None:
    body = bytes.fromhex("b700000001000000") * 4000 + bytes.fromhex("bf30000000000000") + EXIT
    with pytest.raises(VerifierError, match=r"instruction 4000 \(r0 = r3\): R3 !read_ok") as no:
        load_raw(ProgType.XDP, body)
    assert len(no.value.log) > 1 << 16


# ---- descriptors


def test_a_forgotten_descriptor_is_reported_and_closed() -> None:
    before = bpf_descriptors()
    with pytest.warns(ResourceWarning, match="unclosed <Map 'lost'"):
        Map.create(MapType.ARRAY, 4, 4, 1, name="lost")
    assert bpf_descriptors() == before


def test_pins_stay_in_the_private_bpffs(bpffs: Path) -> None:
    here = os.fspath(bpffs)
    assert any(
        line.split()[4] == "/sys/fs/bpf" and " - bpf " in line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
    )
    with Map.create(MapType.ARRAY, 4, 4, 1, name="kept") as kept:
        kept.update(bytes(4), U32.pack(6))
        kept.pin(f"{here}/map")
        with pytest.raises(BpfError, match=rf"BPF_OBJ_PIN {here}/map: .*\(EEXIST\)"):
            kept.pin(f"{here}/map")
        with pytest.raises(BpfError, match="EPERM"):
            kept.pin(f"{here}/a.dot")
        number = kept.id
    with load_raw(ProgType.XDP, returns(XDP_TX)) as program:
        program.pin(bpffs / "prog")
    # Whoever started the tests sees nothing of it.
    assert Path(f"/proc/{os.getppid()}/root/sys/fs").is_dir()
    assert not Path(f"/proc/{os.getppid()}/root{bpffs}").exists()
    assert Path(f"/proc/self/root{bpffs}/prog").exists()
    with Map.get_pinned(bpffs / "map") as kept, Program.get_pinned(f"{here}/prog") as program:
        assert kept.id == number
        assert kept.lookup(bytes(4)) == U32.pack(6)
        assert program.test_run(PACKET).retval == XDP_TX
    before = bpf_descriptors()
    with pytest.raises(TypeError, match="is a bpf-prog, not a bpf-map"):
        Map.get_pinned(bpffs / "prog")
    assert bpf_descriptors() == before
    (bpffs / "map").unlink()
    with pytest.raises(BpfError, match=rf"BPF_OBJ_GET {here}/map: .*\(ENOENT\)"):
        Map.get_pinned(bpffs / "map")


def test_memlock_is_lifted_as_far_as_allowed() -> None:
    check = (
        "import resource; from bpfchain.loader.syscall import lift_memlock;"
        "limit = resource.RLIMIT_MEMLOCK; hard = resource.getrlimit(limit)[1];"
        "resource.setrlimit(limit, (65536, hard));"
        "print(lift_memlock(), hard, *resource.getrlimit(limit), lift_memlock())"
    )
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    status = Path("/proc/self/status").read_text()
    effective = int(next(line for line in status.splitlines() if "CapEff" in line).split()[1], 16)
    first, hard, *lifted, second = done.stdout.split()
    may_exceed = bool(effective >> 24 & 1)  # CAP_SYS_RESOURCE
    expected = str(resource.RLIM_INFINITY) if may_exceed else hard
    assert (first, lifted, second) == ("True", [expected, expected], "False")


# ---- links


def in_own_netns(work: Callable[[], None]) -> None:
    """Run ``work`` in a thread with a network namespace of its own (interface 1 is lo)."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(0x40000000):  # CLONE_NEWNET
                raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
            work()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def test_xdp_link_create_update_detach(bpffs: Path) -> None:
    def work() -> None:
        with (
            load_raw(ProgType.XDP, returns(1), expected_attach_type=AttachType.XDP) as first,
            load_raw(ProgType.XDP, returns(2), expected_attach_type=AttachType.XDP) as second,
            link_create(first, 1, AttachType.XDP, XDP_FLAGS_SKB_MODE) as link,
        ):
            info = link.info()
            assert (info.type, info.target, info.attach_type) == (LinkType.XDP, 1, None)
            assert info.prog_id == first.info().id
            with pytest.raises(BpfError, match="EBUSY"):
                link_create(second, 1, AttachType.XDP, XDP_FLAGS_SKB_MODE)
            with pytest.raises(BpfError, match=r"BPF_LINK_UPDATE.*EPERM"):
                link.update(second, old=second)
            assert link.info().prog_id == first.info().id
            link.update(second, old=first)
            assert link.info().prog_id == second.info().id
            link.pin(bpffs / "link")
            with Link.get_pinned(bpffs / "link") as again:
                assert again.info() == link.info()
            link.detach()
            assert link.info().target == 0

    in_own_netns(work)


def test_tcx_link() -> None:
    tcx = AttachType.TCX_EGRESS

    def work() -> None:
        with (
            load_raw(ProgType.SCHED_CLS, returns(-1), expected_attach_type=tcx) as program,
            link_create(program, 1, tcx) as link,
        ):
            info = link.info()
            assert (info.type, info.target, info.attach_type) == (LinkType.TCX, 1, tcx)
            with pytest.raises(BpfError, match="ESTALE"):
                link_create_tcx(program, 1, tcx, revision=999)

    in_own_netns(work)


def test_netfilter_link() -> None:
    def work() -> None:
        with (
            load_raw(
                ProgType.NETFILTER, returns(1), expected_attach_type=AttachType.NETFILTER
            ) as program,
            link_create_netfilter(program, AttachType.NETFILTER, 2, 1, -200) as link,
        ):
            info = link.info()
            assert (info.type, info.target) == (LinkType.NETFILTER, None)
            assert info.prog_id == program.info().id
            # One program per hook and priority shows that both arrived where they belong.
            link_create_netfilter(program, AttachType.NETFILTER, 2, 1, -199).close()
            link_create_netfilter(program, AttachType.NETFILTER, 2, 3, -200).close()
            with pytest.raises(BpfError, match=r"at netfilter hook 1: .*EBUSY"):
                link_create_netfilter(program, AttachType.NETFILTER, 2, 1, -200)

    in_own_netns(work)


def test_raw_tracepoint_link() -> None:
    with (
        load_raw(ProgType.RAW_TRACEPOINT, returns(0)) as program,
        raw_tracepoint_open(program, "task_rename") as link,
    ):
        info = link.info()
        assert (info.type, info.prog_id) == (LinkType.RAW_TRACEPOINT, program.info().id)
        with pytest.raises(BpfError, match=r"BPF_RAW_TRACEPOINT_OPEN at no_such: .*ENOENT"):
            raw_tracepoint_open(program, "no_such")

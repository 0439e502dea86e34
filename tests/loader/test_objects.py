"""Object files through libbpf, chains made of them by hand, and the ``kernel`` fixture."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bpfchain.loader.libbpf import LibbpfError, ObjectFile, library
from bpfchain.loader.links import Link
from bpfchain.loader.maps import Map
from bpfchain.loader.programs import Program, VerifierError, load_raw
from bpfchain.loader.syscall import BpfError, Fd
from bpfchain.loader.uapi import (
    AttachType,
    MapType,
    ProgType,
)
from support.bpfcode import (
    EXIT,
    PACKET,
    U32,
    U64,
    XDP_PASS,
    XDP_TX,
    bpf_descriptors,
    compile_bpf,
    returns,
    tail_calls,
)
from support.kernel import Chain

pytestmark = pytest.mark.usefixtures("kernel")

Compile = Callable[..., bytes]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """Compiles BPF C, see ``support.bpfcode.compile_bpf``."""

    def make(source: str, **defines: object) -> bytes:
        return compile_bpf(tmp_path_factory.mktemp("bpf"), source, **defines)

    return make


# ---- object files

COUNT = """
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 2);
         __type(key, __u32); __type(value, __u64); } counts SEC(".maps");
int verdict = XDP_PASS;
SEC("xdp") int count(struct xdp_md *ctx) {
    __u32 key = 1;
    __u64 *value = bpf_map_lookup_elem(&counts, &key);
    if (value) ++*value;
    return verdict;
}
"""
BAD = """
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 1);
         __type(key, __u32); __type(value, __u64); } seen SEC(".maps");
SEC("xdp") int fine(struct xdp_md *ctx) { return XDP_PASS; }
SEC("xdp.frags") int bad(struct xdp_md *ctx) {
    __u32 key = WHICH;
    __u64 *value = bpf_map_lookup_elem(&seen, &key);
    return *value;
}
"""


@pytest.mark.parametrize("from_path", [False, True])
def test_object_file(compiled: Compile, tmp_path: Path, from_path: bool) -> None:
    path = tmp_path / "counted.o"
    path.write_bytes(compiled(COUNT))
    obj = ObjectFile.open(path) if from_path else ObjectFile.open(path.read_bytes(), "counted")
    with obj:
        assert [(p.name, p.section) for p in obj.programs.values()] == [("count", "xdp")]
        count = obj.programs["count"]
        assert (count.type, count.expected_attach_type) == (ProgType.XDP, AttachType.XDP)
        assert (count.autoload, count.flags) == (True, 0)
        assert count.instructions()[-8:] == EXIT
        counts = obj.maps["counts"]
        assert (counts.type, counts.key_size, counts.value_size) == (MapType.ARRAY, 4, 8)
        assert (counts.max_entries, counts.internal, counts.flags) == (2, False, 0)
        assert counts.initial_value() is None
        assert obj.maps["counted.data"].initial_value() == U32.pack(XDP_PASS)
        assert obj.maps["counted.data"].internal
        with pytest.raises(LibbpfError, match="program count is not loaded"):
            count.program()
        with pytest.raises(LibbpfError, match="map counts is not created"):
            counts.map()
        obj.maps["counted.data"].set_initial_value(U32.pack(XDP_TX))
        counts.set_max_entries(7)
        assert "PROG LOAD LOG" not in obj.load()
        program, numbers = count.program(), counts.map()
    with pytest.raises(ValueError, match="counted is closed"):
        _ = count.type
    with program, numbers:  # they outlive the object
        assert program.test_run(PACKET, repeat=4).retval == XDP_TX
        assert numbers.lookup(U32.pack(1)) == U64.pack(4)
        assert numbers.max_entries == 7


def test_successful_load_gives_the_log_if_asked(compiled: Compile) -> None:
    with ObjectFile.open(compiled(COUNT)) as obj:
        log = obj.load(log_level=2)
        assert "-- BEGIN PROG LOAD LOG --" in log
        assert "(95) exit" in log


def test_refused_object_tells_why(compiled: Compile) -> None:
    content = compiled(BAD, WHICH=0)
    before = bpf_descriptors()
    with ObjectFile.open(content, "refused") as obj, pytest.raises(LibbpfError) as no:
        obj.load()
    assert no.value.errno == errno.EACCES
    said = str(no.value)
    assert said.startswith("refused: prog 'bad': BPF program load failed: Permission denied: ")
    assert said.endswith("R0 invalid mem access 'map_value_or_null'")
    assert "\n" not in said
    assert "(r0 = *(u64 *)(r0 +0))" in said
    assert "BEGIN PROG LOAD LOG" in no.value.log
    assert "BEGIN" not in no.value.verifier_log
    assert "map_value_or_null" in no.value.verifier_log
    assert bpf_descriptors() == before
    with ObjectFile.open(content, "half") as obj:
        obj.programs["bad"].set_autoload(False)
        assert not obj.programs["bad"].autoload
        obj.load()
        with obj.programs["fine"].program() as fine:
            assert fine.test_run(PACKET).retval == XDP_PASS


def test_messages_go_to_the_thread_that_called(compiled: Compile) -> None:
    errors: dict[int, list[LibbpfError]] = {1: [], 2: []}
    objects = {n: compiled(BAD, WHICH=n) for n in errors}

    def work(n: int) -> None:
        for _ in range(10):
            with ObjectFile.open(objects[n], f"object{n}") as obj:
                try:
                    obj.load()
                except LibbpfError as error:
                    errors[n].append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in errors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, found in errors.items():
        assert len(found) == 10
        for error in found:
            assert error.log.count("BEGIN PROG LOAD LOG") == 1
            assert f"failed to load object 'object{n}'" in error.log
            assert f"failed to load object 'object{3 - n}'" not in error.log


def test_not_an_object(tmp_path: Path) -> None:
    with pytest.raises(LibbpfError, match=r"^junk: elf: 'junk' is not a proper ELF object"):
        ObjectFile.open(b"no ELF at all" * 20, "junk")
    with pytest.raises(LibbpfError, match="No such file") as no:
        ObjectFile.open(tmp_path / "absent.o")
    assert no.value.errno == errno.ENOENT
    with pytest.raises(LibbpfError, match=r"cannot use /no/libbpf\.so as libbpf"):
        library("/no/libbpf.so")
    with pytest.raises(LibbpfError, match=r"cannot use libc\.so\.6 as libbpf 1\.x.*libbpf_major"):
        library("libc.so.6")


def test_another_path_of_libbpf(compiled: Compile) -> None:
    library()
    mapped = Path("/proc/self/maps").read_text().split()
    path = next(word for word in mapped if "/libbpf.so" in word)
    with ObjectFile.open(compiled(COUNT), lib=library(path)) as obj:
        assert obj.lib.path == path
        obj.load()


def test_reuse_of_a_map_with_another_name(compiled: Compile) -> None:
    with (
        Map.create(MapType.ARRAY, 4, 8, 2, name="elsewhere") as mine,
        Map.create(MapType.ARRAY, 4, 8, 3) as longer,
        ObjectFile.open(compiled(COUNT), "reuse") as obj,
    ):
        with pytest.raises(LibbpfError, match="map counts is defined otherwise"):
            obj.maps["counts"].reuse(longer)
        obj.maps["counts"].reuse(mine)
        obj.load()
        with obj.maps["counts"].map() as same, obj.programs["count"].program() as program:
            assert same.id == mine.id
            program.test_run(PACKET)
            assert mine.lookup(U32.pack(1)) == U64.pack(1)


def test_pinning_of_an_object(compiled: Compile, bpffs: Path) -> None:
    source = COUNT.replace(
        "__type(value, __u64);", "__type(value, __u64); __uint(pinning, LIBBPF_PIN_BY_NAME);"
    )
    assert source != COUNT
    content = compiled(source)
    with ObjectFile.open(content, pin_root=bpffs) as obj:
        assert obj.maps["counts"].pin_path == f"{bpffs}/counts"
        obj.load()
    assert [entry.name for entry in bpffs.iterdir()] == ["counts"]
    with ObjectFile.open(content, pin_root=bpffs) as obj:
        obj.maps["counts"].set_pin_path(bpffs / "other")
        obj.load()
    assert (bpffs / "other").exists()
    with ObjectFile.open(content, pin_root=bpffs) as obj:
        obj.maps["counts"].set_pin_path(None)
        assert obj.maps["counts"].pin_path == ""


def test_map_that_is_not_made(compiled: Compile) -> None:
    source = (
        COUNT
        + """
    struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1);
             __type(key, __u32); __type(value, __u64); } spare SEC(".maps");"""
    )
    with ObjectFile.open(compiled(source)) as obj:
        assert obj.maps["spare"].autocreate
        obj.maps["spare"].set_autocreate(False)
        obj.load()
        with pytest.raises(LibbpfError, match="map spare is not created"):
            obj.maps["spare"].map()


# ---- chains


def test_tail_call_by_hand() -> None:
    with (
        Map.create(MapType.PROG_ARRAY, 4, 4, 4, name="slots") as slots,
        load_raw(ProgType.XDP, tail_calls(slots, 2, XDP_PASS)) as head,
        load_raw(ProgType.XDP, returns(XDP_TX)) as second,
    ):
        assert head.test_run(PACKET).retval == XDP_PASS  # the slot is empty
        slots.set_fd(2, second.fileno())
        assert head.test_run(PACKET).retval == XDP_TX
        assert [slots.slot(i) for i in range(4)] == [None, None, second.info().id, None]
        with (
            load_raw(ProgType.SCHED_CLS, returns(0)) as other_type,
            pytest.raises(BpfError, match="EINVAL"),
        ):
            slots.set_fd(3, other_type.fileno())
        # A program of another type is refused without a word of the verifier's.
        with pytest.raises(VerifierError, match="gave no reason") as no:
            load_raw(ProgType.SCHED_CLS, tail_calls(slots, 2, 0))
        assert no.value.errno == errno.EINVAL


# A link as the transformer would make it: trace which ran, end the chain or go on.
LINK = """
struct { __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 8);
         __uint(key_size, 4); __uint(value_size, 4); } bpfchain_slots SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 4);
         __type(key, __u32); __type(value, __u64); } ran SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1);
         __type(key, __u32); __type(value, __u64); } own SEC(".maps");
SEC(SECTION) int ENTRY(CONTEXT *ctx) {
    __u32 key = INDEX, zero = 0;
    __u64 *value = bpf_map_lookup_elem(&ran, &key);
    if (value) ++*value;
    value = bpf_map_lookup_elem(&own, &zero);
    if (value) *value += 10 + INDEX;
    bpf_tail_call(ctx, &bpfchain_slots, INDEX + 1);
    return 20 + INDEX;
}
"""


def links(compiled: Compile, count: int, section: str = "xdp") -> list[Any]:
    """``count`` links: link i is named link_i and ends the chain with 20 + i."""
    context = "struct xdp_md" if section.startswith("xdp") else "struct __sk_buff"
    return [
        (
            compiled(LINK, SECTION=f'"{section}"', CONTEXT=context, INDEX=i, ENTRY=f"link_{i}"),
            i,
            {0: (i, f"link_{i}")},
        )
        for i in range(count)
    ]


def test_chain(compiled: Compile) -> None:
    before = bpf_descriptors()
    with Chain(links(compiled, 3), max_entries=8, share=["ran"]) as chain:
        assert chain.run(PACKET).retval == 22
        assert chain.run(PACKET, repeat=4).retval == 22
        assert chain.slots.name == "bpfchain_slots"
        ids = [chain.program(i, f"link_{i}").info().id for i in range(3)]
        assert [chain.slots.slot(i) for i in range(8)] == [*ids, None, None, None, None, None]
        assert {chain.map(i, "bpfchain_slots").id for i in range(3)} == {chain.slots.id}
        assert len({chain.map(i, "ran").id for i in range(3)}) == 1
        assert len({chain.map(i, "own").id for i in range(3)}) == 3
        assert [v for _, v in chain.map(0, "ran").items()] == [U64.pack(n) for n in (5, 5, 5, 0)]
        assert [chain.map(i, "own").lookup(bytes(4)) for i in range(3)] == [
            U64.pack(5 * (10 + i)) for i in range(3)
        ]
        chain.slots.delete(U32.pack(2))
        assert chain.run(PACKET).retval == 21
    assert bpf_descriptors() == before


def test_chain_with_a_given_map_and_a_link_without_slots(compiled: Compile) -> None:
    last = compiled('SEC("xdp") int last(struct xdp_md *ctx) { return 99; }')
    with (
        Map.create(MapType.ARRAY, 4, 8, 4, name="mine") as mine,
        Chain(
            [*links(compiled, 1), (last, 1, {0: (1, "last")})], max_entries=8, maps={"ran": mine}
        ) as chain,
    ):
        assert chain.run(PACKET).retval == 99
        assert mine.lookup(U32.pack(0)) == U64.pack(1)


def test_chain_sets_types(compiled: Compile) -> None:
    """SEC("filter") means nothing to libbpf, and tc and tcx links cannot share an array."""
    made = links(compiled, 2, "filter")
    with pytest.raises(LibbpfError):
        Chain(made, max_entries=8)
    tcx = AttachType.TCX_INGRESS
    with Chain(
        made, max_entries=8, prog_type=ProgType.SCHED_CLS, expected_attach_type=tcx
    ) as chain:
        assert chain.run(PACKET).retval == 21
        with (
            load_raw(ProgType.SCHED_CLS, returns(0), expected_attach_type=tcx) as same,
            load_raw(ProgType.SCHED_CLS, returns(0)) as clsact,
        ):
            chain.slots.set_fd(5, same.fileno())
            with pytest.raises(BpfError, match="EINVAL"):
                chain.slots.set_fd(5, clsact.fileno())


def test_chain_loads_only_what_is_named(compiled: Compile) -> None:
    both = compiled(BAD, WHICH=0)
    before = bpf_descriptors()
    with pytest.raises(LibbpfError, match=r"^link0: prog 'bad'"):
        Chain([(both, 0, {0: (0, "fine")})], max_entries=8)
    assert bpf_descriptors() == before
    with Chain([(both, 0, {0: (0, "fine")})], max_entries=8, programs=["fine"]) as chain:
        assert chain.run(PACKET).retval == XDP_PASS


def test_chain_that_cannot_be(compiled: Compile) -> None:
    made = links(compiled, 2)
    with pytest.raises(LibbpfError, match="bpfchain_slots is defined otherwise"):
        Chain(made, max_entries=9)
    with pytest.raises(ValueError, match="no link has the shared maps"):
        Chain(made, max_entries=8, share=["nothing"])
    with pytest.raises(ValueError, match="two links have one index"):
        Chain([made[0], made[0]], max_entries=8)
    with pytest.raises(ValueError, match="no entry for state 0"):
        Chain([(made[0][0], 0, {2: (66, "link_0")})], max_entries=8)


# ---- the fixture


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users can read, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="bpfchain-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.parametrize(
    ("required", "status", "outcome"), [("1", 1, "1 error"), ("", 0, "1 skipped")]
)
def test_without_a_kernel(open_folder: Path, required: str, status: int, outcome: str) -> None:
    """As another user: a skip that says why, or with BPFCHAIN_REQUIRE_KERNEL=1 a failure."""
    here = Path(__file__)
    copy = open_folder / "tests"
    (copy / "support").mkdir(parents=True)
    for name in ("conftest.py", "support/kernel.py", "support/__init__.py"):
        (copy / name).write_bytes((here.parents[1] / name).read_bytes())
    (copy / "test_it.py").write_text("def test_it(kernel): pass\n")
    command = [
        "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib",
        "--rootdir", str(copy), str(copy / "test_it.py"),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(copy), *sys.path]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CI": "",  # there a skip is a failure of its own
        "BPFCHAIN_REQUIRE_KERNEL": required,
    }
    done = subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert outcome in done.stdout
    assert "loading BPF programs needs root" in done.stdout


def test_every_descriptor_class_names_its_kind() -> None:
    assert {cls.__name__: cls.kind for cls in (Fd, Map, Program, Link)} == {
        "Fd": "", "Map": "bpf-map", "Program": "bpf-prog", "Link": "bpf-link",
    }  # fmt: skip

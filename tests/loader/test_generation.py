"""Building generations: maps shared, kept or new, what is refused, and that failures leave nothing."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpfchain.loader.generation import Kept, build, read_source
from bpfchain.loader.hooks import Target, interface_target, named_target
from bpfchain.loader.maps import Map, possible_cpus
from bpfchain.loader.operations.load import load, rehearse
from bpfchain.loader.operations.recreate import recreate
from bpfchain.loader.operations.replace import replace
from bpfchain.loader.operations.unload import unload
from bpfchain.loader.places import ChainPlace, place_of, state_root
from bpfchain.loader.preflight import tail_call_depth
from bpfchain.loader.programs import Program
from bpfchain.loader.status import chain_status
from bpfchain.transform.errors import BpfchainError, HostError, RefusedError
from bpfchain.transform.manifest import Share, SharedMap
from bpfchain.transform.policy import hook_named
from support.bpfcode import PACKET, bpf_descriptors, compile_bpf
from support.chains import (
    Part,
    bpftool,
    ids_of,
    manifest_of,
    patched,
    set_verdict,
    slots_by_bpftool,
    source_of,
    wait_gone,
    write_chain,
)

pytestmark = pytest.mark.usefixtures("kernel")

COUNT = """
struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, __u32);
    __type(value, __u64); } hits SEC(".maps");
__u64 seen;
const volatile __u32 limit = LIMIT;
SEC("xdp") int NAME(struct xdp_md *ctx) {
    __u32 key = 0;
    __u64 *hit = bpf_map_lookup_elem(&hits, &key);
    if (hit) *hit += limit;
    seen++;
    return 2;
}
"""


@pytest.fixture
def lo(bpffs: Path) -> Iterator[ChainPlace]:
    """A place on lo (XDP, generic); what is loaded there must be unloaded in the test."""
    before = bpf_descriptors()
    yield place_of(target(), "edge", state_root(bpffs))
    assert list(bpffs.iterdir()) == []
    assert bpf_descriptors() == before


def target() -> Target:
    return interface_target(hook_named("xdp"), "lo", mode="generic")


def run(place: ChainPlace, generation: int = 1) -> int:
    with Program.get_pinned(place.generation(generation) / "p0") as head:
        return head.test_run(PACKET).retval


def hits(pin: Path) -> int:
    with Map.get_pinned(pin) as array:
        return int(struct.unpack("=Q", array.lookup(bytes(4)) or b"")[0])


def counting(folder: Path, name: str, limit: int = 1) -> Part:
    folder.mkdir(exist_ok=True)
    return Part(compile_bpf(folder, COUNT, NAME=name, LIMIT=limit))


def test_shared_maps(lo: ChainPlace, tmp_path: Path) -> None:
    """Equal names alone never share; what [share] says is one map, on replace too."""
    parts = [counting(tmp_path / n, n) for n in ("one", "two", "three")]
    share = (
        Share(map="all", links=(SharedMap(index=0, map="hits"), SharedMap(index=2, map="hits"))),
    )
    path = write_chain(tmp_path, "edge", parts, share=share)
    load(source_of(path), lo, target())
    folder = lo.generation(1)
    numbers = [bpftool("map", "show", "pinned", folder / f"m{i}_hits")["id"] for i in range(3)]
    assert numbers[0] == numbers[2] != numbers[1]
    assert run(lo) == 2
    assert [hits(folder / f"m{i}_hits") for i in range(3)] == [2, 1, 2]
    replace(lo, *patched(parts[2], 2, tmp_path), folder=tmp_path)
    assert run(lo) == 2
    assert [hits(folder / f"m{i}_hits") for i in range(3)] == [4, 2, 4]
    recreate(source_of(path), lo)
    folder = lo.generation(2)
    assert run(lo, 2) == 2
    assert [hits(folder / f"m{i}_hits") for i in range(3)] == [6, 3, 6]
    unload(lo)


@pytest.mark.parametrize("data", [False, True])
def test_kept_maps(data: bool, lo: ChainPlace, tmp_path: Path) -> None:
    """A link's map of equal name and definition goes on; constants are the new ones; .bss if asked."""
    path = write_chain(tmp_path, "edge", [counting(tmp_path / "a", "one"), Part("always_pass")])
    load(source_of(path), lo, target())
    run(lo)
    new = patched(counting(tmp_path / "b", "one", limit=10), 0, tmp_path)
    done = replace(lo, *new, folder=tmp_path, keep_data=data)
    run(lo)
    assert hits(lo.generation(1) / "m0_hits") == 11
    assert hits(lo.generation(1) / "m0_%2Ebss") == (2 if data else 1)
    assert sorted(done.kept) == (["link 0: .bss"] if data else []) + ["link 0: hits"]
    unload(lo)


def test_a_map_of_another_definition_is_new(lo: ChainPlace, tmp_path: Path) -> None:
    path = write_chain(tmp_path, "edge", [counting(tmp_path / "a", "one"), Part("always_pass")])
    load(source_of(path), lo, target())
    run(lo)
    (tmp_path / "b").mkdir()
    two = compile_bpf(
        tmp_path / "b", COUNT.replace("max_entries, 1", "max_entries, 2"), NAME="one", LIMIT=1
    )
    done = replace(lo, *patched(Part(two), 0, tmp_path), folder=tmp_path)
    run(lo)
    assert hits(lo.generation(1) / "m0_hits") == 1
    assert done.kept == ()
    assert "link 0: hits: defined otherwise than before" in done.notes
    unload(lo)


def test_links_are_known_again_by_name(lo: ChainPlace, tmp_path: Path) -> None:
    """A recreate with a link put in between: maps follow their links, not the indexes."""
    one, two = counting(tmp_path / "a", "one"), counting(tmp_path / "b", "two")
    load(source_of(write_chain(tmp_path / "x", "edge", [one, two])), lo, target())
    run(lo)
    other = counting(tmp_path / "c", "other")
    recreate(source_of(write_chain(tmp_path / "y", "edge", [one, other, two])), lo)
    run(lo, 2)
    folder = lo.generation(2)
    assert [hits(folder / f"m{i}_hits") for i in range(3)] == [2, 1, 2]
    unload(lo)


def test_saved_code_in_a_map(lo: ChainPlace, tmp_path: Path) -> None:
    """The per-CPU map is one for all links, and one for each generation."""
    parts = [Part("verdict_xdp", redirect="TX"), Part("verdict_xdp"), Part("verdict_xdp")]
    path = write_chain(tmp_path, "edge", parts, mode="map")
    load(source_of(path), lo, target())
    for generation in (1, 2):
        folder = lo.generation(generation)
        for index, code in enumerate((3, 2, 2)):
            set_verdict(folder / f"m{index}_verdict", code)
        assert run(lo, generation) == 3
        shown = bpftool("map", "show", "pinned", folder / "saved")
        assert shown["type"] == "percpu_array"
        users = [bpftool("prog", "show", "pinned", folder / f"p{i}")["map_ids"] for i in range(3)]
        assert all(shown["id"] in maps for maps in users)
        new = patched(dataclasses.replace(parts[1]), 1, tmp_path)
        if generation == 1:
            with pytest.raises(RefusedError, match="saved-code mode differs"):
                replace(lo, *new, folder=tmp_path)
            recreate(source_of(path), lo)
    assert possible_cpus() > 0
    unload(lo)


def test_own_program_arrays(lo: ChainPlace, tmp_path: Path) -> None:
    """A link's own PROG_ARRAY is pinned with the generation, filled as its object says, never kept."""
    parts = [Part("tailcall_values", program="entry"), Part("always_pass")]
    path = write_chain(tmp_path, "edge", parts)
    load(source_of(path), lo, target())

    def look(generation: int) -> int:
        folder = lo.generation(generation)
        held = slots_by_bpftool(folder / "o0_jumps")
        assert set(held) == {1}
        assert bpftool("prog", "show", "id", held[1])["name"] == "target"
        with Program.get_pinned(folder / "p0") as head:
            assert head.test_run(bytes(64)).retval == 2
            assert head.test_run(bytes(200)).retval == 1
        return int(bpftool("map", "show", "pinned", folder / "o0_jumps")["id"])

    first = look(1)
    replace(lo, *patched(parts[0], 0, tmp_path), folder=tmp_path)
    second = look(1)
    recreate(source_of(path), lo)
    assert len({first, second, look(2)}) == 3
    unload(lo)


def test_dry_run_leaves_nothing(lo: ChainPlace, tmp_path: Path) -> None:
    path = write_chain(tmp_path, "edge", [Part("verdict_xdp")] * 3)
    done = rehearse(source_of(path), lo, target(), entry=2)
    assert done.generation is None


def test_another_object_than_the_manifest_says(tmp_path: Path) -> None:
    path = write_chain(tmp_path, "edge", [Part("verdict_xdp")] * 2)
    (tmp_path / "link1.o").write_bytes((tmp_path / "link0.o").read_bytes())
    with pytest.raises(RefusedError, match=r"link1\.o is not the object of link 1"):
        source_of(path)
    (tmp_path / "link1.o").unlink()
    with pytest.raises(HostError, match=r"link 1: .*link1\.o: no such file"):
        source_of(path)


def broken(tmp_path: Path) -> list[tuple[str, list[Part], str]]:
    bad = compile_bpf(
        tmp_path, 'SEC("xdp") int bad(struct xdp_md *c) { return *(int *)(long)c->data; }'
    )
    return [
        ("refused by the verifier", [Part("always_pass"), Part(bad), Part("verdict_xdp")],
         r"link 1 \(link1\.o\): .*invalid access to packet"),
    ]  # fmt: skip


def test_a_failed_load_leaves_nothing(lo: ChainPlace, tmp_path: Path) -> None:
    for _, parts, why in broken(tmp_path):
        source = source_of(write_chain(tmp_path, "edge", parts))
        for entry in (None, 2):
            with pytest.raises(HostError, match=why):
                load(source, lo, target(), entry=entry)
            assert bpftool("net")[0]["xdp"] == []
    good = write_chain(tmp_path / "good", "edge", [Part("verdict_xdp")] * 2)
    load(source_of(good), lo, target())
    before, slots = ids_of(lo.folder), slots_by_bpftool(lo.generation(1) / "slots")
    for _, parts, why in broken(tmp_path):
        with pytest.raises(HostError, match=why):
            recreate(source_of(write_chain(tmp_path, "edge", parts)), lo)
        assert ids_of(lo.folder) == before
        assert slots_by_bpftool(lo.generation(1) / "slots") == slots
        assert chain_status(lo).healthy
    unload(lo)
    wait_gone(before)


def test_the_kernel_says_nothing(lo: ChainPlace, tmp_path: Path) -> None:
    """A link of another kind than the array's first user: an empty log is explained."""
    path = write_chain(tmp_path, "edge", [Part("xdp_frags"), Part("xdp_frags")])
    source = source_of(path)
    head = dataclasses.replace(source.manifest.links[0], frags=False)
    manifest = dataclasses.replace(source.manifest, links=(head, *source.manifest.links[1:]))
    with pytest.raises(RefusedError, match="frags"):
        load(dataclasses.replace(source, manifest=manifest), lo, target())
    plain = write_chain(tmp_path / "plain", "edge", [Part("always_pass"), Part("always_pass")])
    data = (tmp_path / "link1.o").read_bytes()
    told = source_of(plain)
    record = dataclasses.replace(
        source.manifest.links[1], frags=False, output_sha256=source.manifest.links[1].output_sha256
    )
    mixed = dataclasses.replace(
        told,
        manifest=dataclasses.replace(told.manifest, links=(told.manifest.links[0], record)),
        objects={**told.objects, "link1.o": data},
    )
    with pytest.raises(RefusedError, match=r"lets .* into no chain with the other links"):
        load(mixed, lo, target())


def test_too_deep(lo: ChainPlace, tmp_path: Path) -> None:
    """33 links and an entry program: 33 tail calls; with one body that makes its own, too many."""
    path = write_chain(tmp_path, "edge", [Part("always_pass")] * 33)
    source = source_of(path)
    assert tail_call_depth(source, entry=True) == 33
    load(source, lo, target(), entry=0)
    with Program.get_pinned(lo.entry) as first:
        assert first.test_run(PACKET).retval == 2
    assert len(slots_by_bpftool(lo.generation(1) / "slots")) == 32
    unload(lo)
    own = dataclasses.replace(source.manifest.links[5], tail_calls=True)
    links = tuple(own if record.index == 5 else record for record in source.manifest.links)
    deeper = dataclasses.replace(source, manifest=dataclasses.replace(source.manifest, links=links))
    with pytest.raises(RefusedError, match="34 tail calls"):
        load(deeper, lo, target(), entry=0)


def test_a_link_reads_what_the_tracepoint_has_not(bpffs: Path, tmp_path: Path) -> None:
    source = 'SEC("raw_tp") int p(struct bpf_raw_tracepoint_args *c) { return c->args[N] != 0; }'
    parts = []
    for number in (0, 9):
        (tmp_path / str(number)).mkdir()
        parts.append(Part(compile_bpf(tmp_path / str(number), source, N=number)))
    path = write_chain(tmp_path, "edge", parts)
    where = named_target(hook_named("raw_tp"), "sched_switch")
    place = place_of(where, "edge", state_root(bpffs))
    with pytest.raises(RefusedError, match=r"link 1 .* reads argument 9 of sched_switch"):
        load(source_of(path), place, where, entry=0)
    assert list(bpffs.iterdir()) == []


def test_objects_of_the_other_byte_order(lo: ChainPlace, tmp_path: Path) -> None:
    from support.commands import PROGRAMS

    swapped = (PROGRAMS.parent / "eb" / "always_pass.o").read_bytes()
    path = write_chain(tmp_path, "edge", [Part("always_pass"), Part(swapped)])
    with pytest.raises(HostError, match="link 1: its object is of the other byte order"):
        load(source_of(path), lo, target())


def test_build_says_what_it_kept(tmp_path: Path) -> None:
    path = write_chain(tmp_path, "edge", [Part("verdict_xdp")])
    source = read_source(manifest_of(path), path.parent)
    with build(source, target(), kept=Kept()) as built:
        assert built.kept == []
        assert sorted(built.pins) == ["m0_runs", "m0_verdict", "p0", "slots"]
    with pytest.raises(BpfchainError):
        build(dataclasses.replace(source, objects={"link0.o": b"\x7fELF"}), target())

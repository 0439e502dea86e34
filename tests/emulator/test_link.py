"""``link_object`` gives the instructions that libbpf hands to the kernel: of the whole corpus, of real
objects, and of CO-RE relocations against the running kernel's types.
"""

from __future__ import annotations

import re
import struct
import subprocess
from functools import cache
from pathlib import Path

import pytest

from bpfchain.emulator.link import Image, link_object
from bpfchain.emulator.types import read_target
from bpfchain.loader.libbpf import LibbpfError
from bpfchain.transform.btf_ext import CORE_RELO, read_btf_ext
from bpfchain.transform.elf_read import read_object
from bpfchain.transform.errors import InconclusiveError, RefusedError, UsageError
from emulator.handed import (
    CALL,
    LDDW,
    VMLINUX,
    Handed,
    compile_c,
    differences,
    handed,
    kernel_symbols,
    linked,
)
from patched.objects import CORPUS, CorpusObject, corpus_objects
from patched.test_real_loaders import distinct

HERE = Path(__file__).parent
TYPE_EXISTS, TYPE_MATCHES = 8, 12


@cache
def symbols() -> dict[str, int]:
    return kernel_symbols()


def compared(data: bytes, given: Handed) -> tuple[list[str], int]:
    """What differs, and how many instructions were compared."""
    ours = linked(data, symbols())
    maps = tuple(spec.name for spec in ours.maps)
    said, count = [], 0
    for name, theirs in given.code.items():
        image = ours.programs[name]
        said += [f"{name}: {line}" for line in differences(image, maps, theirs, given)]
        said += [f"{name}: {line}" for line in wrong_starts(image)]
        count += len(theirs) // 8
    return said, count


def wrong_starts(image: Image) -> list[str]:
    """Functions begin at 0 and wherever a call or a function's address goes, and nowhere else."""
    targets = {0}
    code = image.code
    for at in range(0, len(code), 8):
        source = code[at + 1] >> 4
        if (code[at] == CALL and source == 1) or (code[at] == LDDW and source == 4):
            targets.add(at // 8 + 1 + struct.unpack_from("<i", code, at + 4)[0])
    return [] if targets == set(image.functions) else [f"starts {image.functions}, not {targets}"]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    "one",
    [o for o in corpus_objects() if not o.name.startswith("legacy_maps")],
    ids=lambda o: o.name,
)
def test_corpus(one: CorpusObject) -> None:
    data = one.path.read_bytes()
    said, count = compared(data, handed(data))
    assert not said, "\n".join(said)
    assert count > 0


@pytest.mark.long
@pytest.mark.real
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("kernel")
def test_real() -> None:
    said: list[str] = []
    programs = instructions = 0
    refused: dict[str, str] = {}
    for one in distinct():
        try:
            given = handed(one.data)
        except LibbpfError as error:
            refused[one.label] = str(error)
            continue
        found, count = compared(one.data, given)
        said += [f"{one.label}: {line}" for line in found]
        programs, instructions = programs + len(given.code), instructions + count
    print(f"{programs} programs, {instructions} instructions compared")
    assert not said, "\n".join(said)
    assert programs > 500
    # a kernel function that this kernel's flow tables would bring
    assert all("bpf_xdp_flow_lookup" in why for why in refused.values()), refused


def test_a_difference_is_found() -> None:
    data = (CORPUS / "el" / "static_subprog.o").read_bytes()
    ours = link_object(data)
    (name,) = ours.programs
    image = ours.programs[name]
    maps = tuple(spec.name for spec in ours.maps)
    # a libbpf that agrees: descriptors are the maps' indexes plus 100
    same = bytearray(image.code)
    for at in range(0, len(same), 8):
        if same[at] == LDDW and same[at + 1] >> 4 in (1, 2):
            index = image.maps[struct.unpack_from("<I", same, at + 4)[0]]
            struct.pack_into("<I", same, at + 4, 100 + index)
    given = Handed({}, {100 + i: name for i, name in enumerate(maps)}, None)
    assert differences(image, maps, bytes(same), given) == []
    assert len(image.functions) > 1
    for at in range(len(same)):
        other = bytearray(same)
        other[at] ^= 0x40
        assert differences(image, maps, bytes(other), given), f"byte {at}"


@cache
def core_kinds() -> bytes:
    return compile_c(HERE / "core_kinds.c")


@pytest.mark.usefixtures("kernel")
def test_core_of_every_kind() -> None:
    given = handed(core_kinds())
    said, count = compared(core_kinds(), given)
    assert not said, "\n".join(said)
    assert count > 350
    kinds = {kind for _, kind in core_records(core_kinds())}
    assert kinds == set(range(12))
    image = linked(core_kinds(), {}).programs["gone"]
    assert len(image.poisoned) == 2


@pytest.mark.usefixtures("kernel")
def test_core_matches() -> None:
    """No clang of bookworm writes TYPE_MATCHES: it is put in the place of TYPE_EXISTS."""
    data = bytearray(core_kinds())
    changed = 0
    for place, kind in core_records(core_kinds()):
        if kind == TYPE_EXISTS:
            struct.pack_into("<I", data, place, TYPE_MATCHES)
            changed += 1
    assert changed == 10
    said, _ = compared(bytes(data), handed(bytes(data)))
    assert not said, "\n".join(said)
    matched = [
        struct.unpack_from("<i", linked(bytes(data), {}).programs["whole_types"].code, at + 4)[0]
        for at in core_places(core_kinds(), "whole_types")
    ]
    assert 0 in matched
    assert 1 in matched
    exist = link_object(core_kinds(), btf=VMLINUX.read_bytes()).programs["whole_types"].code
    assert exist != linked(bytes(data), {}).programs["whole_types"].code


def core_records(data: bytes) -> list[tuple[int, int]]:
    """File offset of every CO-RE record's kind, and the kind."""
    section = read_object(data).section(".BTF.ext")
    assert section is not None
    assert section.offset is not None
    part = read_btf_ext(section.data, "<").parts[CORE_RELO]
    found = []
    for _, block in part.packed:
        base = section.offset + section.data.index(block)
        for at in range(12, len(block), part.record_size):
            found.append((base + at, struct.unpack_from("<I", block, at)[0]))
    return found


def core_places(data: bytes, program: str) -> list[int]:
    """Byte offsets in the program of the instructions with CO-RE records."""
    obj = read_object(data)
    ext = obj.section(".BTF.ext")
    assert ext is not None
    (symbol,) = [s for s in obj.symbols if s.name == program]
    found = []
    for _, block in read_btf_ext(ext.data, "<").parts[CORE_RELO].packed:
        for at in range(0, len(block), 16):
            offset = struct.unpack_from("<I", block, at)[0] - symbol.value
            if 0 <= offset < symbol.size:
                found.append(offset)
    return found


def test_without_a_kernel_the_compilers_numbers_stay() -> None:
    obj = read_object(core_kinds())
    ours = link_object(core_kinds())
    for name in ("places", "whole_types", "gone"):
        (symbol,) = [s for s in obj.symbols if s.name == name]
        assert symbol.place is not None
        raw = obj.by_id[symbol.place].data[symbol.value : symbol.end]
        image = ours.programs[name]
        assert image.poisoned == ()
        kept = [at for at in range(0, len(raw), 8) if raw[at] != LDDW]
        assert [raw[at] for at in kept] == [image.code[at] for at in kept]
        for at in core_places(core_kinds(), name):
            assert raw[at : at + 8] == image.code[at : at + 8]


def test_big_endian_is_inconclusive() -> None:
    with pytest.raises(InconclusiveError, match="big-endian objects cannot run here"):
        link_object((CORPUS / "eb" / "filter.o").read_bytes())


def test_places_lead_back_to_the_object() -> None:
    for one in corpus_objects():
        if one.name == "legacy_maps_long":
            continue
        obj = read_object(one.path.read_bytes())
        ours = link_object(one.path.read_bytes())
        for image in ours.programs.values():
            assert len(image.origin) == len(image)
            for pc in {0, 1, len(image) // 2, len(image) - 1} & set(range(len(image))):
                section, index = image.place(pc)
                assert image.origin[pc] == (section, index)
                found = obj.section(section)
                assert found is not None
                assert found.data[index * 8] == image.code[pc * 8]


LEGACY = """
struct def { unsigned int type, key, value, entries, flags; };
__attribute__((section("maps"), used)) struct def one = { 2, 4, 8, 3, 0 };
__attribute__((section("maps"), used)) struct def two = { 1, 8, 16, 5, 1 };
static void *(*lookup)(void *, const void *) = (void *)1;
__attribute__((section("xdp"), used)) int prog(void *ctx)
{
	int key = 0;
	return lookup(&two, &key) ? 1 : lookup(&one, &key) ? 2 : 3;
}
"""


def test_legacy_maps() -> None:
    ours = link_object(compile_c(LEGACY, "-g0"))
    one, two = ours.maps
    assert (one.name, one.type) == ("one", 2)
    assert (one.key_size, one.value_size, one.max_entries) == (4, 8, 3)
    assert (two.name, two.type, two.value_size, two.flags) == ("two", 1, 16, 1)
    assert [ours.maps[i].name for i in ours.programs["prog"].maps] == ["two", "one"]
    with pytest.raises(RefusedError, match="section maps: map total says more"):
        link_object((CORPUS / "el" / "legacy_maps_long.o").read_bytes())


def test_configuration_is_given_or_zero() -> None:
    data = (CORPUS / "el" / "kconfig.o").read_bytes()
    plain = link_object(data)
    assert plain.maps[plain.map_index(".kconfig")].contents == bytes(13)
    assert "kconfig CONFIG_HZ is 0" in plain.assumed
    given = link_object(data, kconfig={"CONFIG_HZ": b"\xfa", "CONFIG_BPF_SYSCALL": b"\1"})
    content = given.maps[given.map_index(".kconfig")].contents
    assert content is not None
    assert sorted(content, reverse=True)[:3] == [0xFA, 1, 0]
    assert given.maps[given.map_index(".kconfig")].readonly
    assert "kconfig CONFIG_HZ is 0" not in given.assumed
    with pytest.raises(UsageError, match="kconfig CONFIG_HZ: 5 bytes are given, it holds 4"):
        link_object(data, kconfig={"CONFIG_HZ": bytes(5)})


KSYMS = """
#define KSYM __attribute__((section(".ksyms")))
extern const void untyped KSYM;
extern const int typed KSYM;
__attribute__((section("xdp"), used)) int prog(void *ctx)
{
	return ((unsigned long)&untyped >> 3) + (unsigned long)&typed;
}
"""


def wide_loads(code: bytes) -> list[tuple[int, int]]:
    """Pseudo source and number of every wide load."""
    return [
        (
            code[at + 1] >> 4,
            int.from_bytes(code[at + 4 : at + 8] + code[at + 12 : at + 16], "little"),
        )
        for at in range(0, len(code), 8)
        if code[at] == LDDW
    ]


def test_kernel_symbols_are_given_or_nothing() -> None:
    data = compile_c(KSYMS)
    given = {"untyped": 0x1122334455667788, "typed": 0x99AABBCCDDEEFF00}
    ours = link_object(data, ksyms=given)
    assert wide_loads(ours.programs["prog"].code) == [(0, given["untyped"]), (3, given["typed"])]
    assert ours.assumed == ()
    bare = link_object(data)
    (_, untyped), (_, typed) = wide_loads(bare.programs["prog"].code)
    assert len({0, untyped, typed}) == 3
    assert len(bare.assumed) == 2
    weak = link_object((CORPUS / "el" / "ksyms_weak.o").read_bytes())
    assert "weak ksym no_such_variable does not exist" in weak.assumed
    assert [name for _, name in weak.programs["ksyms_weak"].kfuncs] == [
        "bpf_rcu_read_lock", "bpf_rcu_read_unlock",
    ]  # fmt: skip


def test_initial_entries_and_inner_maps() -> None:
    ours = link_object((CORPUS / "el" / "map_in_map.o").read_bytes())
    outer = next(spec for spec in ours.maps if spec.inner is not None)
    assert outer.inner is not None
    assert outer.inner.value_size > 0
    ours = link_object((CORPUS / "el" / "tailcall_values.o").read_bytes())
    (slots,) = [spec for spec in ours.maps if spec.values]
    assert all(name in ours.programs for _, name in slots.values)


REFUSED = {
    "a call of nothing": (
        """
extern int nothing(void);
__attribute__((section("xdp"), used)) int prog(void *ctx) { return nothing(); }
""",
        r"section xdp: nothing is defined nowhere",
    ),
    "data that is no map's": (
        """
__attribute__((section("other"), used)) int here = 1;
__attribute__((section("xdp"), used)) int prog(void *ctx) { return *(volatile int *)&here; }
""",
        r"section xdp: prog: instruction 0 refers to here in other, which is no map",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    source, message = REFUSED[name]
    ours = link_object(compile_c(source))
    with pytest.raises(RefusedError, match=message):
        ours.programs["prog"]


def test_a_btf_file_that_is_none() -> None:
    data = (CORPUS / "el" / "core_field.o").read_bytes()
    for content, message in (
        (b"no", "--btf: 2 bytes are no BTF"),
        (bytes(100), "--btf: magic 0x0 version 0 is no BTF"),
        ((CORPUS / "el" / "nobtf.o").read_bytes(), "--btf: the ELF file has no section .BTF"),
        (VMLINUX.read_bytes()[:5000] if VMLINUX.exists() else bytes(0), "--btf: "),
    ):
        with pytest.raises(RefusedError, match=re.escape(message)):
            link_object(data, btf=content)


def test_an_elf_file_serves_as_types() -> None:
    """The object's own types, as ELF: every relocation resolves to what the compiler wrote."""
    data = (CORPUS / "el" / "core_kprobe.o").read_bytes()
    ours, own = link_object(data), link_object(data, btf=data)
    assert ours.programs["core_kprobe"].code == own.programs["core_kprobe"].code


def test_bpftool_reads_the_same_kernel() -> None:
    """The types of the running kernel by bpftool: what the tests above compare with is this file."""
    done = subprocess.run(
        ["bpftool", "btf", "dump", "file", str(VMLINUX), "format", "raw"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    types = read_target(VMLINUX.read_bytes())
    lines = re.findall(r"^\[(\d+)\] (STRUCT|UNION) '([^']+)' size=(\d+)", done.stdout, re.M)
    assert len(lines) > 1000
    for number, _, shown, size in lines[::7]:
        name = "" if shown == "(anon)" else shown
        assert (types.name(int(number)), types.size(int(number))) == (name, int(size))

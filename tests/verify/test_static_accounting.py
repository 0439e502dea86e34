"""The static checker's accounting: nothing sound is reported, and every fault by its rule."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any

import pytest

from bpfchain.transform.elf_edit import drop_sections
from bpfchain.transform.elf_read import read_object as read_for_edit
from bpfchain.transform.elf_write import write_object
from bpfchain.transform.errors import BpfchainError, InconclusiveError, RefusedError, UsageError
from bpfchain.transform.policy import hook_of_section
from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object
from bpfchain.verify.result import Outcome, StaticResult
from bpfchain.verify.static.check import check_link
from bpfchain.verify.static.read import read_object
from support.elfbytes import ElfBytes

CORPUS = Path(__file__).parents[2] / "corpus" / "programs"
OBJECTS = sorted(CORPUS.glob("e[lb]/*.o"))
INDEX = {
    entry["name"]: entry for entry in tomllib.loads((CORPUS / "index.toml").read_text())["object"]
}
MAP_MODE = {"saved_code": "map", "allow": frozenset({"nested-runs", "redirect-hazard"})}
OPTIONS: tuple[dict[str, Any], ...] = (
    {"index": 1},
    {"index": 0, "strategy": "inline"},
    {"index": 2, "strategy": "subprog"},
    {"index": 3, "last": True},
    {"index": 32},
    {"index": 1, "pin": True},
    {"index": 2, "redirect": "?", "saved": "?"},
    {"index": 2, "saved": "?", "strategy": "subprog", "pin": True},
    {"index": 4, "saved": "?", "last": True, "pin": True},
    {"index": 5, "slots_map": "other"},
    {"index": 1, "redirect": "?"} | MAP_MODE,
    {"index": 0, "redirect": "?", "strategy": "subprog"} | MAP_MODE,
)
"""``?`` stands for up to three codes of the hook."""


def patched(data: bytes, program: str, section: str, hook: str | None) -> Iterator[bytes]:
    """The program as a link by every choice of options that is not refused."""
    large = len(data) > 100_000  # jump_limit: a second for each
    for options in OPTIONS[: 3 if large else None]:
        chosen = {"allow": frozenset({"redirect-hazard"})} | options
        try:
            known = hook_of_section(section, hook, what=program)
            legal = [str(code.value) for code in known.codes if code.value in known.legal]
            filled: dict[str, Any] = {
                k: ",".join(legal[:3]) if v == "?" else v for k, v in chosen.items()
            }
            request = Request(program=program, hook=hook, **filled)
            yield transform_object(data, request).data
        except BpfchainError:
            continue  # which are refused is the business of tests/corpus


def programs_of(data: bytes) -> list[tuple[str, str]]:
    obj = read_object(data)
    return [
        (function.name, obj.sections[section].name)
        for section, group in obj.functions.items() if obj.sections[section].name != ".text"
        for function in group
    ]  # fmt: skip


def accounted(static: StaticResult) -> list[str]:
    return [f"{finding.rule}: {finding.message}" for finding in static.findings]


@pytest.mark.long
@pytest.mark.parametrize("order", ["el", "eb"])
def test_what_is_sound_is_equal(order: str) -> None:
    """Every program of the corpus, by every choice of options: no finding at all."""
    checked = Counter[str]()
    alarms: list[str] = []
    for path in (one for one in OBJECTS if one.parent.name == order):
        data = path.read_bytes()
        hook = INDEX[path.stem].get("hook")
        for program, section in programs_of(data):
            for out in patched(data, program, section, hook):
                intent, static = check_link(data, out)
                checked[intent.strategy] += 1
                if static.outcome is not Outcome.EQUAL or static.findings:
                    alarms.append(f"{path.stem}/{program}: {accounted(static)}")
                assert static.counted["instructions"] == sum(
                    len(one.data) // 8 for one in read_object(data).executable
                )
    assert alarms == []
    assert checked["inline"] > 500
    assert checked["subprog"] > 200
    assert checked["none"] > 30


@pytest.mark.long
@pytest.mark.real
def test_real_objects_are_equal() -> None:
    from support.real import real_objects

    checked = 0
    alarms: list[str] = []
    seen: set[str] = set()
    for real in real_objects():
        if real.sha256 in seen:
            continue
        seen.add(real.sha256)
        for program, section in programs_of(real.data):
            for options in (OPTIONS[0], OPTIONS[2], OPTIONS[6]):
                chosen = dict(options)
                try:
                    known = hook_of_section(section, None, what=program)
                    codes = ",".join(str(c.value) for c in known.codes if c.value in known.legal)
                    chosen |= {k: codes for k, v in options.items() if v == "?"}
                    request = Request(
                        program=program, allow=frozenset({"redirect-hazard"}), **chosen
                    )
                    out = transform_object(real.data, request).data
                except BpfchainError:
                    continue
                _, static = check_link(real.data, out)
                checked += 1
                if static.outcome is not Outcome.EQUAL or static.findings:
                    alarms.append(f"{real.label}/{program}: {accounted(static)}")
    assert alarms == []
    assert checked > 1000


def test_two_links_of_one_object() -> None:
    """The second link's original is the object that holds the first."""
    data = (CORPUS / "el" / "two_progs.o").read_bytes()
    one = transform_object(data, Request(index=0, program="first")).data
    both = transform_object(one, Request(index=1, program="second", strategy="subprog")).data
    intent, static = check_link(one, both)
    assert (intent.program, intent.index, accounted(static)) == ("second", 1, [])
    with pytest.raises(UsageError, match="2 links that IN does not"):
        check_link(data, both)
    _, static = check_link(data, both, program="second")
    assert {"provenance", "input"} <= {finding.rule for finding in static.findings}
    _, static = check_link(data, both, program="first")
    assert "provenance" in {finding.rule for finding in static.findings}
    with pytest.raises(UsageError, match="no link third"):
        check_link(one, both, program="third")
    with pytest.raises(UsageError, match="in IN already"):
        check_link(both, both)


@pytest.mark.parametrize("path", OBJECTS[::9], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_lief_reads_the_same(path: Path) -> None:
    data = path.read_bytes()
    for program, section in programs_of(data):
        for out in patched(data, program, section, INDEX[path.stem].get("hook")):
            _, static = check_link(data, out, lief=True)
            assert static.readers == ("pyelftools", "lief")
            assert accounted(static) == []


def test_readers_that_disagree_are_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    from bpfchain.verify.static import read_lief

    data = (CORPUS / "el" / "filter.o").read_bytes()
    out = transform_object(data, Request(index=1)).data
    real = read_lief.read_object
    other = transform_object(data, Request(index=2)).data
    monkeypatch.setattr(read_lief, "read_object", lambda d: real(other if d == out else d))
    _, static = check_link(data, out, lief=True)
    assert "readers" in {finding.rule for finding in static.findings}
    assert static.outcome is Outcome.NOT_EQUAL


def test_it_shares_no_code_with_the_patcher() -> None:
    """What an import of the checker brings along of the transformer."""
    script = (
        "import sys, bpfchain.verify.static.check, bpfchain.verify.static.read_lief\n"
        "print(*sorted(m for m in sys.modules if m.startswith('bpfchain.transform.')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    allowed = {f"bpfchain.transform.{name}" for name in ("policy", "codes", "errors", "version")}
    assert set(done.stdout.split()) <= allowed
    assert "bpfchain.transform.policy" in done.stdout


# faults


@dataclass(frozen=True)
class Fault:
    """``rule`` is one of those by which the checker must report it."""

    name: str
    rule: str
    make: Callable[[ElfBytes], None]
    subject: str = "filter"
    program: str | None = None
    options: tuple[tuple[str, Any], ...] = (("index", 1), ("strategy", "inline"))


PINNED = (("index", 1), ("pin", True), ("saved", "TX"))
SUBPROG = (("index", 1), ("strategy", "subprog"))
TWO = (("index", 1), ("saved", "TX"))


def last_relocation_lost(elf: ElfBytes) -> None:
    """The added one is the last: filter's own stand before it."""
    size = elf.sections[elf.index(".relxdp")].header["sh_size"]
    elf.header(".relxdp", "size", size - 16)


def swapped_values(elf: ElfBytes) -> None:
    one, other = elf.relocation(".maps", "filter"), elf.relocation(".maps", "filter__tx")
    elf.relocate_to(".maps", one, "filter__tx")
    elf.relocate_to(".maps", other, "filter")


def shifted(part: int, section: str, number: int, by: int) -> Callable[[ElfBytes], None]:
    def make(elf: ElfBytes) -> None:
        at, size, count = elf.records(part, section)
        elf.word(".BTF.ext", at + size * (number % count), lambda v: v + by)

    return make


def lost_record(part: int, section: str) -> Callable[[ElfBytes], None]:
    """Two of the last three records at one place: one is lost, and none takes its place."""

    def make(elf: ElfBytes) -> None:
        at, size, count = elf.records(part, section)
        data = elf.content(".BTF.ext")
        record = data[at + size * (count - 3) : at + size * (count - 2)]
        elf.put(".BTF.ext", at + size * (count - 2), record)

    return make


def func_info_type(elf: ElfBytes) -> None:
    """The entry's own type becomes the one of its twin."""
    at, size, count = elf.records(0, "xdp")
    assert count == 2
    data = elf.content(".BTF.ext")
    elf.put(".BTF.ext", at + 4, data[at + size + 4 : at + size + 8])


def wrong_member(elf: ElfBytes) -> None:
    elf.word(".BTF", elf.btf_type(4, "xdp_md") + 12 + 8, lambda v: v + 8)


def datasec_size(elf: ElfBytes) -> None:
    at = elf.btf_type(15, ".maps")
    count = next(v for a, _, _, v in elf.btf_types() if a == at)
    elf.word(".BTF", at + 12 + 12 * (count - 1) + 8, lambda v: v + 8)


def calls_in(elf: ElfBytes) -> list[int]:
    """Where xdp calls functions of the object: opcode 0x85 with source register 1."""
    code, registers = elf.content("xdp"), 0x10 if elf.order == "<" else 0x01
    return [i for i in range(0, len(code), 8) if code[i : i + 2] == bytes((0x85, registers))]


def body_call(elf: ElfBytes) -> None:
    """The wrapper calls one instruction behind the body's start."""
    elf.word("xdp", calls_in(elf)[0] + 4, lambda v: v + 1, "i")


def own_call(elf: ElfBytes) -> None:
    """A call of the program's own leads elsewhere."""
    elf.word("xdp", calls_in(elf)[0] + 4, lambda v: v + 1, "i")


FAULTS = (
    Fault("relocation of the tail call to another map", "relocation",
          lambda e: e.relocate_to("xdp", e.relocation("xdp", "bpfchain_slots"), "blocked")),
    Fault("relocation of the body to the slots", "relocation",
          lambda e: e.relocate_to("xdp", e.relocation("xdp", "blocked"), "bpfchain_slots")),
    Fault("added relocation removed", "relocation", last_relocation_lost),
    Fault("relocation of another kind", "relocation",
          lambda e: e.word(".relxdp", 16 * e.relocation("xdp", "blocked") + 8, lambda v: v ^ 3, "Q")),
    Fault("value size of the slots", "map",
          lambda e: e.word(".BTF", e.map_number("bpfchain_slots", "value_size"), lambda _: 8)),
    Fault("max entries of the slots", "map",
          lambda e: e.word(".BTF", e.map_number("bpfchain_slots", "max_entries"), lambda _: 33)),
    Fault("type of the slots", "map",
          lambda e: e.word(".BTF", e.map_number("bpfchain_slots", "type"), lambda _: 1)),
    Fault("size of an own map", "btf",
          lambda e: e.word(".BTF", e.map_number("blocked", "max_entries"), lambda v: v + 4)),
    Fault("a byte of a definition is not zero", "map",
          lambda e: e.word(".maps", len(e.content(".maps")) - 4, lambda _: 1)),
    Fault("initial slots swapped", "slot", swapped_values, options=PINNED),
    Fault("initial slot of another index", "slot",
          lambda e: e.word(".rel.maps", 16 * e.relocation(".maps", "filter"), lambda v: v + 8, "Q"),
          options=PINNED),
    Fault("pinned otherwise", "map",
          lambda e: e.word(".BTF", e.map_number("bpfchain_slots", "pinning"), lambda _: 2),
          options=PINNED),
    Fault("provenance tells another index", "slot",
          lambda e: e.text(".bpfchain", b"\0index=1\0", b"\0index=2\0"), options=PINNED),
    Fault("provenance tells another input", "input",
          lambda e: e.put(".bpfchain", e.content(".bpfchain").index(b"sha256:") + 7, b"0" * 64)),
    Fault("provenance tells another length", "provenance",
          lambda e: e.put(".bpfchain", e.content(".bpfchain").index(b"\0body=") + 6, b"1")),
    Fault("provenance tells another place of the context", "provenance",
          lambda e: e.text(".bpfchain", b"\0keep=r6\0", b"\0keep=r7\0"), options=SUBPROG),
    Fault("provenance tells a hook that the section is not for", "hook",
          lambda e: e.text(".bpfchain", b"hook=xdp/devmap\0", b"hook=xdp/cpumap\0"),
          "xdp_devmap", "on_devmap"),
    Fault("license changed", "content",
          lambda e: e.put("license", 0, b"MIT"), subject="log", program="log_tcp"),
    Fault("read-only data changed", "content",
          lambda e: e.word(".rodata", 0, lambda v: v ^ 1), subject="printk"),
    Fault("read-only data writable", "section",
          lambda e: e.header(".rodata", "flags", 3), subject="printk"),
    Fault("CO-RE record not moved", "core-relo", shifted(2, "xdp", 1, -8), "core_field"),
    Fault("CO-RE record of the second entry lost", "core-relo", lost_record(2, "xdp"), "core_field",
          options=TWO),
    Fault("CO-RE record of the moved body not moved", "core-relo", shifted(2, ".text", 0, -8),
          "core_field", options=SUBPROG),
    Fault("line record shifted", "line-info", shifted(1, "xdp", 5, 8)),
    Fault("line record of the moved body lost", "line-info", lost_record(1, ".text"),
          options=SUBPROG),
    Fault("line records begin behind the first instruction", "line-info", shifted(1, "xdp", 0, 8),
          options=SUBPROG),
    Fault("func_info of the entry wrong", "func-info", func_info_type, options=TWO),
    Fault("func_info shifted", "func-info", shifted(0, "xdp", 1, 8), options=TWO),
    Fault("another program's symbol moved", "symbol",
          lambda e: e.symbol_field("second", "value", lambda v: v - 8), "two_progs", "first"),
    Fault("entry's symbol too long", "symbol",
          lambda e: e.symbol_field("filter", "size", lambda v: v + 8)),
    Fault("entry's symbol hidden", "symbol", lambda e: e.symbol_field("filter", "other", lambda _: 2)),
    Fault("map's symbol moved", "symbol",
          lambda e: e.symbol_field("blocked", "value", lambda v: v + 8)),
    Fault("body's function global", "symbol",
          lambda e: e.symbol_field("filter__body", "info", lambda v: v | 0x10), options=SUBPROG),
    Fault("BTF of a struct changed", "btf", wrong_member),
    Fault("BTF tells another size of the slots", "btf", datasec_size),
    Fault("body's FUNC global", "func-info",
          lambda e: e.word(".BTF", e.btf_type(12, "filter__body") + 4, lambda v: v | 1),
          options=SUBPROG),
    Fault("call of the body one off", "relocation", body_call, options=SUBPROG),
    Fault("call of the program one off", "addend", own_call, "static_subprog"),
    Fault("ELF flags", "header", lambda e: e.data.__setitem__(51 if e.order == ">" else 48, 1)),
)  # fmt: skip


@pytest.mark.parametrize("order", ["el", "eb"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "-"))
def test_faults(fault: Fault, order: str) -> None:
    data = (CORPUS / order / f"{fault.subject}.o").read_bytes()
    out = transform_object(data, Request(program=fault.program, **dict(fault.options))).data
    _, static = check_link(data, out)
    assert accounted(static) == [], "the subject is sound"
    elf = ElfBytes(out)
    fault.make(elf)
    _, static = check_link(data, bytes(elf.data))
    assert static.outcome is Outcome.NOT_EQUAL
    assert fault.rule in {finding.rule for finding in static.findings}, accounted(static)
    assert all(finding.message for finding in static.findings)


def dropped(data: bytes, *names: str) -> bytes:
    obj = read_for_edit(data)
    gone = [section.id for section in obj.sections if section.name in names]
    assert len(gone) == len(names)
    return write_object(drop_sections(obj, gone))


def test_a_dropped_section() -> None:
    data = (CORPUS / "el" / "filter.o").read_bytes()
    out = transform_object(data, Request(index=1)).data
    _, static = check_link(data, dropped(out, "license"))
    assert any("license is missing" in finding.message for finding in static.findings)


def test_dwarf_dropped_in_part() -> None:
    """A link that needs no patch keeps its DWARF: all of it."""
    data = (CORPUS / "el" / "filter.o").read_bytes()
    out = transform_object(data, Request(index=1, last=True)).data
    assert b".debug_info" in out
    _, static = check_link(data, dropped(out, ".debug_frame"))
    assert "debug" in {finding.rule for finding in static.findings}


def test_an_object_that_is_not_what_was_patched() -> None:
    data = (CORPUS / "el" / "filter.o").read_bytes()
    other = (CORPUS / "el" / "metrics.o").read_bytes()
    out = transform_object(data, Request(index=1)).data
    _, static = check_link(other, out)
    assert static.outcome is Outcome.NOT_EQUAL
    assert {"input", "section"} <= {finding.rule for finding in static.findings}


@pytest.mark.parametrize("broken", [b"", b"\x7fELF", b"\x7fELF" + bytes(60)])
def test_what_cannot_be_read_is_inconclusive(broken: bytes) -> None:
    data = (CORPUS / "el" / "filter.o").read_bytes()
    out = transform_object(data, Request(index=1)).data
    for before, after in ((broken, out), (data, broken)):
        with pytest.raises(InconclusiveError) as caught:
            check_link(before, after)
        assert "\n" not in caught.value.message


def test_an_object_without_a_link_is_refused() -> None:
    data = (CORPUS / "el" / "filter.o").read_bytes()
    with pytest.raises(RefusedError, match=r"OUT holds no link: it has no section \.bpfchain"):
        check_link(data, data)


QUIET = (".strtab", ".shstrtab", ".bpfchain")
"""Their bytes are looked at where they are used: names, and what was intended."""


@pytest.mark.parametrize(
    ("name", "options"),
    [("el/always_pass", SUBPROG), ("eb/two_progs", (("index", 1), ("program", "first"))),
     ("el/core_field", TWO), ("eb/legacy_maps_g", PINNED)],
)  # fmt: skip
def test_no_byte_is_looked_over(name: str, options: tuple[tuple[str, Any], ...]) -> None:
    """A flipped bit anywhere in a section's content, header or symbol is not equal, or unreadable."""
    data = (CORPUS / f"{name}.o").read_bytes()
    out = transform_object(data, Request(**dict(options))).data
    elf = ElfBytes(out)
    table = elf.elf.header["e_shoff"]
    # the offset of a section without bytes means nothing
    places = [
        range(table + 64 * i + low, table + 64 * i + high)
        for i in range(1, len(elf.sections)) for low, high in ((4, 24), (40, 64))
    ]  # fmt: skip
    for section in elf.sections:
        start, size = section.header["sh_offset"], section.header["sh_size"]
        if section.name == ".BTF":
            strings = Struct(elf.order + "HBBIIIII").unpack_from(elf.content(".BTF"))[6]
            size = 24 + strings  # unused strings, and the text of added lines, mean nothing
        if section.name not in QUIET and section.header["sh_type"] != "SHT_NOBITS":
            places.append(range(start, start + size))
    offsets = [offset for place in places for offset in place]
    chosen = random.Random(hashlib.sha256(name.encode()).digest()).sample(offsets, 500)
    missed = []
    for offset in chosen:
        for bit in (0, 5):
            damaged = bytearray(out)
            damaged[offset] ^= 1 << bit
            try:
                _, static = check_link(data, bytes(damaged))
            except InconclusiveError:
                continue
            if static.outcome <= Outcome.UNMODELLED:
                where = [
                    (one.name, offset - one.header["sh_offset"]) for one in elf.sections
                    if 0 <= offset - one.header["sh_offset"] < one.header["sh_size"]
                ]  # fmt: skip
                missed.append((offset, bit, where or f"section headers+{offset - table}"))
    assert missed == []

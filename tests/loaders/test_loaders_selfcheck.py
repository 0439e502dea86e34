"""Checks of the test programs themselves (ciltest, ayatest), on chains written by hand.

Expected verdicts follow from the C sources below; instruction counts from the symbol table as
pyelftools reads it. Nothing here uses bpfchain.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from loaders import build

TOOLS = ("cilium", "aya")
PACKET = bytes(64).hex()
ASM_HEADERS = f"-I/usr/include/{platform.machine()}-linux-gnu"
CLANG = ["clang", "-g", "-O2", "-target", "bpf", ASM_HEADERS]
BPFFS_PREFIXES = {"cilium": "ciltest-bpffs-", "aya": "ayatest-bpffs-"}

HEADER = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
struct {
    __uint(type, BPF_MAP_TYPE_PROG_ARRAY);
    __uint(max_entries, 264);
    __uint(key_size, 4);
    __uint(value_size, 4);
} bpfchain_slots SEC(".maps");
char LICENSE[] SEC("license") = "GPL";
"""

SOURCES = {
    "first": HEADER
    + """
SEC("xdp") int first(struct xdp_md *ctx)
{
    bpf_tail_call(ctx, &bpfchain_slots, 1);
    return 2;
}
""",
    "second": HEADER
    + """
SEC("xdp") int second(struct xdp_md *ctx)
{
    bpf_tail_call(ctx, &bpfchain_slots, 2);
    return 1;
}
""",
    # The same beside a program that the verifier refuses (a packet read without a check).
    "second_and_bad": HEADER
    + """
SEC("xdp") int second(struct xdp_md *ctx)
{
    bpf_tail_call(ctx, &bpfchain_slots, 2);
    return 1;
}
SEC("xdp") int unchecked_read(struct xdp_md *ctx)
{
    return *(volatile char *)(long)ctx->data;
}
""",
    "bad": HEADER
    + """
SEC("xdp") int unchecked_read(struct xdp_md *ctx)
{
    return *(volatile char *)(long)ctx->data;
}
""",
    # Not SEC("tc"): aya 0.14 knows the older name only.
    "tc": """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
char LICENSE[] SEC("license") = "GPL";
SEC("classifier") int unspecified(struct __sk_buff *skb)
{
    return -1;
}
""",
    "pinned": """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
struct {
    __uint(type, BPF_MAP_TYPE_ARRAY);
    __uint(max_entries, 1);
    __type(key, unsigned int);
    __type(value, unsigned long);
    __uint(pinning, LIBBPF_PIN_BY_NAME);
} selfcheck_pin SEC(".maps");
char LICENSE[] SEC("license") = "GPL";
SEC("xdp") int lookup(struct xdp_md *ctx)
{
    unsigned int key = 0;
    return bpf_map_lookup_elem(&selfcheck_pin, &key) ? 2 : 1;
}
""",
    # No loader knows the section "filter"; cilium/ebpf leaves such programs out without a word.
    "untyped": HEADER
    + """
SEC("filter") int untyped(struct __sk_buff *skb)
{
    return 1;
}
""",
    "partly_untyped": HEADER
    + """
SEC("xdp") int typed(struct xdp_md *ctx)
{
    return 1;
}
SEC("filter") int untyped(struct __sk_buff *skb)
{
    return 1;
}
""",
    "empty": HEADER,
}


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every source above, compiled."""
    folder = tmp_path_factory.mktemp("loaders")
    for name, text in SOURCES.items():
        source = folder / f"{name}.c"
        source.write_text(text)
        target = ["-o", str(source.with_suffix(".o"))]
        subprocess.run([*CLANG, "-c", str(source), *target], check=True, timeout=60)
    (folder / "garbage.o").write_bytes(b"\x7fELF" + bytes(range(200)))
    whole = (folder / "first.o").read_bytes()
    (folder / "cut.o").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture(params=TOOLS)
def tool(request: pytest.FixtureRequest) -> str:
    """The name of a program that is built; root is at hand."""
    name = str(request.param)
    try:
        build.build(name)
    except build.ToolMissing as error:
        pytest.skip(str(error))
    if os.geteuid() != 0:
        pytest.skip("host: loading BPF needs root")
    return name


def write_spec(folder: Path, name: str, links: list[dict[str, Any]], **more: Any) -> Path:
    spec: dict[str, Any] = {
        "slots_map": "bpfchain_slots",
        "max_entries": 264,
        "links": links,
        "packets": [PACKET, PACKET],
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(spec | more))
    return path


def link(object_name: str, *entries: tuple[str, int], only: bool = False) -> dict[str, Any]:
    pairs = [{"program": program, "slot": slot} for program, slot in entries]
    return {"object": object_name, "entries": pairs, "only": only}


def two_links(second_slot: int = 1) -> list[dict[str, Any]]:
    return [link("first.o", ("first", 0)), link("second.o", ("second", second_slot))]


def run_one(tool: str, *args: str | Path) -> dict[str, Any]:
    lines = build.call(tool, *args)
    assert len(lines) == 1
    return lines[0]


def test_a_filled_slot_is_reached(tool: str, objects: Path) -> None:
    result = run_one(tool, "chain", write_spec(objects, "filled", two_links()))
    assert result["error"] is None
    assert result["verdicts"] == [1, 1]
    assert result["programs_loaded"] == 2


def test_a_slot_left_empty_is_seen(tool: str, objects: Path) -> None:
    spec = write_spec(objects, "gap", two_links(second_slot=200))
    assert run_one(tool, "chain", spec)["verdicts"] == [2, 2]


def test_only_the_named_programs_are_loaded(tool: str, objects: Path) -> None:
    first = link("first.o", ("first", 0))
    some = [first, link("second_and_bad.o", ("second", 1), only=True)]
    result = run_one(tool, "chain", write_spec(objects, "some", some))
    assert (result["programs_loaded"], result["verdicts"]) == (2, [1, 1])
    whole = [first, link("second_and_bad.o", ("second", 1))]
    result = run_one(tool, "chain", write_spec(objects, "whole", whole))
    assert "unchecked_read" in result["error"]
    assert result["verdicts"] == []


def test_verdicts_are_signed(tool: str, objects: Path) -> None:
    spec = write_spec(objects, "tc", [link("tc.o", ("unspecified", 0))])
    result = run_one(tool, "chain", spec)
    assert (result["verdicts"], result["error"]) == ([-1, -1], None)


def test_a_program_that_is_not_there_is_an_error(tool: str, objects: Path) -> None:
    links = [link("first.o", ("first", 0)), link("second.o", ("third", 1))]
    result = run_one(tool, "chain", write_spec(objects, "third", links))
    assert "no program third" in result["error"]


def test_a_chain_with_an_object_without_programs_is_an_error(tool: str, objects: Path) -> None:
    links = [*two_links(), link("empty.o")]
    result = run_one(tool, "chain", write_spec(objects, "with_empty", links))
    assert "no program was loaded" in result["error"]
    assert result["verdicts"] == []


def test_max_entries_must_fit_the_chain(tool: str, objects: Path) -> None:
    spec = write_spec(objects, "small", two_links(), max_entries=33)
    result = run_one(tool, "chain", spec)
    assert "bpfchain_slots" in result["error"]
    options = ["--slot-map", "bpfchain_slots", "--max-entries", "33"]
    result = run_one(tool, "chain", *options, spec)
    assert (result["error"], result["verdicts"]) == (None, [1, 1])


def test_load_prints_a_line_for_each_object(tool: str, objects: Path) -> None:
    names = ["first.o", "bad.o", "second.o"]
    lines = build.call(tool, "load", *(objects / name for name in names))
    assert [line["object"] for line in lines] == [str(objects / name) for name in names]
    assert [line["programs"] for line in lines] == [["first"], [], ["second"]]
    assert [line["error"] is None for line in lines] == [True, False, True]
    assert "invalid access to packet" in lines[1]["error"]  # the verifier's own words


@pytest.mark.parametrize("name", ["garbage.o", "cut.o", "empty.o"])
def test_load_reports_a_broken_object(tool: str, objects: Path, name: str) -> None:
    result = run_one(tool, "load", objects / name)
    assert result["programs"] == []
    assert result["error"]


def test_an_object_without_programs_is_an_error(tool: str, objects: Path) -> None:
    assert "no program was loaded" in run_one(tool, "load", objects / "empty.o")["error"]


@pytest.mark.parametrize("name", ["untyped.o", "partly_untyped.o"])
def test_a_program_left_out_is_an_error(tool: str, objects: Path, name: str) -> None:
    result = run_one(tool, "load", objects / name)
    assert "filter" in result["error"]
    assert "untyped" not in result["programs"]
    first = "untyped" if name == "untyped.o" else "typed"
    spec = write_spec(objects, f"chain_{first}", [link(name, (first, 0))])
    result = run_one(tool, "chain", spec)
    assert "filter" in result["error"]
    assert result["verdicts"] == []


def test_pins_stay_private(tool: str, objects: Path) -> None:
    lines = build.call(tool, "load", objects / "pinned.o", objects / "pinned.o")
    assert [(line["programs"], line["error"]) for line in lines] == [(["lookup"], None)] * 2
    assert not Path("/sys/fs/bpf/selfcheck_pin").exists()
    assert BPFFS_PREFIXES[tool] not in Path("/proc/mounts").read_text()


def test_cilium_without_a_pin_path_refuses_a_map_pinned_by_name(objects: Path) -> None:
    try:
        build.build("cilium")
    except build.ToolMissing as error:
        pytest.skip(str(error))
    if os.geteuid() != 0:
        pytest.skip("host: loading BPF needs root")
    result = run_one("cilium", "load", "--no-pin-path", objects / "pinned.o")
    assert "PinPath" in result["error"]


def test_a_pinned_slots_map_is_used(tool: str, objects: Path) -> None:
    if shutil.which("bpftool") is None:
        pytest.skip("host: bpftool not found: install bpftool")
    spec = write_spec(objects, "pinned", two_links())
    script = """
    mount -t bpf bpf /sys/fs/bpf
    bpftool map create /sys/fs/bpf/slots type prog_array key 4 value 4 entries 264 name slots
    "$1" chain --map bpfchain_slots=/sys/fs/bpf/slots "$2"
    bpftool -j map dump pinned /sys/fs/bpf/slots
    """
    command = ["unshare", "-m", "sh", "-ec", script, "sh", str(build.build(tool)), str(spec)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    result, dump = map(json.loads, done.stdout.splitlines())
    assert (result["error"], result["verdicts"]) == (None, [1, 1])
    filled = [int(entry["key"][0], 16) for entry in dump if "value" in entry]
    assert filled == [0, 1]


def test_a_pin_that_is_not_there_is_not_made(tool: str, objects: Path) -> None:
    pin = "/sys/fs/bpf/selfcheck_absent"
    with pytest.raises(build.CallFailed, match="selfcheck_absent"):
        build.call(tool, "load", "--map", f"bpfchain_slots={pin}", objects / "first.o")
    assert not Path(pin).exists()


def test_info_agrees_with_the_symbol_table(tool: str, objects: Path) -> None:
    path = objects / "second_and_bad.o"
    with path.open("rb") as stream:
        table = ELFFile(stream).get_section_by_name(".symtab")
        assert isinstance(table, SymbolTableSection)
        symbols = [s for s in table.iter_symbols() if s["st_info"]["type"] == "STT_FUNC"]
        sizes = {s.name: s["st_size"] // 8 for s in symbols}
    assert sorted(sizes) == ["second", "unchecked_read"]
    result = run_one(tool, "info", path)
    assert {p["name"]: p["instructions"] for p in result["programs"]} == sizes
    assert {(p["section"], p["type"].upper()) for p in result["programs"]} == {("xdp", "XDP")}
    maps = [(m["name"], m["max_entries"], m["pinned"]) for m in result["maps"]]
    assert maps == [("bpfchain_slots", 264, False)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["load", "no_such_file.o"], "no_such_file.o"),
        (["unload", "x.o"], "unload"),
        (["load"], "a file is needed"),
        (["load", "--map", "x", "y.o"], "NAME=PINPATH"),
        (["load", "--max-entries", "3", "y.o"], "belong together"),
    ],
)
def test_wrong_use_exits_1(tool: str, arguments: list[str], said: str) -> None:
    with pytest.raises(build.CallFailed, match="exit 1") as caught:
        build.call(tool, *arguments)
    assert said in str(caught.value)


def test_a_chain_needs_a_head_and_distinct_slots(tool: str, objects: Path) -> None:
    headless = write_spec(objects, "headless", [link("second.o", ("second", 1))])
    with pytest.raises(build.CallFailed, match="no entry has slot 0"):
        build.call(tool, "chain", headless)
    twice = [link("first.o", ("first", 0)), link("second.o", ("second", 0))]
    with pytest.raises(build.CallFailed, match="given twice"):
        build.call(tool, "chain", write_spec(objects, "twice", twice))


def test_the_loader_is_named_as_it_is_locked(tool: str, objects: Path) -> None:
    if tool == "cilium":
        lines = (build.HERE / "cilium" / "go.mod").read_text().splitlines()
        wanted = next(line.strip() for line in lines if "github.com/cilium/ebpf" in line)
        wanted = wanted.removeprefix("github.com/")
    else:
        lock = (build.HERE / "aya" / "Cargo.lock").read_text()
        version = lock.split('name = "aya"\n', 1)[1].split('"')[1]
        wanted = f"aya v{version}"
    assert run_one(tool, "info", objects / "first.o")["loader"] == wanted


@pytest.mark.parametrize("name", TOOLS)
def test_a_missing_compiler_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.ToolMissing, match=f"{build.TOOLS[name].compiler} not found"):
        build.build(name, tmp_path / "out")


@pytest.mark.parametrize("name", TOOLS)
def test_an_old_compiler_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / build.TOOLS[name].compiler
    fake.write_text("#!/bin/sh\necho 1.19.8\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(build.ToolMissing, match=r"1\.19 is too old"):
        build.build(name, tmp_path / "out")

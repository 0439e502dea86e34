"""Tests of the fetched objects and of loading them as they are, package by package."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from real import fetch
from real.debian import MIRROR_VARIABLE, archive_uri
from support import real

pytestmark = pytest.mark.real

# From research (packets-and-kernels.md, section 2), which counted them by other means; a newer
# Debian version may hold another number, so these are asked of these versions only.
COUNTED = {
    ("libxdp1", "1.3.1-1"): 15,
    ("xdp-tools", "1.3.1-1"): 11,
    ("libbpf-tools", "0.26.0+ds-1"): 52,
    ("libxdp1", "1.6.3-1"): 15,
    ("xdp-tools", "1.6.3-1"): 16,
    ("libbpf-tools", "0.37.0+ds-8"): 57,
    ("suricata", "1:8.0.7-2"): 6,
}
# sha256 over the sorted sha256 of the objects: what is carved must not change unnoticed.
DIGESTS = {
    ("libxdp1", "1.3.1-1"): ("c61cf33d6cb46abce554c5ea03b6dcb91d5549df16d0571cb13aa96d838669b5"),
    ("xdp-tools", "1.3.1-1"): ("4eef244d49b3a09ccea0ab71758f59296638024e7d26efbf53ae3ea96c017a51"),
    ("libbpf-tools", "0.26.0+ds-1"): (
        "128c56bb4395e339c564b4a3be044103020ef063618e14770170ed31eadf765f"
    ),
}
MANDATORY = ["libxdp1", "xdp-tools", "libbpf-tools", "suricata", "xdp-tests"]

needs_kernel = pytest.mark.skipif(
    real.why_no_loading() is not None, reason=str(real.why_no_loading())
)


def of_package(package: str, suite: str | None = None) -> list[real.RealObject]:
    return [
        one for one in real.real_objects() if one.package == package and suite in (None, one.suite)
    ]


@pytest.fixture(autouse=True)
def nothing_left_in_the_bpf_file_system() -> Iterator[None]:
    """Loads pin in namespaces of their own; the machine's own pins are the same afterwards."""
    bpffs = Path("/sys/fs/bpf")
    before = sorted(os.listdir(bpffs)) if bpffs.is_dir() else []
    yield
    assert (sorted(os.listdir(bpffs)) if bpffs.is_dir() else []) == before


@pytest.mark.parametrize("package", MANDATORY)
def test_every_mandatory_package_gives_objects(package: str) -> None:
    assert of_package(package)


@pytest.mark.parametrize(("package", "version"), COUNTED)
def test_the_number_of_objects_is_the_one_counted_before(package: str, version: str) -> None:
    found = [one for one in of_package(package) if one.version == version]
    if not found:
        now = sorted({one.version for one in of_package(package)})
        pytest.skip(f"Debian has no {package} {version} any more, but {', '.join(now)}")
    assert len(found) == COUNTED[package, version]


@pytest.mark.parametrize(("package", "version"), DIGESTS)
def test_the_objects_of_bookworm_are_the_bytes_known(package: str, version: str) -> None:
    found = of_package(package, "bookworm")
    if {one.version for one in found} != {version}:
        pytest.skip(f"bookworm's {package} is {found[0].version} now: add its digest here")
    digests = sorted(hashlib.sha256(one.data).hexdigest() for one in found)
    assert hashlib.sha256("".join(digests).encode()).hexdigest() == DIGESTS[package, version]


def test_each_object_is_bpf_and_every_section_of_it_can_be_read() -> None:
    for one in real.real_objects():
        elf = ELFFile(io.BytesIO(one.data))
        assert elf["e_machine"] == "EM_BPF", one.label
        code = 0
        for section in elf.iter_sections():
            if section["sh_type"] != "SHT_NOBITS":
                assert len(section.data()) == section["sh_size"], (one.label, section.name)
            if section["sh_flags"] & 4:  # SHF_EXECINSTR
                code += section["sh_size"]
        assert code > 0, one.label
        assert code % 8 == 0, one.label


def test_no_byte_is_missing_or_too_many_by_another_reader() -> None:
    """Objects that are files of their own are whole; carved ones end with their last structure."""
    for one in real.real_objects():
        elf = ELFFile(io.BytesIO(one.data))
        ends = [elf["e_shoff"] + elf.num_sections() * elf["e_shentsize"]]
        ends += [
            section["sh_offset"] + section["sh_size"]
            for section in elf.iter_sections()
            if section["sh_type"] not in ("SHT_NOBITS", "SHT_NULL")
        ]
        assert len(one.data) == max(ends), one.label


def test_labels_are_unique_and_files_are_what_the_index_says() -> None:
    objects = real.real_objects()
    assert len({one.label for one in objects}) == len(objects)
    assert all(hashlib.sha256(one.data).hexdigest() == one.sha256 for one in objects)
    assert all(one.origins and one.origins[0].startswith("/usr/") for one in objects)


def test_a_second_fetch_changes_nothing(tmp_path: Path) -> None:
    index = real.DEST / "index.json"
    before = index.stat()
    script = Path(fetch.__file__)
    # No archive is there to ask: a complete cache needs none.
    environment = {**os.environ, MIRROR_VARIABLE: "file:///nonexistent"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (index.stat().st_mtime_ns, index.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_an_unreachable_archive_is_one_line_and_nothing_is_left(tmp_path: Path) -> None:
    environment = {**os.environ, MIRROR_VARIABLE: "file:///nonexistent"}
    command = [sys.executable, str(fetch.__file__), str(tmp_path / "real")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("fetch: error: Debian bookworm: its package list cannot be fetched: E:")
    assert [path.name for path in tmp_path.iterdir()] == ["real.lock"]


def test_a_damaged_cache_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "objects" / "a-1" / "a.o"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"whole")
    entry = {"path": "objects/a-1/a.o", "sha256": hashlib.sha256(b"whole").hexdigest()}
    index = {"recipe": fetch.RECIPE, "objects": [entry], "tools": [], "notes": []}
    assert fetch.problem_with(tmp_path) == "not fetched yet"
    (tmp_path / "index.json").write_text(json.dumps(index))
    assert fetch.problem_with(tmp_path) is None
    path.write_bytes(b"other")
    assert fetch.problem_with(tmp_path) == "objects/a-1/a.o was changed"
    path.unlink()
    assert fetch.problem_with(tmp_path) == "objects/a-1/a.o: No such file or directory"
    (tmp_path / "index.json").write_text(json.dumps({**index, "recipe": fetch.RECIPE - 1}))
    assert fetch.problem_with(tmp_path) == "written by another version of this script"


def test_the_archive_comes_from_the_system_and_can_be_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(MIRROR_VARIABLE, "file:///somewhere")
    assert archive_uri() == "file:///somewhere"


@pytest.mark.parametrize("prefix", [real.bookworm_bpftool, real.newest_bpftool])
def test_the_bpftools_run(prefix: object) -> None:
    assert callable(prefix)
    done = subprocess.run([*prefix(), "version"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "using libbpf v1." in done.stdout


@pytest.mark.parametrize("name", ["bookworm", "newest"])
def test_a_runtime_has_the_libbpf_of_its_suite(name: str) -> None:
    command = [*real.runtime(name), sys.executable, "-c", LIBBPF_VERSION]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    index = json.loads((real.DEST / "index.json").read_text())
    (package,) = [tool["libbpf1"] for tool in index["tools"] if tool["name"] == name]
    major, minor = package.split(":")[-1].split(".")[:2]
    assert done.stdout == f"{major}.{minor}\n"


LIBBPF_VERSION = """
import ctypes
lib = ctypes.CDLL("libbpf.so.1")
print(f"{lib.libbpf_major_version()}.{lib.libbpf_minor_version()}")
"""


@needs_kernel
@pytest.mark.parametrize("name", ["bookworm", "newest"])
@pytest.mark.parametrize("package", MANDATORY)
def test_programs_of_every_package_load_as_they_are(package: str, name: str) -> None:
    results = real.as_is()[name]
    loaded = {one.label: results[one.label]["programs"] for one in of_package(package)}
    assert sum(len(programs) for programs in loaded.values()) > 0, loaded


@needs_kernel
def test_every_object_has_programs_or_a_reason_but_not_both() -> None:
    labels = {one.label for one in real.real_objects()}
    for name, results in real.as_is().items():
        assert results.keys() == labels
        for label, result in results.items():
            assert bool(result["programs"]) != bool(result["error"]), (name, label, result)


@needs_kernel
def test_what_was_measured_is_what_a_load_now_gives() -> None:
    loader = real.loader("bookworm")
    for one in of_package("suricata") + of_package("libxdp1", "bookworm"):
        done = real.load_as_is(loader, one.path, real.type_arguments(one.data))
        assert list(done.programs) == real.as_is()["bookworm"][one.label]["programs"], done.output


@needs_kernel
def test_pins_are_programs_that_the_object_has() -> None:
    """libbpf pins by name, so each pin must be a function symbol of an executable section."""
    results = real.as_is()["newest"]
    for one in real.real_objects():
        symbols = ELFFile(io.BytesIO(one.data)).get_section_by_name(".symtab")
        assert isinstance(symbols, SymbolTableSection), one.label
        functions = {
            symbol.name
            for symbol in symbols.iter_symbols()
            if symbol["st_info"]["type"] == "STT_FUNC"
        }
        assert set(results[one.label]["programs"]) <= functions, one.label


@needs_kernel
def test_a_file_that_is_no_object_fails_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "bad.o"
    path.write_bytes(b"\x7fELF no more than that")
    done = real.load_as_is(real.loader("bookworm"), path)
    assert done.programs == ()
    assert done.error is not None
    assert "bad.o" in done.error


def test_the_useful_line_skips_noise_and_adds_the_verifiers_reason() -> None:
    output = """\
libbpf: Error in bpf_create_map_xattr(rx_cnt):Invalid argument(-22). Retrying without BTF.
libbpf: elf: skipping unrecognized data section(7) .rodata.str1.1
libbpf: prog 'f': BPF program load failed: Permission denied
libbpf: prog 'f': -- BEGIN PROG LOAD LOG --
0: R1=ctx(off=0,imm=0) R10=fp0
R0 !read_ok
processed 1 insns (limit 1000000) max_states_per_insn 0 total_states 0
-- END PROG LOAD LOG --
Error: failed to load object file
"""
    expected = "libbpf: prog 'f': BPF program load failed: Permission denied: R0 !read_ok"
    assert real.useful_line(output) == expected
    assert real.useful_line("\n") is None
    assert real.useful_line("Error: too few parameters\n") == "Error: too few parameters"

"""A patched object goes through llvm-strip, llvm-objcopy and ``bpftool gen object``.

After the first two it is the same code with the same note of its patch and loads as before.
``bpftool gen object`` (libbpf's static linker) keeps code and maps, but drops ``.bpfchain``.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from bpfchain.transform.elf_read import read_object
from bpfchain.transform.errors import BpfchainError, RefusedError
from bpfchain.transform.provenance import Provenance, read_provenance
from bpfchain.transform.request import Patched, Request
from bpfchain.transform.transform import transform_object
from patched.loading import LOADERS, Job, load
from patched.objects import CorpusObject, corpus_objects, patch, programs_of
from patched.readers import View, read

TOOLS = {
    "strip": ["llvm-strip", "-g"],
    "strip-debug": ["llvm-objcopy", "--strip-debug"],
    "copy": ["llvm-objcopy"],
}
WAYS = ("inline", "subprog, states")


def patched_objects() -> dict[str, tuple[CorpusObject, Patched]]:
    """``OBJECT: WAY`` -> object and what was made of it; refusals are test_corpus_loaders' matter."""
    found = {}
    for one in corpus_objects():
        for way in WAYS:
            done = patch(one.path.read_bytes(), one.program, one.section, one.hook, way)
            if not isinstance(done, BpfchainError):
                found[f"{one.name}: {way}"] = one, done
    return found


def through(tool: str, data: bytes, folder: Path) -> bytes:
    """The object after the tool. pytest.skip, with the reason, where the tool is not there."""
    command = TOOLS[tool]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    before, after = folder / "before.o", folder / "after.o"
    before.write_bytes(data)
    if command[0] == "llvm-strip":
        arguments = [*command, str(before), "-o", str(after)]
    else:
        arguments = [*command, str(before), str(after)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return after.read_bytes()


def notes(data: bytes) -> tuple[Provenance, ...]:
    return read_provenance(read_object(data))


def code_of(view: View) -> dict[str, object]:
    """Function -> section, instructions and relocations."""
    found: dict[str, object] = {}
    for section in view.executable():
        for symbol in view.functions(section):
            references = view.references(section, symbol.value, symbol.value + symbol.size)
            found[symbol.name] = (section, view.code(symbol.name), references)
    return found


@pytest.mark.parametrize("tool", TOOLS)
def test_same_code_and_still_recognised(tool: str, tmp_path: Path) -> None:
    objects = patched_objects()
    assert len(objects) > 150
    for case, (_, done) in objects.items():
        after = through(tool, done.data, tmp_path)
        before_view, after_view = read(done.data), read(after)
        assert notes(after) == notes(done.data), case
        assert [note.program for note in notes(after)] == [done.program], case
        assert code_of(after_view) == code_of(before_view), case
        for name in (".BTF", ".BTF.ext", ".maps", ".rodata", ".data", ".bpfchain"):
            if name in before_view.sections:
                assert after_view.sections[name].data == before_view.sections[name].data, case
        with pytest.raises(RefusedError, match=f"{done.program} is already link 1 of a chain"):
            transform_object(
                after, Request(index=1, program=done.program, hook=done.link.hook.name)
            )


@pytest.mark.usefixtures("kernel")
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("loader", "tool"), [*((loader, "strip") for loader in LOADERS), ("bookworm", "copy")]
)
def test_still_loads(loader: str, tool: str, tmp_path: Path) -> None:
    """Every object that the loader takes patched and not stripped.

    ``--strip-debug`` gives what ``llvm-strip -g`` gives; a plain copy is tried with one loader.
    """
    objects = patched_objects()
    before: list[Job] = []
    after: list[Job] = []
    for number, (one, done) in enumerate(objects.values()):
        for jobs, data in ((before, done.data), (after, through(tool, done.data, tmp_path))):
            path = tmp_path / f"{number}_{len(jobs)}_{data is done.data}.o"
            path.write_bytes(data)
            jobs.append(Job(path, one.load_type))
    loaded = 0
    for case, mine, theirs in zip(objects, load(loader, before), load(loader, after), strict=True):
        if mine.error is None:
            loaded += 1
            assert theirs.error is None, (case, theirs.error)
            assert theirs.programs == mine.programs, case
    assert loaded > 100


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("way", ["inline", "subprog"])
def test_bpftool_gen_object(way: str, tmp_path: Path) -> None:
    """Code and maps stay, the note of the patch goes; another patch is refused all the same."""
    for name in ("filter", "metrics", "static_subprog"):
        (one,) = [o for o in corpus_objects() if o.name == name]
        done = patch(one.path.read_bytes(), one.program, one.section, one.hook, way)
        assert not isinstance(done, BpfchainError)
        source, linked = tmp_path / f"{name}.o", tmp_path / f"{name}_linked.o"
        source.write_bytes(done.data)
        subprocess.run(["bpftool", "gen", "object", str(linked), str(source)], check=True)
        data = linked.read_bytes()
        before, after = read(done.data), read(data)
        assert ".bpfchain" not in after.sections
        assert set(programs_of(data)) == {one.program}
        for function in before.functions("xdp"):
            assert after.code(function.name) == before.code(function.name)
        (result,) = load("bookworm", [Job(linked)])
        assert result.programs == (one.program,), result.error
        with pytest.raises(RefusedError):
            transform_object(data, Request(index=1, program=one.program))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("way", ["inline", "subprog"])
def test_what_bpftool_linked_can_be_patched(way: str, tmp_path: Path) -> None:
    """libbpf's linker mixes local and global symbols and writes an sh_info of 1; all loaders read
    that, and ``bpftool gen object`` is a usual last step of a build."""
    names = ["filter", "metrics", "log", "static_subprog", "globals", "core_field", "two_progs"]
    cases, jobs, wanted = [], [], []
    for name in names:
        (one,) = [o for o in corpus_objects() if o.name == name]
        linked = tmp_path / f"{name}_linked.o"
        subprocess.run(["bpftool", "gen", "object", str(linked), str(one.path)], check=True)
        data = linked.read_bytes()
        done = patch(data, one.program, one.section, one.hook, way)
        assert not isinstance(done, BpfchainError), f"{name}: {done}"
        path = tmp_path / f"{name}.o"
        path.write_bytes(done.data)
        cases.append(name)
        jobs.append(Job(path))
        wanted.append(tuple(sorted(programs_of(data))))
    for loader in LOADERS:
        for name, result, programs in zip(cases, load(loader, jobs), wanted, strict=True):
            assert result.error is None, (loader, name, result.error)
            assert result.programs == programs, (loader, name)


def test_bpftool_links_no_two_links(tmp_path: Path) -> None:
    """Two links would be one object with one slots map each: libbpf's linker refuses."""
    paths = []
    for name in ("filter", "metrics"):
        (one,) = [o for o in corpus_objects() if o.name == name]
        done = patch(one.path.read_bytes(), one.program, one.section, one.hook, "auto")
        assert not isinstance(done, BpfchainError)
        paths.append(tmp_path / f"{name}.o")
        paths[-1].write_bytes(done.data)
    command = ["bpftool", "gen", "object", str(tmp_path / "out.o"), *map(str, paths)]
    linked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert linked.returncode != 0
    assert "conflicting non-weak symbol" in linked.stderr
    assert "bpfchain_slots" in linked.stderr

"""For tests of the dynamic proof: corpus programs by hook, patched links with their intent, compiled C."""

from __future__ import annotations

import functools
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpfchain.transform.elf_read import read_object
from bpfchain.transform.policy import Hook, hook_of_section
from bpfchain.transform.provenance import read_provenance
from bpfchain.transform.request import Request
from bpfchain.transform.transform import transform_object
from bpfchain.verify.recording import Recording, builtin_recording
from bpfchain.verify.static.intent import Intent

PROGRAMS = Path(__file__).resolve().parents[2] / "corpus" / "programs"


@functools.cache
def corpus(name: str) -> bytes:
    """The little-endian corpus object of that name."""
    return (PROGRAMS / "el" / f"{name}.o").read_bytes()


@functools.cache
def builtin() -> Recording:
    """The built-in recording."""
    return builtin_recording()


@dataclass(frozen=True, slots=True)
class Subject:
    """One program of a corpus object."""

    obj: str
    program: str
    hook: Hook
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.obj}-{self.program}"

    @property
    def data(self) -> bytes:
        return corpus(self.obj)


def subjects() -> Iterator[Subject]:
    """Every program of the corpus that can be a link."""
    index: list[dict[str, Any]] = tomllib.loads((PROGRAMS / "index.toml").read_text())["object"]
    for entry in index:
        if entry["expect"] != "link":
            continue
        for section, programs in entry["sections"].items():
            for program in programs:
                if section != ".text" and program not in entry.get("refused_programs", {}):
                    hook = hook_of_section(section, entry.get("hook"), what=program)
                    yield Subject(entry["name"], program, hook)


def link_of(data: bytes, **options: Any) -> tuple[bytes, Intent]:
    """The object patched, and what the patch says it is (hazards are taken on)."""
    allow = frozenset({"redirect-hazard", "nested-runs"})
    made = transform_object(data, Request(allow=allow, **options))
    return made.data, intent_of(made.data, made.program)


def intent_of(patched: bytes, program: str) -> Intent:
    """The intent of a patched object, from the writer's own reading: the checker's has its own tests."""
    (found,) = (p for p in read_provenance(read_object(patched)) if p.program == program)
    link = found.link
    return Intent(
        program=program, hook=link.hook, index=link.index, success=link.success,
        redirect=link.redirect, saved=link.saved, mode=link.mode, last=link.last,
        slots_map=link.slots_map, strategy=found.strategy, keep=found.keep, front=found.front,
        body=found.body, debug=found.debug, input_sha256=found.input_sha256, tool=found.tool,
    )  # fmt: skip


@functools.cache
def compiled(source: str, flags: tuple[str, ...] = ()) -> bytes:
    """C with the usual includes in front as an object."""
    include = next(Path("/usr/include").glob("*-linux-gnu*/asm/types.h")).parents[1]
    text = (
        "#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\n"
        'char LICENSE[] SEC("license") = "GPL";\n' + source
    )
    command = ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v2", f"-I{include}", *flags]
    done = subprocess.run(
        [*command, "-x", "c", "-c", "-", "-o", "-"], input=text.encode(),
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout

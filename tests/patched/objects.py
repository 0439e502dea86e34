"""The objects to patch, the programs in them, and the ways to patch one.

Which programs an object holds is read with pyelftools: functions outside ``.text``.
"""

from __future__ import annotations

import io
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from bpfchain.transform.errors import BpfchainError
from bpfchain.transform.policy import HOOKS, Hook
from bpfchain.transform.request import Patched, Request
from bpfchain.transform.transform import transform_object

CORPUS = Path(__file__).resolve().parents[2] / "corpus" / "programs"


@dataclass(frozen=True, slots=True)
class CorpusObject:
    """A little-endian object of the corpus and the program of it that becomes a link."""

    name: str
    program: str
    section: str
    hook: str | None
    load_type: str | None
    expect: str
    host: bool
    """Whether it depends on the host that the object loads at all (``loads = "no: ..."``)."""

    @property
    def path(self) -> Path:
        return CORPUS / "el" / f"{self.name}.o"


@cache
def corpus_objects() -> tuple[CorpusObject, ...]:
    """Every object of corpus/programs/index.toml."""
    found = []
    for entry in tomllib.loads((CORPUS / "index.toml").read_text())["object"]:
        programs = {
            program: section
            for section, names in entry["sections"].items()
            if section != ".text"
            for program in names
        }
        program = entry.get("program", next(iter(programs)))
        found.append(
            CorpusObject(
                entry["name"], program, programs[program], entry.get("hook"),
                entry.get("load_type"), entry["expect"],
                str(entry.get("loads", "")).startswith("no:"),
            )
        )  # fmt: skip
    return tuple(found)


def programs_of(data: bytes) -> dict[str, str]:
    """Program -> its section, by pyelftools: every function outside ``.text``."""
    elf = ELFFile(io.BytesIO(data))
    table = elf.get_section_by_name(".symtab")
    assert isinstance(table, SymbolTableSection)
    found = {}
    for symbol in table.iter_symbols():
        if symbol["st_info"]["type"] == "STT_FUNC" and isinstance(symbol["st_shndx"], int):
            section = elf.get_section(symbol["st_shndx"]).name
            if section != ".text":
                found[symbol.name] = section
    return found


def hook_for(section: str, named: str | None) -> Hook | None:
    """The row of the policy, by the section's name or by ``--hook``; None if it has none."""
    for hook in HOOKS:
        if hook.name == named or (named is None and hook.matches(section)):
            return hook
    return None


def saved_code(hook: Hook) -> int:
    """A code that a chain of this hook can save and that leaves S otherwise, where there is one.

    For XDP and tc it is REDIRECT, the code that is saved in practice.
    """
    numbered = [code.value for code in hook.codes if code.state is not None]
    redirecting = [code for code in hook.redirecting if code in numbered]
    if hook.prog_type in ("BPF_PROG_TYPE_XDP", "BPF_PROG_TYPE_SCHED_CLS") and redirecting:
        return redirecting[0]
    outside = [code for code in numbered if code not in hook.success]
    legal = [code for code in outside or numbered if code in hook.legal]
    if hook.returns is not None:
        legal = [code for code in legal if hook.returns[0] <= code <= hook.returns[1]] or [1]
    return legal[0]


VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "inline": {"strategy": "inline"},
    "subprog": {"strategy": "subprog"},
    "auto": {},
    "inline, states": {"strategy": "inline", "states": True},
    "subprog, states": {"strategy": "subprog", "states": True},
    "pin": {"pin": True},
    "pin, states": {"pin": True, "states": True},
    "last, states": {"last": True, "states": True},
    "map": {"saved_code": "map", "states": True, "allow": frozenset({"nested-runs"})},
    "hazard": {"states": True, "allow": frozenset({"redirect-hazard"})},
}
"""Name -> options of the request; ``states``: R and --saved hold one code."""


def patch(
    data: bytes, program: str, section: str, hook: str | None, variant: str, index: int = 1
) -> Patched | BpfchainError:
    """The program patched in that way, or why it was refused. Any other exception is a bug."""
    options = dict(VARIANTS[variant])
    row = hook_for(section, hook)
    if options.pop("states", False) and row is not None:
        code = str(saved_code(row))
        options["redirect"] = code
        if variant != "map":  # there the saved code is in a map, in one state
            options["saved"] = code
    try:
        return transform_object(data, Request(index=index, program=program, hook=hook, **options))
    except BpfchainError as error:
        return error


def patch_all(
    data: bytes,
    programs: Mapping[str, str],
    strategy: str,
    hook: str | None = None,
    refused: list[tuple[str, str]] | None = None,
) -> Patched | BpfchainError:
    """Every program of the object made a link, each patched into the output of the one before.

    Programs of one hook and of equal flavour (frags or not) share a slots map, others get one of
    their own: the kernel lets no two types share a PROG_ARRAY. Refused programs are passed over and
    noted in ``refused`` (program, message); without such a list the first refusal is the answer.
    The last patched object is the answer; a refusal if there is none.
    """
    result: Patched | BpfchainError | None = None
    maps: dict[tuple[str, bool], str] = {}
    for number, (program, section) in enumerate(programs.items()):
        row = hook_for(section, hook)
        kind = (row.name if row else "", section.startswith("xdp.frags"))
        slots_map = maps.get(kind) or (f"slots_{len(maps)}" if maps else "bpfchain_slots")
        request = Request(
            index=number % 33, program=program, hook=hook, strategy=strategy, slots_map=slots_map
        )
        try:
            done = transform_object(data, request)
        except BpfchainError as error:
            if refused is None:
                return error
            refused.append((program, error.message))
            result = result or error
            continue
        maps[kind] = slots_map
        data, result = done.data, done
    assert result is not None
    return result

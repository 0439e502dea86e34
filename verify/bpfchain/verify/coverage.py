"""Coverage: results of several runs as one, sums per source line, and where lines come from.

An instruction is named by (section, index in the section) of the original object; its source line
is that of the nearest line record before it in the same function.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from struct import Struct

from bpfchain.transform import isa
from bpfchain.transform.btf import Btf, Kind, read_btf
from bpfchain.transform.btf_ext import FUNC_INFO, LINE_INFO, BtfExt, read_btf_ext
from bpfchain.transform.disasm import render
from bpfchain.transform.elf import Object, Section, Symbol
from bpfchain.transform.elf_read import read_object
from bpfchain.transform.errors import RefusedError

from .result import ProgramCoverage

__all__ = [
    "LineCoverage",
    "Sources",
    "lines_of",
    "listing_of",
    "merge",
    "sources_of",
    "with_sources",
]

Instruction = tuple[str, int]
"""(section, index of the instruction in it)."""


@dataclass(frozen=True, slots=True)
class Sources:
    """What an object's BTF.ext tells: source lines and functions of instructions."""

    lines: dict[Instruction, tuple[str, int]]
    functions: dict[Instruction, str]
    texts: dict[tuple[str, int], str]
    """(file, line) -> the line's text, which the compiler keeps in the object."""


@dataclass(frozen=True, slots=True)
class LineCoverage:
    """One source line: its instructions, and the edges of conditional jumps on it."""

    file: str
    line: int
    instructions: tuple[Instruction, ...]
    executed: int
    """Of these instructions."""
    edges: tuple[tuple[Instruction, bool, bool], ...]
    """(jump, taken, seen), in order."""


def merge(parts: Iterable[ProgramCoverage]) -> ProgramCoverage | None:
    """The coverage that runs on several recordings or engines reached together; None of none.

    Raises ValueError for parts of different programs.
    """
    whole: ProgramCoverage | None = None
    for part in parts:
        if whole is None:
            whole = part
            continue
        if (whole.program, whole.section) != (part.program, part.section):
            raise ValueError(
                f"coverage of {whole.section}/{whole.program} and of {part.section}/{part.program}"
            )
        whole = replace(
            whole,
            instructions={
                key: whole.instructions.get(key, False) or part.instructions.get(key, False)
                for key in (*whole.instructions, *part.instructions)
            },
            edges={
                key: whole.edges.get(key, False) or part.edges.get(key, False)
                for key in (*whole.edges, *part.edges)
            },
            sources={**part.sources, **whole.sources},
            functions={**part.functions, **whole.functions},
            texts={**part.texts, **whole.texts},
            listing={**part.listing, **whole.listing},
        )
    return whole


def lines_of(coverage: ProgramCoverage) -> tuple[LineCoverage, ...]:
    """The source lines of a program, by file and line; instructions without a line are left out."""
    instructions: dict[tuple[str, int], list[Instruction]] = {}
    for key in sorted(coverage.instructions):
        if key in coverage.sources:
            instructions.setdefault(coverage.sources[key], []).append(key)
    edges: dict[tuple[str, int], list[tuple[Instruction, bool, bool]]] = {}
    for (section, at, taken), seen in sorted(coverage.edges.items()):
        source = coverage.sources.get((section, at))
        if source is not None:
            edges.setdefault(source, []).append(((section, at), taken, seen))
    return tuple(
        LineCoverage(
            file=file,
            line=line,
            instructions=tuple(keys),
            executed=sum(coverage.instructions[key] for key in keys),
            edges=tuple(edges.get((file, line), ())),
        )
        for (file, line), keys in sorted(instructions.items())
    )


def sources_of(data: bytes) -> Sources:
    """Source lines and functions of all instructions of an object; empty where it has no BTF.ext.

    Functions are the symbols' where there is no BTF. Raises RefusedError for what is no BPF object.
    """
    obj = read_object(data)
    sources = Sources({}, {}, {})
    btf, ext = _types(obj)
    for section in obj.sections:
        if not section.executable:
            continue
        spans = _functions(obj, section, btf, ext)
        for begin, end, name in spans:
            sources.functions.update({(section.name, at): name for at in range(begin, end)})
        if btf is not None and ext is not None:
            starts = frozenset(begin for begin, _, _ in spans)
            for begin, end, file, line, text in _lines(section, btf, ext, obj.order, starts):
                sources.lines.update({(section.name, at): (file, line) for at in range(begin, end)})
                if text:
                    sources.texts[file, line] = text
    return sources


def listing_of(data: bytes) -> dict[Instruction, str]:
    """All instructions of an object as text, relocated ones with the name of what they refer to.

    Raises RefusedError for what is no BPF object.
    """
    obj = read_object(data)
    found: dict[Instruction, str] = {}
    for section in obj.sections:
        if not section.executable:
            continue
        symbols = {
            item.offset // isa.INSN_SIZE: obj.symbol_by_id[item.symbol]
            for item in obj.relocations(section.id)
        }
        insns = isa.decode(section.data, obj.order, what=f"section {section.name}")
        for at, first in enumerate(isa.starts(insns)):
            if not first:
                continue
            insn = insns[at]
            symbol = symbols.get(at)
            following = insns[at + 1] if insn.wide and at + 1 < len(insns) else None
            found[section.name, at] = render(
                insn,
                following,
                symbol=_referred(obj, symbol) if symbol else None,
                address=at if insn.is_jump else None,
            )
    return found


def _referred(obj: Object, symbol: Symbol) -> str | None:
    """How the listing names a symbol; section symbols have no name."""
    place = obj.by_id[symbol.place].name if symbol.place is not None else ""
    return f"map[{symbol.name}]" if place in (".maps", "maps") else symbol.name or None


def with_sources(coverage: ProgramCoverage, data: bytes) -> ProgramCoverage:
    """The coverage with all that the original object ``data`` tells of its instructions: lines, their
    texts, functions, the listing. Raises RefusedError for what is no BPF object."""
    sources, listing = sources_of(data), listing_of(data)
    lines = {key: sources.lines[key] for key in coverage.instructions if key in sources.lines}
    known = set(lines.values())
    return replace(
        coverage,
        sources=lines,
        functions={
            key: sources.functions[key] for key in coverage.instructions if key in sources.functions
        },
        texts={line: text for line, text in sources.texts.items() if line in known},
        listing={key: listing[key] for key in coverage.instructions if key in listing},
    )


def _types(obj: Object) -> tuple[Btf | None, BtfExt | None]:
    types, records = obj.section(".BTF"), obj.section(".BTF.ext")
    if types is None:
        return None, None
    btf = read_btf(types.data, obj.order)
    return btf, None if records is None else read_btf_ext(records.data, obj.order)


def _functions(
    obj: Object, section: Section, btf: Btf | None, ext: BtfExt | None
) -> list[tuple[int, int, str]]:
    """(first instruction, behind the last, name) of each function of the section."""
    begins: dict[int, str] = {}
    if btf is not None and ext is not None:
        word = Struct(obj.order + "I")
        for record in ext.parts[FUNC_INFO].of(btf.offsets_of(section.name)):
            known = btf.type(word.unpack_from(record.rest)[0])
            if known.kind == Kind.FUNC:
                begins[record.offset // isa.INSN_SIZE] = btf.name(known.name_offset)
    for symbol in obj.functions(section.id):
        begins.setdefault(symbol.value // isa.INSN_SIZE, symbol.name)
    ordered = sorted(begins.items())
    if not ordered:
        return []
    ends = [at for at, _ in ordered[1:]] + [len(section.data) // isa.INSN_SIZE]
    return [(at, end, name) for (at, name), end in zip(ordered, ends, strict=True)]


def _lines(
    section: Section, btf: Btf, ext: BtfExt, order: str, starts: frozenset[int]
) -> Iterator[tuple[int, int, str, int, str]]:
    """(first instruction, behind the last, file, line, text); a line ends where a function begins."""
    fields = Struct(order + "III")
    size = len(section.data) // isa.INSN_SIZE
    records = ext.parts[LINE_INFO].of(btf.offsets_of(section.name))
    begins = [record.offset // isa.INSN_SIZE for record in records]
    stops = sorted({*begins, *starts, size})
    following = dict(pairwise(stops))
    for begin, record in zip(begins, records, strict=True):
        file, text, line_column = fields.unpack_from(record.rest)
        line = line_column >> 10
        if line and begin in following:
            try:
                known = btf.name(text).strip()
            except RefusedError:  # the text is for people only
                known = ""
            yield begin, following[begin], btf.name(file), line, known

"""Early refusals: programs that cannot be links without changing what they, or others, do.

Each rule names the hazard of research/loaders-and-verifier.md or the trial of design-trials.md that
showed it (DESIGN section 3, "Refuse early").
"""

from __future__ import annotations

from . import isa
from .btf import Btf, Kind
from .elf import Object
from .errors import RefusedError
from .link import Link
from .program import Code, Function, Reach, references_to
from .subject import Subject

__all__ = ["check_hazards", "check_map_count", "check_program"]

_OVERRIDE_RETURN = 58
MAX_USED_MAPS = 64
"""Of one program, data sections included (kernel/bpf/verifier.c)."""


def check_program(
    obj: Object, program: Function, code: Code, reach: Reach, btf: Btf | None
) -> None:
    """Raise RefusedError for a program that must not be patched."""
    for name in sorted(reach.kfuncs):
        if name.startswith("bpf_xdp_metadata_"):
            raise RefusedError(
                f"{program.what} calls {name}: it is bound to a device, and such programs take no part "
                "in tail calls",
                "attach it on its own",
            )
        if name == "bpf_throw":
            raise RefusedError(
                f"{program.what} can call bpf_throw, which leaves it past anything that is added",
                "return a code instead of throwing",
            )
    if _OVERRIDE_RETURN in reach.helpers:
        raise RefusedError(
            f"{program.what} calls bpf_override_return: the kernel lets no such program be tail-called",
            "attach it on its own",
        )
    if btf is not None:
        for tag in btf.types:
            if tag.kind == Kind.DECL_TAG and btf.name(tag.name_offset).startswith(
                "exception_callback:"
            ):
                target = btf.type(tag.size_or_type)
                if btf.name(target.name_offset) == program.name:
                    raise RefusedError(
                        f"{program.what} has an exception callback, run past what is added"
                    )
    for section, offset in references_to(obj, program):
        how = (
            "is in a map's initial values: its re-entry would run the chain twice"
            if section == ".maps"
            else "is referred to by other code: its caller would get the chain's verdict"
        )
        raise RefusedError(f"{program.what} {how} ({section}+{offset})")
    _check_neighbours(obj, program)
    if obj.section(".jumptables") is not None:
        raise RefusedError(
            "section .jumptables holds instruction offsets that the patch would not move"
        )


def _check_neighbours(obj: Object, program: Function) -> None:
    """Other programs of the section move; a call between them without a relocation would not."""
    section, symbol = program.section, program.symbol
    if symbol.size == len(section.data):
        return
    relocated = {item.offset for item in obj.relocations(section.id)}
    opcodes = section.data[:: isa.INSN_SIZE]
    at = opcodes.find(isa.CALL)
    while at >= 0:
        offset = at * isa.INSN_SIZE
        insn = isa.decode(section.data[offset : offset + isa.INSN_SIZE], obj.order)[0]
        if insn.src == isa.PSEUDO_CALL and offset not in relocated:
            raise RefusedError(
                f"section {section.name}: the instruction at {offset} calls within its section "
                "without a relocation, and what lies between would grow"
            )
        at = opcodes.find(isa.CALL, at + 1)


def check_map_count(subject: Subject, *, added: int) -> None:
    """Refuse a program for which there is no room to use another map (MAX_USED_MAPS)."""
    obj = subject.obj
    used: set[tuple[int, int]] = set()
    for code in (subject.code, *(code for _, code in subject.functions)):
        for item in code.relocations.values():
            symbol = obj.symbol_by_id[item.symbol]
            if symbol.place is None or obj.by_id[symbol.place].executable:
                continue
            section = obj.by_id[symbol.place]
            # a section of data is one map, .maps holds one a symbol
            used.add((section.id, symbol.id if section.name == ".maps" else 0))
    if len(used) + added > MAX_USED_MAPS:
        raise RefusedError(
            f"{subject.program.what}: it uses {len(used)} maps, and the chain adds {added} "
            f"(the verifier allows {MAX_USED_MAPS})"
        )


def check_hazards(
    link: Link, program: Function, redirects: tuple[str, ...], allow: frozenset[str]
) -> tuple[str, ...]:
    """Warnings about hazards that were taken on; raises RefusedError for one that was not."""
    risky = [code for code in link.saved if code in link.hook.redirecting]
    if not risky or not redirects:
        return ()
    name = link.hook.name_of(risky[0])
    text = (
        f"{program.what} can call {redirects[0]} while {name} is saved: returning {name} later could "
        "send the packet elsewhere"
    )
    if "redirect-hazard" in allow:
        return (text,)
    raise RefusedError(
        text, "put the redirecting link behind it, or take the risk with --allow redirect-hazard"
    )

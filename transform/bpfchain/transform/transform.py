"""The transformation: a compiled object in, the same object with one program as a link of a chain out.

Reads like DESIGN section 3: look at the program, refuse early, choose a strategy and lay the code
out anew (``plan``, ``rewrite``), say what was done.
"""

from __future__ import annotations

import hashlib

from .btf import Btf
from .check import check_object
from .codes import CodeSet
from .elf import Object
from .elf_read import read_object
from .elf_write import write_object
from .errors import OptionError, RefusedError, UsageError
from .legacy import convert_legacy_maps
from .link import Link, saved_map_name
from .policy import hook_of_section
from .program import Function, code_of, find_program, programs_of, reach_of
from .provenance import Provenance, read_provenance, with_provenance
from .refuse import check_hazards, check_program
from .report import license_of, maps_of, redirects_of
from .request import Cost, EntryProgram, Patched, Request
from .rewrite import patch_object
from .stack import check_stack
from .subject import Subject, entry_names, flow_of, read_types
from .version import VERSION

__all__ = ["transform_object"]


def transform_object(data: bytes, request: Request) -> Patched:
    """Make one program of the object a link.

    Raises RefusedError where that could change what the program does or could not load, UsageError
    where the request makes no sense. The same input and request give the same bytes.
    """
    obj = read_object(data)
    if obj.symtab is None:
        raise RefusedError("it has no symbol table", "patch before stripping all symbols")
    earlier = read_provenance(obj)
    btf, ext = read_types(obj)
    taken = frozenset(
        name for entry in earlier for name in entry_names(entry.program, entry.link).values()
    )
    program = _find(obj, request, taken)
    if program.name in taken:
        raise _already(program, earlier)
    link = _link_of(request, program)
    code = code_of(obj, program, btf, ext)
    reach = reach_of(obj, program, code)
    check_program(obj, program, code, reach, btf)
    redirects = redirects_of(link.hook, reach)
    warnings = check_hazards(link, program, redirects, request.allow)
    _check_names(obj, program, link)

    converted, new_btf, legacy = convert_legacy_maps(obj, btf or Btf(obj.order, (), b"\0"))
    if legacy:
        btf = new_btf
        warnings += (f"legacy maps converted to BTF: {', '.join(legacy)}",)
    flow = flow_of(obj, program, code)
    subject = Subject(converted, btf, ext, program, code, reach, flow)
    patch = patch_object(subject, link, request)
    obj = with_provenance(
        patch.obj,
        Provenance(
            program=program.name, link=link, strategy=patch.strategy, debug=patch.debug,
            input_sha256=hashlib.sha256(data).hexdigest(), tool=VERSION, why=patch.why,
            keep=patch.keep, front=patch.front, body=len(code.insns),
        ),
    )  # fmt: skip
    check_object(obj, patch.changed)
    return Patched(
        data=write_object(obj),
        link=link,
        program=program.name,
        section=program.section.name,
        entries=tuple(
            EntryProgram(name, state, link.hook.slot(state, link.index))
            for state, name in entry_names(program.name, link).items()
        ),
        strategy=patch.strategy,
        why=patch.why,
        keep=patch.keep,
        before=Cost(len(code.insns), check_stack(subject)),
        after=patch.after,
        frags=program.section.name.removeprefix("?").startswith("xdp.frags"),
        debug=patch.debug,
        license=license_of(obj),
        maps=maps_of(obj, patch.btf),
        needs=patch.needs,
        redirects=redirects,
        tail_calls=subject.makes_tail_calls,
        pinned=request.pin,
        allowed=tuple(sorted(request.allow)),
        warnings=warnings,
    )


def _find(obj: Object, request: Request, taken: frozenset[str]) -> Function:
    """The program to patch; where none of several can be a link, why not, instead of a choice."""
    try:
        return find_program(obj, request.program, taken)
    except UsageError as choice:
        programs = programs_of(obj)
        if request.program is not None or not programs:
            raise
        reasons = []
        for program in programs:
            try:
                hook_of_section(program.section.name, request.hook, what=program.what)
            except RefusedError as reason:
                reasons.append(reason)
        if len(reasons) == len(programs):
            raise reasons[0] from None
        raise choice


def _already(program: Function, earlier: tuple[Provenance, ...]) -> RefusedError:
    entry = next(e for e in earlier if program.name in entry_names(e.program, e.link).values())
    return RefusedError(
        f"{program.name} is already link {entry.link.index} of a chain "
        f"(patched by bpfchain {entry.tool} from sha256 {entry.input_sha256[:12]}…)",
        "patch the original, or see `bpfchain inspect`",
    )


def _link_of(request: Request, program: Function) -> Link:
    hook = hook_of_section(program.section.name, request.hook, what=program.what)
    names = hook.names

    def codes(text: str | None, option: str, default: CodeSet) -> CodeSet:
        return default if text is None else CodeSet.parse(text, names, what=option)

    redirect = codes(request.redirect, "--redirect", CodeSet())
    saved = codes(request.saved, "--saved", CodeSet())
    for option, given in (("--redirect", redirect), ("--saved", saved)):
        if len(given) > hook.states * 8:
            raise OptionError(f"{option} takes a list of codes, not any or a complement")
    if saved and request.saved_code == "map":
        raise OptionError("--saved is for slots: with --saved-code map the saved code is in a map")
    link = Link(
        hook=hook,
        index=request.index,
        success=codes(request.success, "--success", hook.success),
        redirect=redirect,
        saved=tuple(sorted(saved, key=hook.state_of)),
        mode=request.saved_code,
        last=request.last,
        slots_map=request.slots_map,
    )
    if link.mode == "map" and hook.nests and "nested-runs" not in request.allow:
        raise RefusedError(
            f"--saved-code map: runs on {hook.name} can nest or be preempted, and would then share "
            "one saved code",
            "use slots (the default), or take the risk with --allow nested-runs",
        )
    return link


def _check_names(obj: Object, program: Function, link: Link) -> None:
    present = {symbol.name for symbol in obj.symbols}
    for state, name in entry_names(program.name, link).items():
        if state is not None and name in present:
            raise RefusedError(f"the name {name} of an entry program is taken in this object")
    name = link.slots_map
    if not 1 <= len(name) <= 15 or not name.replace("_", "a").isalnum() or not name.isascii():
        raise OptionError(f"--slots-map: {name!r} is no map name: 1 to 15 letters, digits and _")
    if len(saved_map_name(name)) > 15 and link.mode == "map":
        raise OptionError(f"--slots-map: {name!r} is too long for --saved-code map: 13 at most")

"""Choosing a strategy: the entries that the patch will lay out, why so, and what they need."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .btf import Kind
from .elf import SymbolId
from .epilogue import MAP_KEY_STACK
from .errors import RefusedError
from .inline import Entry, check_inline, inline_entry
from .link import Link
from .request import Need, Request
from .stack import check_stack, stack_need
from .subject import Subject
from .subprog import check_subprog, wrapper_entry
from .targets import check_targets, kernel_btf_need, mixed_calls_needs

__all__ = ["Plan", "choose_plan"]

Resolve = Callable[[str], tuple[int, SymbolId]]
"""Relocation type and symbol of a reference by name."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The entries of one strategy, in the order of the link's states."""

    strategy: str
    why: str
    entries: tuple[Entry, ...]
    needs: tuple[Need, ...]
    stack: int | None
    """Bytes of stack of the deepest call chain, None where it is not bounded."""


def choose_plan(
    subject: Subject, link: Link, request: Request, resolve: Resolve, text_size: int
) -> Plan:
    """Build the entries by the strategy that is asked for, or by the first that can.

    ``text_size`` is where a body would go in ``.text``. Raises RefusedError with every reason.
    """
    wanted = ("inline", "subprog") if request.strategy == "auto" else (request.strategy,)
    refusals: list[RefusedError] = []
    for strategy in wanted:
        try:
            if strategy == "inline":
                plan = _plan_inline(subject, link, resolve)
            else:
                plan = _plan_subprog(subject, link, resolve, text_size)
            if subject.has_core:
                plan = replace(plan, needs=(*plan.needs, kernel_btf_need()))
            check_targets(plan.needs, request.kernel, request.arch)
        except RefusedError as error:
            refusals.append(error)
            continue
        if refusals:
            plan = replace(plan, why=f"{plan.why}; not inline: {_short(refusals[0], subject)}")
        return plan
    if len(refusals) == 1 or refusals[0].message == refusals[1].message:
        raise refusals[0]
    reasons = "; ".join(
        f"not {strategy}: {_short(error, subject)}"
        for strategy, error in zip(wanted, refusals, strict=True)
    )
    raise RefusedError(f"{subject.program.what}: {reasons}", refusals[-1].hint)


def _short(error: RefusedError, subject: Subject) -> str:
    return error.message.removeprefix(f"{subject.program.what}: ")


def _plan_inline(subject: Subject, link: Link, resolve: Resolve) -> Plan:
    program, reach = subject.program, subject.reach
    check_inline(program, reach)
    entries = tuple(
        inline_entry(
            program, subject.code, subject.flow, link, state, resolve,
            jmp32=subject.uses_jmp32, primary=number == 0,
        )
        for number, state in enumerate(link.states)
    )  # fmt: skip
    keep = next((entry.keep for entry in entries if entry.keep is not None), None)
    why = "its exits can be redirected in place"
    if keep is not None:
        place = keep.describe()
        why = f"{place} is free" if keep.preamble else f"{place} holds the context at every exit"
    slot = 8 if keep is not None and keep.offset is not None else 0
    key = MAP_KEY_STACK if link.mode == "map" else 0
    stack = check_stack(subject, extra=max(slot, key - subject.flow.depth))
    needs: tuple[Need, ...] = ()
    if reach.functions and not link.ends:
        needs = mixed_calls_needs("it calls functions")
    return Plan("inline", why, entries, needs, stack)


def _plan_subprog(subject: Subject, link: Link, resolve: Resolve, text_size: int) -> Plan:
    check_subprog(subject.program, subject.reach)
    _check_body_types(subject)
    stack = check_stack(subject, wrapper=MAP_KEY_STACK if link.mode == "map" else 0)
    entries = tuple(
        wrapper_entry(
            link, state, resolve, body_offset=text_size,
            tail_calls=subject.makes_tail_calls, jmp32=subject.uses_jmp32,
        )
        for state in link.states
    )  # fmt: skip
    needs: tuple[Need, ...] = stack_need(subject)
    if not link.ends or subject.makes_tail_calls:
        needs = (*mixed_calls_needs("its body becomes a function"), *needs)
    return Plan("subprog", "the body becomes a function", entries, needs, stack)


def _check_body_types(subject: Subject) -> None:
    """The verifier wants to know what a function returns that tail-calls or loads legacy packets."""
    reach, program, btf = subject.reach, subject.program, subject.btf
    if not (reach.own_tail_calls or reach.own_ld_abs):
        return
    what = "tail calls" if reach.own_tail_calls else "legacy packet loads (LD_ABS)"
    if btf is None or subject.func_type is None:
        raise RefusedError(f"{program.what}: {what} in a function need BTF", "compile with -g")
    proto = btf.type(btf.type(subject.func_type).size_or_type)
    kind = btf.type(proto.size_or_type) if proto.size_or_type else None
    while kind is not None and kind.kind in Kind.MODIFIERS:
        kind = btf.type(kind.size_or_type) if kind.size_or_type else None
    if kind is None or kind.kind not in (Kind.INT, Kind.ENUM, Kind.ENUM64):
        raise RefusedError(f"{program.what}: {what} in a function need one that returns an integer")

"""Strategy subprog, the thesis's: the body becomes a function in ``.text`` and a wrapper calls it.

The wrapper keeps the entry's section, symbol and BTF type; the body goes to the end of ``.text`` as
a static function, because every loader wants functions there (research, loaders-and-verifier.md).
"""

from __future__ import annotations

from collections.abc import Callable

from . import emit, isa
from .elf import SymbolId
from .emit import Emitter
from .epilogue import Keep, build_epilogue, needs_epilogue
from .errors import RefusedError
from .inline import END_LINE, Entry
from .layout import Fresh
from .link import Link
from .program import Function, Reach

__all__ = ["BODY", "MAX_FRAMES", "check_subprog", "wrapper_entry"]

BODY = "body"
"""The reference by which a wrapper calls the body."""
MAX_FRAMES = 8
"""MAX_CALL_FRAMES of the verifier."""
MAX_FUNCTIONS = 256
"""BPF_MAX_SUBPROGS, the program itself included."""
CALL_LINE = "bpfchain: run the program"
_CONTEXT_REGISTER, _CODE_REGISTER = 6, 6


def check_subprog(program: Function, reach: Reach) -> None:
    """Refuse what the verifier will not take one frame deeper."""
    if len(reach.functions) + 2 > MAX_FUNCTIONS:
        raise RefusedError(
            f"{program.what}: it has {len(reach.functions)} functions, and the wrapper adds one "
            f"(the verifier allows {MAX_FUNCTIONS} in all)",
            "--strategy inline adds none",
        )
    if reach.depth >= MAX_FRAMES:
        raise RefusedError(
            f"{program.what}: its calls are {reach.depth} frames deep, and the wrapper adds one "
            f"(the verifier allows {MAX_FRAMES})",
            "--strategy inline adds none",
        )


def wrapper_entry(
    link: Link,
    state: int | None,
    resolve: Callable[[str], tuple[int, SymbolId]],
    *,
    body_offset: int,
    tail_calls: bool,
    jmp32: bool,
) -> Entry:
    """One wrapper. ``resolve`` gives relocation type and symbol by name; the body is called through
    the section symbol, so its offset stands in the instruction.

    ``tail_calls``: the body makes tail calls, so the verifier does not know the range of its code.
    """
    e = Emitter()
    goes_on = needs_epilogue(link, state, None)
    keep = Keep(register=_CONTEXT_REGISTER) if goes_on and not link.ends else None
    if keep is not None:
        e.move(_CONTEXT_REGISTER, 1)
    e.add(isa.CALL, 0, isa.PSEUDO_CALL, imm=body_offset // isa.INSN_SIZE - 1)
    if tail_calls and link.hook.returns is not None:
        _bound(e, *link.hook.returns)
    if not goes_on:
        e.exit()
    front = e.finish().insns
    cut = 2 if keep is not None else 1
    call = (front[:cut], ((cut - 1) * isa.INSN_SIZE, *resolve(BODY)))
    behind = front[cut:]
    references: tuple[tuple[int, int, SymbolId], ...] = ()
    if goes_on:
        fragment, _ = build_epilogue(
            link, state, keep=keep, exits=[None], code_register=_CODE_REGISTER, jmp32=jmp32
        )
        references = tuple(
            ((len(behind) + reference.slot) * isa.INSN_SIZE, *resolve(reference.target))
            for reference in fragment.references
        )
        behind += fragment.insns
    pieces = (
        Fresh(call[0], (call[1],), line=CALL_LINE),
        Fresh(behind, references, line=END_LINE),
    )
    return Entry(pieces, keep)


def _bound(e: Emitter, low: int, high: int) -> None:
    """Tell the verifier what range a code has that came back through a tail call.

    The kernel let the callee in only because its codes are in range, so this changes none.
    """
    if low == high:
        e.constant(0, low)
        return
    e.jump("bounded", emit.JGT, 0, high)
    e.jump("in_range")
    e.label("bounded")
    e.constant(0, high)
    e.label("in_range")

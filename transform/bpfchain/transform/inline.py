"""Strategy inline: the body stays, one instruction in front keeps the context, an epilogue behind
takes over from its exits (DESIGN section 3).

Nothing inside the body moves against itself: an exit becomes a jump of the same size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import emit, isa
from .elf import SymbolId
from .epilogue import FRAME_POINTER, Keep, build_epilogue, needs_epilogue
from .errors import RefusedError
from .flow import STACK_SIZE, Exit, Flow
from .layout import Copy, Fresh, Piece
from .link import Link
from .program import Code, Function, Reach

__all__ = ["Entry", "check_inline", "inline_entry"]

_SUBPROG_CAN = "--strategy subprog can, where the kernel mixes tail calls and function calls"
KEEP_LINE = "bpfchain: keep the context"
END_LINE = "bpfchain: go on to the next link, or end the chain"


@dataclass(frozen=True, slots=True)
class Entry:
    """The pieces of one entry program, in the order they are laid."""

    pieces: tuple[Piece, ...]
    keep: Keep | None

    @property
    def size(self) -> int:
        return sum(piece.size for piece in self.pieces)

    @property
    def front(self) -> int:
        """Added instructions before the first copied one."""
        first = self.pieces[0]
        return len(first.insns) if isinstance(first, Fresh) else 0


def check_inline(program: Function, reach: Reach) -> None:
    """Refuse what leaves the program without passing an exit of its own."""
    if reach.own_ld_abs:
        raise RefusedError(
            f"{program.what}: a legacy packet load (LD_ABS) can leave the program past the epilogue",
            _SUBPROG_CAN,
        )
    if reach.own_tail_calls:
        raise RefusedError(
            f"{program.what}: its own tail calls leave the program past the epilogue", _SUBPROG_CAN
        )


def inline_entry(
    program: Function,
    code: Code,
    flow: Flow,
    link: Link,
    state: int | None,
    resolve: Callable[[str], tuple[int, SymbolId]],
    *,
    jmp32: bool,
    primary: bool,
) -> Entry:
    """One entry program. ``resolve`` gives relocation type and symbol of a reference by name.

    Raises RefusedError where the context has no place to stay or an exit is out of reach.
    """
    start, end = program.symbol.value, program.symbol.end
    patched = [known for known in flow.exits if needs_epilogue(link, state, known.code)]
    if not patched:
        body = Copy(program.section.id, start, end, primary=primary, carry_functions=False)
        return Entry((body,), None)
    keep = None if link.ends else _choose_keep(program, flow, patched)
    used = sorted(flow.registers & {6, 7, 8, 9})
    fragment, entry_of = build_epilogue(
        link, state, keep=keep, exits=[known.code for known in patched],
        code_register=used[0] if used else 6, jmp32=jmp32,
    )  # fmt: skip
    count = len(code.insns)
    growth = _growth(code)
    changed = []
    for known in patched:
        distance = count + entry_of(known.code) - known.slot - 1
        if distance + growth[known.slot] >= 0x8000:
            raise RefusedError(
                f"{program.what}: the exit at instruction {known.slot} is {distance} instructions "
                "from the epilogue, further than a jump goes",
                _SUBPROG_CAN,
            )
        changed.append((start + known.slot * isa.INSN_SIZE, isa.Insn(isa.JA, offset=distance)))
    pieces: list[Piece] = []
    if keep is not None and keep.preamble:
        pieces.append(Fresh((_preamble(keep),), line=KEEP_LINE))
    pieces.append(
        Copy(program.section.id, start, end, tuple(changed), primary=primary, carry_functions=False)
    )
    references = tuple(
        (reference.slot * isa.INSN_SIZE, *resolve(reference.target))
        for reference in fragment.references
    )
    pieces.append(Fresh(fragment.insns, references, line=END_LINE))
    return Entry(tuple(pieces), keep)


def _growth(code: Code) -> list[int]:
    """For each slot, by how many instructions the kernel may lengthen what is behind it.

    The verifier replaces context accesses, calls and divisions by several instructions, and a jump
    across them that no longer fits makes the load fail (bpf_patch_insn_data).
    """
    growth, total = [0] * len(code.insns), 0
    for slot in range(len(code.insns) - 1, -1, -1):
        growth[slot] = total
        insn = code.insns[slot]
        if insn.klass in (isa.LDX, isa.ST, isa.STX):
            total += 8
        elif insn.opcode == isa.MAY_GOTO:
            total += 10
        elif insn.opcode == isa.CALL and insn.src != isa.PSEUDO_CALL:
            total += 23
        elif insn.klass in (isa.ALU32, isa.ALU64) and insn.opcode & 0xF0 in (0x30, 0x90):
            total += 4
    return growth


def _preamble(keep: Keep) -> isa.Insn:
    if keep.register is not None:
        return isa.Insn(emit.MOV64_REG, keep.register, 1)
    return isa.Insn(emit.STX_DW, FRAME_POINTER, 1, keep.offset or 0)


def _choose_keep(program: Function, flow: Flow, patched: list[Exit]) -> Keep:
    """The cheapest place where the context survives the body.

    In order: a register in which the body itself still has it at every exit; a free caller-saved
    one where nothing is called; a stack slot where the body uses the stack anyway (x86-64 pays a
    push and a pop for one more callee-saved register); a free callee-saved register; a stack slot.
    """
    common = frozenset.intersection(*(known.context for known in patched))
    for register in (6, 7, 8, 9, 1, 2, 3, 4, 5):
        if register in common:
            return Keep(register=register, preamble=False)
    if not flow.calls:
        for register in (5, 4, 3, 2):
            if register not in flow.registers:
                return Keep(register=register)
    slot = None
    if flow.lowest is not None:
        offset = (flow.lowest - 8) & ~7
        slot = Keep(offset=offset) if offset >= -STACK_SIZE else None
    if slot is not None and flow.lowest != 0:
        return slot
    for register in (6, 7, 8, 9):
        if register not in flow.registers:
            return Keep(register=register)
    if slot is not None:
        return slot
    reason = (
        "its stack is full"
        if flow.lowest is not None
        else f"how far it reaches down its stack is not bounded (instruction {flow.unbounded_at})"
    )
    raise RefusedError(f"{program.what}: r6 to r9 are all in use and {reason}", _SUBPROG_CAN)

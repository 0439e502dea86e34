"""Built-in programs: the entry program (Annex I) and the pass-through program of a bypass.

Both are a tail call and what to return if it fails, as raw instructions.
"""

from __future__ import annotations

from typing import Final

from bpfchain.loader.insn import CALL, EXIT, MOV_IMM, TAIL_CALL, insn, map_address
from bpfchain.loader.maps import Map
from bpfchain.loader.programs import Program, load_raw
from bpfchain.loader.uapi import BPF_F_XDP_HAS_FRAGS, ProgType
from bpfchain.transform.errors import UsageError
from bpfchain.transform.link import Link
from bpfchain.transform.policy import Hook

ENTRY_NAME: Final = "bpfchain_entry"
PASS_NAME: Final = "bpfchain_pass"
ENTRY_ARRAY: Final = "bpfchain_entry"


def tail_call_to(array: Map, slot: int, missing: int) -> bytes:
    """``bpf_tail_call(ctx, array, slot); return missing``."""
    return b"".join((
        map_address(2, array.fileno()), insn(MOV_IMM, 3, imm=slot), insn(CALL, imm=TAIL_CALL),
        insn(MOV_IMM, imm=missing), insn(EXIT),
    ))  # fmt: skip


def entry_program(hook: Hook, array: Map, code: int, *, frags: bool) -> Program:
    """The permanent first program: it runs slot 0 of ``array``, and returns ``code`` if that slot
    is empty. Raises UsageError for a code that the hook does not take, VerifierError."""
    check_code(hook, code)
    return _load(hook, tail_call_to(array, 0, code), ENTRY_NAME, frags)


def pass_program(link: Link, state: int | None, slots: Map, *, frags: bool) -> Program:
    """What stands in the place of a middle link: on to the next one, in the same state.

    ``slots`` is the chain's array. If the next slot is empty, which the loader excludes, the saved
    code is the result, or a code of the link's S.
    """
    slot = link.hook.slot(state, link.index + 1)
    missing = state if state is not None else _good_code(link)
    return _load(link.hook, tail_call_to(slots, slot, missing), PASS_NAME, frags)


def _good_code(link: Link) -> int:
    """A code of S that the verifier lets the hook's programs return; 0 where that is one."""
    low, high = link.hook.returns or (-(1 << 31), (1 << 31) - 1)
    for code in (0, *(known.value for known in link.hook.codes)):
        if code in link.success and low <= code <= high:
            return code
    return low if link.hook.returns else 0


def check_code(hook: Hook, code: int) -> None:
    """Raises UsageError for a code that programs of the hook cannot return."""
    if code not in hook.legal:
        raise UsageError(
            f"--entry: {code} is no code of {hook.name}",
            f"its codes: {hook.legal.describe(hook.names)}",
        )


def _load(hook: Hook, code: bytes, name: str, frags: bool) -> Program:
    return load_raw(
        ProgType(hook.prog_type_id), code, expected_attach_type=hook.attach_type_id, name=name,
        flags=BPF_F_XDP_HAS_FRAGS if frags else 0,
    )  # fmt: skip

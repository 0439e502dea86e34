"""What is asked of the transformer and what it answers: plain values, no files."""

from __future__ import annotations

from dataclasses import dataclass

from .link import SLOTS_MAP, Link

__all__ = ["ALLOWANCES", "Cost", "EntryProgram", "MapUse", "Need", "Patched", "Request"]

ALLOWANCES = ("nested-runs", "redirect-hazard", "stack-residue")
"""What ``--allow`` can name: hazards that are refused unless the user takes them on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The options of one transformation, as ``bpfchain-transform`` takes them.

    Code lists are text (``PASS,3``, ``any``, ``not:0``), None the hook's default.
    ``kernel`` (``"6.1"``) and ``arch`` (``"arm64"``) are targets that the result must load on.
    """

    index: int
    program: str | None = None
    hook: str | None = None
    success: str | None = None
    redirect: str | None = None
    saved: str | None = None
    strategy: str = "auto"
    saved_code: str = "slots"
    last: bool = False
    pin: bool = False
    slots_map: str = SLOTS_MAP
    kernel: str | None = None
    arch: str | None = None
    allow: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class EntryProgram:
    """The program that runs when the link starts in ``state`` (None: nothing saved)."""

    name: str
    state: int | None
    slot: int


@dataclass(frozen=True, slots=True)
class MapUse:
    """A map that the object defines. Numbers are None where the object does not say them."""

    name: str
    type: int | None
    key_size: int | None
    value_size: int | None
    max_entries: int | None
    flags: int | None = None


@dataclass(frozen=True, slots=True)
class Need:
    """Something the result asks of the host: ``what`` (one word or two), ``why``, and for an
    architecture the first kernel that has it (None: none does)."""

    what: str
    why: str
    kernels: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Cost:
    """Instructions (8-byte slots) and bytes of stack, None where the stack is not bounded."""

    instructions: int
    stack: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Patched:
    """A finished transformation.

    ``strategy`` is ``"inline"``, ``"subprog"`` or ``"none"`` (a last link that needs no patch);
    ``before`` and ``after`` are of the program as given and of its entry in state none together
    with the body; ``debug`` tells what became of DWARF: ``"none"``, ``"kept"``, ``"dropped"``.
    """

    data: bytes
    link: Link
    program: str
    section: str
    entries: tuple[EntryProgram, ...]
    strategy: str
    why: str
    keep: str | None
    before: Cost
    after: Cost
    frags: bool
    debug: str
    license: str
    maps: tuple[MapUse, ...]
    needs: tuple[Need, ...]
    redirects: tuple[str, ...]
    """Redirect helpers (or unknown tail-call targets) that the program can reach."""
    tail_calls: bool
    """Whether the body makes tail calls of its own."""
    pinned: bool
    allowed: tuple[str, ...]
    warnings: tuple[str, ...]

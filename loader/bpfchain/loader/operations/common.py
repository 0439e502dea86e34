"""What all operations share: the lock, the first look, the swap of the head, and the answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from bpfchain.loader.hooks.protocol import Target
from bpfchain.loader.lock import check_bpffs, host_error, locked
from bpfchain.loader.operations.repair import repair
from bpfchain.loader.places import ChainPlace
from bpfchain.loader.programs import Program
from bpfchain.loader.situation import Situation
from bpfchain.loader.store import Generation, target_dict
from bpfchain.loader.syscall import BpfError
from bpfchain.transform.errors import BpfchainError, HostError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What an operation did."""

    operation: str
    """``load``, ``replace`` (in place), ``recreate``, ``rollback``, ``bypass``, ``unload``."""
    place: ChainPlace
    target: Target | None
    """None: nothing of the chain says where it was."""
    generation: int | None
    """The generation that runs now; None: nothing does."""
    before: int | None = None
    """The generation that ran before; None: nothing did."""
    why: str | None = None
    """Why a replace or bypass became a recreate."""
    repaired: tuple[str, ...] = ()
    """What of an earlier operation was finished or taken back first."""
    notes: tuple[str, ...] = ()
    """Warnings: what a person should know."""
    kept: tuple[str, ...] = ()
    """Maps that went on with their content."""

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "operation": self.operation,
            "chain": self.place.chain,
            "target": target_dict(self.target) if self.target else None,
            "pins": str(self.place.folder),
            "generation": self.generation,
            "before": self.before,
            "why": self.why,
            "repaired": list(self.repaired),
            "notes": list(self.notes),
            "kept": list(self.kept),
        }


@dataclass(slots=True)
class Opened:
    """A chain under lock, repaired."""

    situation: Situation
    repaired: tuple[str, ...]


@contextmanager
def looking(place: ChainPlace, *, fd: int | None = None) -> Iterator[Situation]:
    """Lock the target and look at the chain. HostError if another process has the lock, and for
    whatever the kernel or the file system says no to meanwhile."""
    check_bpffs(place.root.parent)
    with locked(place.target_folder), told(place), Situation(place, fd=fd) as situation:
        yield situation


@contextmanager
def told(place: ChainPlace) -> Iterator[None]:
    """What the kernel or the file system says no to meanwhile becomes a HostError."""
    try:
        yield
    except BpfError as error:
        raise HostError(f"{place}: {error}") from error
    except OSError as error:
        raise host_error(error, f"{place}: {error.filename or ''}".rstrip(": ")) from error


@contextmanager
def opened(place: ChainPlace, *, fd: int | None = None) -> Iterator[Opened]:
    """Lock the target and bring the chain into order first.

    If what follows fails, or is interrupted, the chain is brought into order once more: what the
    kernel runs decides, not how far the operation thought it was.
    """
    with looking(place, fd=fd) as first:
        done = repair(first)
        if not done:
            with tidy(place, fd):
                yield Opened(first, done)
            return
        with Situation(place, fd=fd) as situation, tidy(place, fd):
            yield Opened(situation, done)


@contextmanager
def tidy(place: ChainPlace, fd: int | None) -> Iterator[None]:
    """Repair the chain if the block fails."""
    try:
        yield
    except BaseException:
        # the first error is the one to tell; what stays is repaired by the next command
        with suppress(OSError, BpfchainError), Situation(place, fd=fd) as situation:
            repair(situation)
        raise


def running(place: ChainPlace, state: Opened) -> Generation:
    """The generation that runs. UsageError where the chain is not loaded."""
    current = state.situation.current
    if current is None:
        cleaned = f" ({'; '.join(state.repaired)})" if state.repaired else ""
        raise UsageError(f"{place} is not loaded{cleaned}", "`bpfchain status` shows what is")
    return current


def swap_head(situation: Situation, new: Program, old: Program) -> None:
    """One step from ``old`` to ``new`` at the hook, or in the entry program's slot.

    HostError, SwapNotPossibleError: nothing was changed.
    """
    array = situation.entry_array() if situation.entry_id else None
    if array is not None:
        with array:
            try:
                array.set_fd(0, new.fileno())
            except BpfError as error:
                raise HostError(
                    f"{situation.place}: the entry program takes no such head: {error}",
                    "its type, attach type or frags setting differs",
                ) from error
        return
    if situation.attachment is None:
        raise HostError(
            f"{situation.place}: only the owner of the socket can exchange its filter",
            "hand the socket over with --socket FD, or load the chain with --entry",
        )
    situation.attachment.swap(new, old)


def check_swappable(situation: Situation) -> None:
    """Raise HostError where the head cannot be exchanged, before anything is built."""
    if situation.entry_id is None and not situation.hook_driver.swaps:
        raise HostError(
            f"{situation.place}: this kind of hook cannot exchange its program",
            "unload the chain and load it with --entry CODE",
        )

"""What all operations share: the lock, the first look, the swap of the head, and the answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bpfchain.loader import grace
from bpfchain.loader.hooks.protocol import Target
from bpfchain.loader.lock import check_bpffs, host_error, locked
from bpfchain.loader.operations.repair import repair
from bpfchain.loader.places import ChainPlace
from bpfchain.loader.programs import Program
from bpfchain.loader.situation import Situation
from bpfchain.loader.store import Generation
from bpfchain.loader.syscall import BpfError
from bpfchain.transform.errors import HostError, UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What an operation did."""

    operation: str
    """``load``, ``replace`` (in place), ``recreate``, ``rollback``, ``bypass``, ``unload``."""
    place: ChainPlace
    target: Target
    generation: int | None
    """The generation that runs now; None: nothing does."""
    why: str | None = None
    """Why a replace or bypass became a recreate."""
    repaired: tuple[str, ...] = ()
    """What of an earlier operation was finished or taken back first."""
    notes: tuple[str, ...] = ()
    """Warnings: what a person should know."""
    kept: tuple[str, ...] = ()
    """Maps that went on with their content."""


@dataclass(slots=True)
class Opened:
    """A chain under lock, repaired."""

    situation: Situation
    repaired: tuple[str, ...]


@contextmanager
def opened(place: ChainPlace, *, fd: int | None = None, strange: bool = False) -> Iterator[Opened]:
    """Lock the target and bring the chain into order. HostError if another process has the lock.

    ``strange``: go on although the chain's attachment runs a program of no generation.
    """
    check_bpffs(place.root.parent)
    with locked(place.target_folder):
        try:
            done = repair(place, fd=fd, strange=strange)
            with Situation(place, fd=fd) as situation:
                yield Opened(situation, done)
        except BpfError as error:
            raise HostError(f"{place}: {error}") from error
        except OSError as error:
            raise host_error(error, f"{place}: {error.filename or ''}".rstrip(": ")) from error


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
    assert situation.attachment is not None, "the chain is attached"
    situation.attachment.swap(new, old)


def check_swappable(situation: Situation) -> None:
    """Raise HostError where the head cannot be exchanged, before anything is built."""
    if situation.entry_id is None and not situation.hook_driver.swaps:
        raise HostError(
            f"{situation.place}: this kind of hook cannot exchange its program",
            "unload the chain and load it with --entry CODE",
        )


def release(situation: Situation) -> None:
    """Wait until no packet is in a program that was exchanged."""
    grace.wait()

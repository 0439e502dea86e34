"""Errors that a person can act on: one line, at most one hint, and who must act.

The kind is the first word a command prints and decides its exit code (manners.md, DESIGN section 7).
"""

from __future__ import annotations

__all__ = [
    "BpfchainError",
    "HostError",
    "InconclusiveError",
    "NotEqualError",
    "OptionError",
    "RefusedError",
    "UsageError",
    "nearest",
]


def _printable(text: str) -> str:
    """Names out of the input appear in messages: what would move the cursor is shown escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class BpfchainError(Exception):
    """An expected failure. ``message`` says what and where, ``hint`` what to do about it."""

    kind = "error"
    exit_code = 70

    def __init__(self, message: str, hint: str | None = None) -> None:
        self.message = _printable(message)
        self.hint = None if hint is None else _printable(hint)
        super().__init__(self.message)

    def within(self, where: str) -> BpfchainError:
        """The same error seen from further out: ``where`` is put in front of the message."""
        return type(self)(f"{where}: {self.message}", self.hint)


class NotEqualError(BpfchainError):
    """The patched program does not do what the original does (exit 1)."""

    kind = "not equal"
    exit_code = 1


class UsageError(BpfchainError):
    """The command line asks for something that makes no sense (exit 2)."""

    kind = "usage"
    exit_code = 2


class OptionError(UsageError):
    """An option's value makes no sense, whatever the input is."""

    def within(self, where: str) -> BpfchainError:
        """The same error: no file is at fault."""
        return self


class RefusedError(BpfchainError):
    """The input cannot be made a link without risking what it does (exit 3)."""

    kind = "refused"
    exit_code = 3


class InconclusiveError(BpfchainError):
    """Neither equal nor different could be shown (exit 4)."""

    kind = "inconclusive"
    exit_code = 4


class HostError(BpfchainError):
    """The kernel, a lock or the file system said no (exit 5)."""

    kind = "host"
    exit_code = 5


def nearest(name: str, candidates: list[str] | tuple[str, ...]) -> str | None:
    """The candidate most like ``name``, or None where nothing comes close."""
    from difflib import get_close_matches  # only on the way to an error: keeps start-up short

    found = get_close_matches(name, candidates, n=1, cutoff=0.5)
    return found[0] if found else None

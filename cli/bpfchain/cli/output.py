"""What commands say and where: results on stdout, words about them on stderr, colour, errors.

The exit codes are DESIGN section 7: 0 done, 1 not equal, 2 usage, 3 input refused, 4 inconclusive,
5 the host said no, 70 a bug, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import IO

import click

from bpfchain.transform.errors import BpfchainError, HostError

__all__ = [
    "EXIT_BUG",
    "EXIT_CODES",
    "EXIT_INTERRUPTED",
    "Voice",
    "colour_wanted",
    "open_streams",
    "plain",
    "print_bug",
    "print_error",
    "print_result",
    "styled",
]  # fmt: skip

EXIT_BUG = 70
EXIT_INTERRUPTED = 130
EXIT_CODES = (
    (0, "done"),
    (1, "not equal: the patched program does not do what the original does"),
    (2, "usage: the command line makes no sense"),
    (3, "refused: the input cannot be made a link, or is none"),
    (4, "inconclusive: neither equal nor different could be shown"),
    (5, "host: the kernel, a lock or the file system said no"),
)


def colour_wanted(stream: IO[str]) -> bool:
    """Whether to colour what goes to ``stream``: NO_COLOR, CLICOLOR_FORCE, TERM=dumb, a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("CLICOLOR_FORCE", "0") not in ("", "0"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def styled(text: str, stream: IO[str], **style: object) -> str:
    """The text in that style, where ``stream`` takes colour."""
    return click.style(text, **style) if colour_wanted(stream) else text  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Voice:
    """How much a command says about its result: ``-q`` nothing but errors, ``-v`` everything."""

    quiet: bool = False
    verbose: bool = False

    def say(self, text: str) -> None:
        """One line on stderr, unless quiet."""
        if not self.quiet:
            _write(sys.stderr, plain(text))

    def explain(self, text: str) -> None:
        """One more line on stderr, where asked for."""
        if self.verbose:
            _write(sys.stderr, f"  {plain(text)}")

    def warn(self, text: str) -> None:
        """A warning on stderr, unless quiet."""
        if not self.quiet:
            word = styled("warning", sys.stderr, fg="yellow", bold=True)
            _write(sys.stderr, f"{word}: {plain(text)}")


def print_result(text: str) -> None:
    """A result, on stdout."""
    _write(sys.stdout, text)


def print_error(error: BpfchainError) -> None:
    """``kind: message`` on one line, and at most one hint."""
    kind = styled(error.kind, sys.stderr, fg="red", bold=True)
    _write(sys.stderr, f"{kind}: {_one_line(error.message)}")
    if error.hint:
        _write(sys.stderr, f"  hint: {_one_line(error.hint)}")


def print_bug(error: BaseException) -> None:
    """The traceback of something that must not happen, and what to do with it."""
    import traceback

    from bpfchain.transform.version import VERSION

    traceback.print_exception(error, file=sys.stderr)
    _write(
        sys.stderr, f"this is a bug in bpfchain {VERSION}: please report it with the lines above"
    )


def plain(text: str) -> str:
    """The text with everything escaped that a hostile name could do to a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _one_line(text: str) -> str:
    return plain(" ".join(text.split()))


def _write(stream: IO[str], text: str) -> None:
    try:
        try:
            stream.write(text + "\n")
        except UnicodeEncodeError:  # a terminal of another time: say it in what it has
            encoding = getattr(stream, "encoding", None) or "ascii"
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
    except BrokenPipeError:  # who read it has enough; the exit code still is the command's
        _silence(stream)
    except OSError as error:
        _silence(stream)
        if stream is sys.stdout:
            raise HostError(f"stdout: {(error.strerror or str(error)).lower()}") from None


def _silence(stream: IO[str]) -> None:
    """What is still to be written goes nowhere, and raises nothing at exit."""
    os.dup2(os.open(os.devnull, os.O_RDWR), stream.fileno())


def open_streams() -> None:
    """Standard streams that were closed: their numbers must not become a file's that is opened
    later. What is written to a closed stdout is an error, to a closed stderr it is lost."""
    # in the order of their numbers: each takes the lowest that is free
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(os.devnull)  # noqa: SIM115 - for reading: writing is refused
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115

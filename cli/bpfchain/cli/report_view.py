"""A report on stdout: as wide as the terminal, coloured where that is wanted, plain into a pipe."""

from __future__ import annotations

import os
import sys

from bpfchain.verify.reports import text
from bpfchain.verify.result import Report

from .output import Voice, colour_wanted, print_result

__all__ = ["show_report"]


def show_report(report: Report, voice: Voice) -> None:
    """Print the summary, unless quiet: then the exit code says it all."""
    if voice.quiet:
        return
    width = None
    if sys.stdout.isatty():
        try:
            width = os.get_terminal_size(sys.stdout.fileno()).columns
        except OSError:
            width = 80
    colour = colour_wanted(sys.stdout)
    print_result(text.render(report, width=width, colour=colour, verbose=voice.verbose))

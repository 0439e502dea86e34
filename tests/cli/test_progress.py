"""The progress bar: on a terminal after a second, nowhere else, gone at the end."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys

import pytest

from bpfchain.cli import progress
from bpfchain.cli.progress import progress_bar

WORK = """
import sys, time
from bpfchain.cli.progress import progress_bar
with progress_bar() as bar:
    for n in range({steps}):
        bar(n, {steps}, "packets")
        time.sleep({pause})
        {then}
print("rich" in sys.modules)
"""


def on_terminal(
    code: str, *, width: int = 80, terminal: str = "xterm"
) -> tuple[str, subprocess.CompletedProcess[str]]:
    """What stderr showed on a terminal, and the finished process."""
    ours, theirs = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    environment |= {
        "TERM": terminal, "COLUMNS": str(width), "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdin=theirs, stdout=subprocess.PIPE,
        stderr=theirs, text=True, timeout=60,
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # the terminal's other end is closed
        pass
    os.close(ours)
    return shown.decode(), done


def test_after_a_second_it_shows_count_rate_and_time_left_then_vanishes() -> None:
    shown, done = on_terminal(WORK.format(steps=30, pause=0.05, then="pass"))
    assert done.returncode == 0
    lines = re.findall(r"\d+ of 30 packets.*?/s", shown)
    assert lines
    assert int(lines[0].split()[0]) >= 19  # nothing in the first second
    assert re.search(r"[\d.]+/s +\d+ s left", shown)
    assert shown.endswith("\x1b[2K")  # the line is cleared: nothing stays
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")  # the cursor is back


def test_short_work_shows_nothing_and_does_not_load_rich() -> None:
    shown, done = on_terminal(WORK.format(steps=3, pause=0.01, then="pass"))
    assert (shown, done.stdout) == ("", "False\n")


def test_a_dumb_terminal_and_a_pipe_get_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, _ = on_terminal(WORK.format(steps=24, pause=0.05, then="pass"), terminal="dumb")
    assert shown == ""
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setenv("CLICOLOR_FORCE", "1")
    pipe = io.StringIO()
    with progress_bar(stream=pipe) as bar:
        bar(1, 2, "packets")
    assert pipe.getvalue() == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_quiet_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    loud, quiet = Terminal(), Terminal()
    for stream in (loud, quiet):
        with progress_bar(quiet=stream is quiet, stream=stream) as bar:
            bar(1, 2, "packets")
    assert "1 of 2 packets" in loud.getvalue()
    assert quiet.getvalue() == ""


def test_ctrl_c_says_how_far_it_came() -> None:
    stop = "if n == 25: raise KeyboardInterrupt"
    shown, done = on_terminal(WORK.format(steps=30, pause=0.05, then=stop))
    assert done.returncode != 0
    assert "interrupted at 25 of 30 packets" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")


def test_what_is_done_cannot_speak_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress_bar(stream=stream) as bar:
        bar(1, 2, "[bold]\x1b]0;title\x07 of a.pcap")
    assert "[bold]" in stream.getvalue()
    assert "\x1b]0;" not in stream.getvalue()
    assert "\x07" not in stream.getvalue()

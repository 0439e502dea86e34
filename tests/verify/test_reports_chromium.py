"""The HTML page in a real browser: its document is ours, it asks nobody, nothing sticks out of it."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from bpfchain.verify.reports.html import render
from support import sample_reports as samples
from support.html_page import CHROMIUM, Page, chromium

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium")


@contextmanager
def server() -> Iterator[tuple[int, list[str]]]:
    """A port of this machine, and what was asked for there."""
    asked: list[str] = []

    class Listen(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Listen) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        yield listening.server_port, asked
        listening.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["equal", "not_equal", "inconclusive"])
def test_the_browser_sees_what_we_wrote(name: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    text = render(samples.ALL[name]())
    path.write_text(text)
    seen, written = Page(chromium(path)), Page(text)
    assert (seen.count, seen.ids) == (written.count, written.ids)
    assert seen.texts["title"] == written.texts["title"]
    assert seen.body.split() == written.body.split()


def test_a_hostile_name_asks_nobody(tmp_path: Path) -> None:
    with server() as (port, asked):
        attack = f"</style></script><img src='http://127.0.0.1:{port}/img'>" \
                 f'"><link rel=stylesheet href=http://127.0.0.1:{port}/css>' \
                 f"<script src=http://127.0.0.1:{port}/js></script>"  # fmt: skip
        naked = tmp_path / "naked.html"
        naked.write_text(f"<!doctype html><body>{attack}")
        chromium(naked)
        assert {"/img", "/css", "/js"} <= set(asked)  # so this test can fail
        asked.clear()
        text = render(samples.hostile())
        plain = render(
            replace(samples.hostile(), subject=attack, rerun=attack, not_checked=(attack,))
        )
        assert attack not in plain
        path = tmp_path / "page.html"
        path.write_text(plain)
        seen = Page(chromium(path))
        assert asked == []
        assert attack in seen.body
        assert seen.count == Page(plain).count == Page(text).count
        # and where escaping had failed, the page's policy would still hold
        path.write_text(plain.replace("<h1>", f"<h1>{attack}"))
        chromium(path)
        assert asked == []


@pytest.mark.parametrize("name", ["not_equal", "hostile", "long_names", "full"])
@pytest.mark.parametrize("width", [400, 1000])
def test_nothing_sticks_out_of_the_page(name: str, width: int, tmp_path: Path) -> None:
    """Tables may scroll in themselves; the page does not. The browser's window is no narrower than
    500, so the page is looked at in a frame."""
    page = render(samples.ALL[name]())
    page = re.sub(r"<meta http-equiv=.*?>\n", "", page)  # this test's own script needs to run
    probe = (
        "<script>addEventListener('load', () => { document.querySelectorAll('details')"
        ".forEach(d => d.open = true); parent.postMessage([innerWidth, "
        "document.documentElement.scrollWidth], '*') })</script></body>"
    )
    (tmp_path / "inner.html").write_text(page.replace("</body>", probe))
    outer = tmp_path / "outer.html"
    outer.write_text(
        "<!doctype html><script>addEventListener('message', e => "
        "{ document.title = JSON.stringify(e.data) })</script>"
        f'<iframe src="inner.html" style="width:{width}px;height:800px;border:0"></iframe>'
    )
    title = Page(chromium(outer, "--virtual-time-budget=3000", width=1200)).texts["title"]
    inner, needed = json.loads(title)
    assert inner == width
    assert needed <= width

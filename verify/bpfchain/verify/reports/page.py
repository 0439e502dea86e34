"""The HTML page's frame: one file, no script, nothing loaded; and elements with escaped text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from . import words

__all__ = ["Html", "chip", "details", "document", "element", "join", "section", "table", "text"]


class Html(str):
    """Text that is markup already; any other text is escaped where it is put in."""

    __slots__ = ()


def text(value: object) -> Html:
    """The value as text: escaped, with control and direction characters shown as what they are."""
    if isinstance(value, Html):
        return value
    return Html(escape(words.printable(str(value))))


def join(parts: Iterable[object], between: str = "") -> Html:
    """Markup and texts, one after the other."""
    return Html(between.join(text(part) for part in parts))


def element(tag: str, *children: object, **attributes: str | None) -> Html:
    """``<tag …>children</tag>``; ``class_`` and ``data_label`` as in Python; None is left out."""
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{text(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{named}>{join(children)}</{tag}>")


def chip(word: str, kind: str) -> Html:
    """A word with the colour of its kind: good, bad, warn or quiet."""
    return element("span", word, class_=f"chip {kind}")


def section(title: str, *children: object, id: str) -> Html:
    """A part of the page with its heading; nothing where it has no children."""
    inside = join(children, "\n")
    if not inside:
        return Html("")
    return Html(f'<section id="{text(id)}">\n<h2>{text(title)}</h2>\n{inside}\n</section>')


def details(summary: object, *children: object, open: bool = False) -> Html:
    """Something that opens on a click, and on paper."""
    head = element("summary", summary)
    return Html(f"<details{' open' if open else ''}>{head}\n{join(children, chr(10))}</details>")


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    kind: str = "",
    classes: Sequence[str] | None = None,
    row_classes: Sequence[str] | None = None,
) -> Html:
    """A table that scrolls by itself where the page is too narrow. ``classes``: one a column."""
    classes = classes or [""] * len(heads)
    head = join(
        element("th", name, scope="col", class_=kind_ or None)
        for name, kind_ in zip(heads, classes, strict=True)
    )
    body = []
    for number, row in enumerate(rows):
        cells = join(
            element("td", cell, class_=kind_ or None, data_label=name)
            for cell, kind_, name in zip(row, classes, heads, strict=True)
        )
        body.append(
            element("tr", cells, class_=(row_classes[number] if row_classes else "") or None)
        )
    inside = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{join(body, chr(10))}\n</tbody>"
    return Html(
        f'<div class="scroll"><table class="{text(kind)}">\n{inside}\n</table></div>'
        if kind
        else f'<div class="scroll"><table>\n{inside}\n</table></div>'
    )


def document(title: str, *body: object) -> str:
    """The whole page. Its policy forbids scripts and anything from elsewhere, whatever a name in
    the report might ask for."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{text(title)}</title>
<link rel="icon" href="data:,">
<style>
{STYLE}</style>
</head>
<body>
<main>
{join((part for part in body if part), chr(10))}
</main>
</body>
</html>"""


STYLE = """\
:root {
  --page: #ffffff; --ink: #1c2126; --soft: #5b656f; --line: #d9dee3; --raised: #f5f7f8;
  --good: #1a6f37; --good-back: #e3f3e7; --bad: #b3231f; --bad-back: #fbe7e5;
  --warn: #855600; --warn-back: #fbf0d9; --quiet-back: #eceff1; --link: #0b5cad;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14181c; --ink: #e3e7ea; --soft: #9aa5af; --line: #30383f; --raised: #1b2126;
    --good: #71cc8c; --good-back: #17301f; --bad: #ff8f87; --bad-back: #3d1d1c;
    --warn: #e6b454; --warn-back: #362a12; --quiet-back: #272e34; --link: #7fb6f0;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", "DejaVu Sans", sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1, h2, h3 { line-height: 1.25; font-weight: 600; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; margin: .6rem 0 .2rem; }
h2 { font-size: 1.1rem; margin: 2.4rem 0 .7rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .4rem 0; overflow-wrap: anywhere; }
a { color: var(--link); }
code, .mono, pre { font-family: ui-monospace, "Cascadia Mono", "Liberation Mono", "DejaVu Sans Mono", monospace;
  font-size: .87em; overflow-wrap: anywhere; }
pre { margin: .5rem 0; padding: .6rem .8rem; background: var(--raised); border: 1px solid var(--line);
  border-radius: 6px; white-space: pre-wrap; }
ul { margin: .3rem 0; padding-left: 1.2rem; }
li { margin: .15rem 0; overflow-wrap: anywhere; }
.soft { color: var(--soft); }
.verdict { border-left: 6px solid var(--edge); padding: .2rem 0 .2rem 1.1rem; }
.verdict .word { color: var(--edge); font-size: 2.3rem; font-weight: 700; line-height: 1.1; }
.verdict.good { --edge: var(--good); } .verdict.bad { --edge: var(--bad); }
.verdict.warn { --edge: var(--warn); } .verdict.quiet { --edge: var(--soft); }
.verdict .reason { font-size: 1.05rem; font-weight: 500; }
.chip { display: inline-block; padding: 0 .5em; border-radius: 4px; white-space: nowrap;
  background: var(--quiet-back); font-size: .92em; }
.chip.good { color: var(--good); background: var(--good-back); }
.chip.bad { color: var(--bad); background: var(--bad-back); font-weight: 600; }
.chip.warn { color: var(--warn); background: var(--warn-back); }
.chip.quiet { color: var(--soft); }
.codes { display: flex; flex-wrap: wrap; gap: .2rem .35rem; }
.codes .chip { white-space: normal; overflow-wrap: anywhere; }
.codes .never { background: none; outline: 1px dashed var(--line); outline-offset: -1px; color: var(--soft); }
.scroll { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; width: 100%; font-size: .93rem; }
th { text-align: left; font-weight: 500; color: var(--soft); font-size: .85rem; }
th, td { padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: break-word; }
.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.num { text-align: right; }
td.name { font-weight: 600; overflow-wrap: anywhere; min-width: 7rem; }
td.name .soft { font-weight: 400; font-size: .92em; }
.keep { white-space: nowrap; }
.wrap { overflow-wrap: anywhere; min-width: 9rem; }
.meter { display: inline-block; width: 3.2rem; height: .45rem; margin-left: .5rem; border-radius: 3px;
  background: var(--bad-back); overflow: hidden; vertical-align: middle; print-color-adjust: exact; }
.meter i { display: block; height: 100%; background: var(--good); }
.finding { border: 1px solid var(--line); border-left: 4px solid var(--edge, var(--line)); border-radius: 6px;
  padding: .5rem .9rem; margin: .6rem 0; break-inside: avoid; }
.finding.bad { --edge: var(--bad); } .finding.warn { --edge: var(--warn); }
.matrix { width: auto; } .matrix td, .matrix th { padding-right: 1.4rem; }
.matrix .same { color: var(--good); font-weight: 600; }
.matrix .off { color: var(--bad); background: var(--bad-back); font-weight: 600; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0; padding: 0 .9rem; }
details[open] { padding-bottom: .7rem; }
summary { cursor: pointer; padding: .45rem 0; overflow-wrap: anywhere; }
summary:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.source td { border-bottom: none; padding: .06rem .8rem .06rem .3rem; }
.source { font-family: ui-monospace, "Cascadia Mono", "Liberation Mono", "DejaVu Sans Mono", monospace; font-size: .82rem; }
.source th { font-family: system-ui, "Liberation Sans", "DejaVu Sans", sans-serif; }
.source td:last-child { white-space: pre-wrap; width: 99%; }
.source .line td { background: var(--raised); border-top: 1px solid var(--line); }
.source .seen td:first-child { box-shadow: inset 4px 0 var(--good); }
.source .part td:first-child { box-shadow: inset 4px 0 var(--warn); }
.source .unseen td:first-child { box-shadow: inset 4px 0 var(--bad); }
.source .line.part td { background: var(--warn-back); } .source .line.unseen td { background: var(--bad-back); }
.source .insn td { color: var(--soft); } .source .insn.unseen td { color: var(--bad); }
.source .insn.part td { color: var(--warn); }
.source td:first-child { padding-left: .8rem; }
.source .title td { font-weight: 600; padding-top: .7rem; font-family: system-ui, "Liberation Sans", "DejaVu Sans", sans-serif; }
.packet td { padding-top: .12rem; padding-bottom: .12rem; }
.packet .differs td { background: var(--bad-back); }
.packet mark { background: none; color: var(--bad); font-weight: 700; text-decoration: underline; }
.packet td { white-space: nowrap; } .packet td .soft { margin-left: 1.2em; }
.packet th.mono { font-family: inherit; font-size: .85rem; }
.packet td:last-child { width: 60%; } .packet.three td:last-child { width: 34%; }
dl { display: grid; grid-template-columns: fit-content(14rem) minmax(0, 1fr); gap: .25rem 1.2rem; margin: .5rem 0; }
dt { color: var(--soft); overflow-wrap: anywhere; } dd { margin: 0; overflow-wrap: anywhere; }
footer { margin-top: 3rem; color: var(--soft); font-size: .85rem; }
@media (max-width: 44rem) {
  main { padding: 1.2rem .9rem 3rem; }
  .links thead { display: none; }
  .links tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .links td { display: flex; gap: .8rem; border: none; padding: .1rem 0; text-align: left; white-space: normal; }
  .links td { align-items: baseline; }
  .three thead { display: none; } .three tr { display: block; padding: .2rem 0; border-bottom: 1px solid var(--line); }
  .three td { display: flex; border: none; padding: 0; white-space: normal; }
  .three tr.differs { background: var(--bad-back); } .three .differs td { background: none; }
  .three td::before { content: attr(data-label); color: var(--soft); flex: 0 0 8.5rem; font-family: system-ui, sans-serif; }
  .three td:first-child { font-weight: 500; } .three td:first-child::before { content: none; }
  .packet.three td:last-child { width: auto; }
  .three tr:not(.differs, .changed) td:nth-child(n+3) { display: none; }
  .links td::before { content: attr(data-label); color: var(--soft); flex: 0 0 7.4rem; font-weight: 400; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; } dd { margin-bottom: .5rem; }
}
@media print {
  :root { --page: #fff; --ink: #000; --soft: #444; --line: #bbb; --raised: #f6f6f6; --good: #1a6f37;
    --good-back: #fff; --bad: #b3231f; --bad-back: #fff; --warn: #855600; --warn-back: #fff; --quiet-back: #fff; }
  body { font-size: 10pt; } main { max-width: none; padding: 0; }
  .scroll { overflow: visible; } tr { break-inside: avoid; } h2 { break-after: avoid; }
  details { border: none; padding: 0; }
  details::details-content { content-visibility: visible; block-size: auto; }
}
"""

"""``bpfchain inspect``: what a patched object is, and the code that was added beside the original."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING, Any

import click

from bpfchain.transform.errors import BpfchainError, RefusedError, UsageError, nearest

from .command import Command, chatter, option, settings
from .files import STREAM, read_input
from .output import plain, print_result, styled
from .words import EXIT_CODES_HELP, slots_text, state_name

if TYPE_CHECKING:
    from bpfchain.transform.link import Link
    from bpfchain.transform.provenance import Provenance

    from .changes import Change, EntryView, ObjectView

__all__ = ["command"]

_HELP = "Show what a patched object is: its links, and the added code beside what it replaced."

_EPILOG = f"""\
Examples:
  bpfchain inspect link0.o
  bpfchain inspect link0.o --original filter.o
  bpfchain inspect link0.o --json

Marks: + added, ~ changed, … unchanged instructions left out.

{EXIT_CODES_HELP}
"""


@click.command("inspect", cls=Command, help=_HELP, epilog=_EPILOG, context_settings=settings())
@click.argument("source", metavar="FILE")
@option("--program", metavar="NAME", group="What to show",
        help="Only the link of this program.  [default: all links]")  # fmt: skip
@option("--original", metavar="IN", group="What to show",
        help="Compare with the object it was made from.  [default: derive it]")  # fmt: skip
@option("--json", "as_json", is_flag=True, group="Output", help="Print JSON.")
@chatter
def command(
    source: str,
    program: str | None,
    original: str | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Read, look, print."""
    if source == STREAM and original == STREAM:
        raise UsageError("FILE and --original are both -")
    shown = "stdin" if source == STREAM else source
    data = read_input(source)
    given = read_input(original) if original is not None else None
    try:
        links = _look(data, program, given, original)
    except BpfchainError as error:
        raise error.within(shown) from None
    if as_json:
        import json

        found = {"object": shown, "links": [_to_dict(*link) for link in links]}
        print_result(json.dumps(found, indent=2, sort_keys=True, ensure_ascii=False))
        return
    for number, link in enumerate(links):
        if number:
            print_result("")
        for line in _page(shown, *link):
            print_result(line)


_Look = tuple["Provenance", tuple["EntryView", ...], "int | None"]


def _look(
    data: bytes, program: str | None, given: bytes | None, original_name: str | None
) -> list[_Look]:
    from bpfchain.transform.elf_read import read_object
    from bpfchain.transform.program import programs_of
    from bpfchain.transform.provenance import read_provenance
    from bpfchain.transform.subject import entry_names

    from .changes import ObjectView, entry_view

    obj = read_object(data)
    known = read_provenance(obj)
    if not known:
        names = ", ".join(function.name for function in programs_of(obj)) or "none"
        raise RefusedError(
            f"not a link: it has no section .bpfchain (its programs: {names})",
            "patch it with bpfchain-transform",
        )
    wanted = [
        entry
        for entry in known
        if program is None or program in entry_names(entry.program, entry.link).values()
    ]
    if not wanted:
        names_of_links = [entry.program for entry in known]
        close = nearest(program or "", names_of_links)
        raise UsageError(
            f"no link of program {program!r}",
            f"did you mean {close}?" if close else f"its links: {', '.join(names_of_links)}",
        )
    view = ObjectView(obj)
    result: list[_Look] = []
    for entry in wanted:
        before = None
        if given is not None:
            before = _original(given, entry, original_name)
        by_state = entry_names(entry.program, entry.link)
        entries = tuple(
            entry_view(view, entry, state, name, before) for state, name in by_state.items()
        )
        result.append((entry, entries, _stack(view, entry)))
    return result


def _original(data: bytes, entry: Provenance, name: str | None) -> ObjectView:
    from hashlib import sha256

    from bpfchain.transform.elf_read import read_object

    from .changes import ObjectView

    found = sha256(data).hexdigest()
    if found != entry.input_sha256:
        raise RefusedError(
            f"was not made from {name}: that has sha256 {found[:12]}…, "
            f"the original {entry.input_sha256[:12]}…"
        )
    return ObjectView(read_object(data))


def _stack(view: ObjectView, entry: Provenance) -> int | None:
    """Bytes of stack of the entry's own frame, or of its body's; None where it is not bounded."""
    from bpfchain.transform.program import Function
    from bpfchain.transform.subject import flow_of

    function: Function | None = view.programs.get(entry.program)
    if entry.strategy == "subprog":
        text = view.obj.section(".text")
        bodies = view.obj.functions(text.id) if text is not None else ()
        body = next((s for s in bodies if s.name == f"{entry.program}__body"), None)
        function = Function(body, text) if body is not None and text is not None else None
    if function is None:
        return None
    flow = flow_of(view.obj, function, view.code(function))
    return None if flow.lowest is None else -flow.lowest


def _to_dict(
    entry: Provenance, entries: tuple[EntryView, ...], stack: int | None
) -> dict[str, Any]:
    from bpfchain.transform.manifest_codes import code_json, codes_json

    link = entry.link
    hook = link.hook
    return {
        "program": entry.program,
        "hook": hook.name,
        "index": link.index,
        "success": codes_json(link.success, hook),
        "redirect": codes_json(link.redirect, hook),
        "saved": [code_json(code, hook) for code in link.saved],
        "saved_code": link.mode,
        "last": link.last,
        "slots_map": link.slots_map,
        "strategy": entry.strategy,
        "why": entry.why,
        "keep": entry.keep,
        "stack": stack,
        "debug": entry.debug,
        "tool": {"name": "bpfchain", "version": entry.tool},
        "input": {"sha256": entry.input_sha256},
        "entries": [_entry_dict(link, view) for view in entries],
    }


def _entry_dict(link: Link, view: EntryView) -> dict[str, Any]:
    from bpfchain.transform.manifest_codes import code_json

    return {
        "program": view.name,
        "state": None if view.state is None else code_json(view.state, link.hook),
        "slot": view.slot,
        "instructions": view.instructions,
        "added": view.added,
        "body": view.body,
        "changes": [_row_dict(row) for row in view.rows if _told(row)],
    }


def _told(row: Change) -> bool:
    return row.mark in "+~"


def _row_dict(row: Change) -> dict[str, Any]:
    side = {
        name: None if part is None else {"slot": part.slot, "text": part.text}
        for name, part in (("original", row.original), ("patched", row.patched))
    }
    kind = "added" if row.mark == "+" else "changed"
    return {"kind": kind, **side, "note": row.note, "source": row.source}


def _page(
    shown: str, entry: Provenance, entries: tuple[EntryView, ...], stack: int | None
) -> list[str]:
    """The lines of one link."""
    link = entry.link
    names = link.hook.names
    place = f"link {link.index}{', the last,' if link.last else ''} of a live chain"
    head = "  ".join((
        styled(plain(shown), sys.stdout, bold=True),
        plain(f"{link.hook.name}/{entry.program}"), place,
        f"S={link.success.describe(names)}", f"R={link.redirect.describe(names)}",
        plain(f"{entry.strategy}: {entry.why}"),
    ))  # fmt: skip
    facts = [
        ("slots", slots_text(link) + (" (saved code in a map)" if link.mode == "map" else "")),
        ("context", entry.keep or "not kept"),
        ("stack", "not bounded" if stack is None else f"{stack} bytes"),
        ("DWARF", entry.debug),
        ("made by", f"bpfchain {entry.tool} from sha256 {entry.input_sha256}"),
    ]
    lines = [head, *(f"  {title:8} {plain(text)}" for title, text in facts)]
    for view in entries:
        lines += _entry_lines(link, view)
    return lines


def _entry_lines(link: Link, view: EntryView) -> list[str]:
    added = f", {view.added} of them added"
    if view.body is not None:
        added = f", and the body in {view.body}"
    state = f" ({state_name(link, view.state)}, slot {view.slot})"
    lines = [plain(f"  {view.name}{state}: {view.instructions} instructions{added}")]
    if not view.rows:
        return lines
    left, right, noted = _widths(view.rows)
    beside = len("     ") + left + len("   +  ") + right + noted <= _columns()
    if beside:
        lines.append(f"     {'original':{left}}     patched")
    for row in view.rows:
        lines += _beside(row, left, right) if beside else _below(row)
    return lines


def _columns() -> int:
    """How wide a line may be: a pipe takes any."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 1 << 16


def _widths(rows: tuple[Change, ...]) -> tuple[int, int, int]:
    sides = [(_side(row.original), _side(row.patched)) for row in rows]
    return (
        max(8, *(len(a) for a, _ in sides)),
        max(len(b) for _, b in sides),
        max(len(row.note or "") + 2 for row in rows),
    )


def _side(side: Any) -> str:
    return "" if side is None else f"{side.slot:4}: {plain(side.text)}"


def _beside(row: Change, left: int, right: int) -> list[str]:
    lines = _source(row)
    if row.mark == "…":
        return [*lines, f"     {'…':{left}}     …"]
    text = f"  {_side(row.original):{left}}   {row.mark} {_side(row.patched):{right}}  "
    text = f"   {text}{row.note or ''}".rstrip()
    return [*lines, _coloured(row, text)]


def _below(row: Change) -> list[str]:
    """Where two columns do not fit: what was there, then what is."""
    lines = _source(row)
    if row.mark == "…":
        return [*lines, "    …"]
    if row.mark == "~" and row.original is not None:
        lines.append(styled(f"    - {_side(row.original)}", sys.stdout, fg="red"))
    note = f"  ; {row.note}" if row.note else ""
    return [*lines, _coloured(row, f"    {row.mark} {_side(row.patched)}{note}")]


def _source(row: Change) -> list[str]:
    if not row.source:
        return []
    text, wide = plain(f"     ; {row.source}"), _columns()
    cut = text if len(text) <= wide else text[: wide - 1] + "…"
    return [styled(cut, sys.stdout, dim=True)]


def _coloured(row: Change, text: str) -> str:
    colour = {"+": "green", "~": "yellow"}.get(row.mark)
    return styled(text, sys.stdout, fg=colour) if colour else text

"""Sentences about links that several commands say: the success line, code sets, hooks, exit codes."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING

from .output import EXIT_CODES

if TYPE_CHECKING:
    from bpfchain.transform.link import Link
    from bpfchain.transform.policy import Hook
    from bpfchain.transform.request import Patched

__all__ = [
    "EXIT_CODES_HELP", "entries_text", "hooks_brief", "hooks_table", "link_codes", "slots_text",
    "state_name", "summary",
]  # fmt: skip

EXIT_CODES_HELP = "Exit codes:\n" + "\n".join(f"  {code}  {text}" for code, text in EXIT_CODES)


def summary(patched: Patched) -> str:
    """``xdp/filter is link 0 (inline, +7 instructions, S=PASS)``."""
    link = patched.link
    parts = [patched.strategy if patched.strategy != "none" else "unchanged"]
    more = patched.after.instructions - patched.before.instructions
    if patched.strategy != "none":
        parts.append(f"{more:+d} instruction{'' if abs(more) == 1 else 's'}")
    parts.append(link_codes(link))
    if len(patched.entries) > 1:
        parts.append(f"entries {' '.join(entry.name for entry in patched.entries)}")
    place = f"link {link.index}{', the last' if link.last else ''}"
    return f"{link.hook.name}/{patched.program} is {place} ({', '.join(parts)})"


def link_codes(link: Link) -> str:
    """``S=PASS`` and, where there are any, ``R=REDIRECT``."""
    names = link.hook.names
    text = f"S={_brief(link.success.describe(names))}"
    return f"{text}, R={_brief(link.redirect.describe(names))}" if link.redirect else text


def _brief(codes: str) -> str:
    """A list that fits into a line; the manifest has it whole."""
    return codes if len(codes) <= 60 else f"{codes[:59].rsplit(',', 1)[0]},…"


def state_name(link: Link, state: int | None) -> str:
    """``nothing saved`` or ``REDIRECT saved``."""
    return "nothing saved" if state is None else f"{link.hook.name_of(state)} saved"


def slots_text(link: Link) -> str:
    """Where a link stands in its PROG_ARRAY."""
    slots = ", ".join(str(link.hook.slot(state, link.index)) for state in link.states)
    return f"{link.slots_map}[{slots}]"


def entries_text(link: Link, names: list[str]) -> list[str]:
    """One line an entry program: name, state, slot."""
    return [
        f"{name}: {state_name(link, state)}, slot {link.hook.slot(state, link.index)}"
        for name, state in zip(names, link.states, strict=True)
    ]


def hooks_brief(width: int = 78) -> str:
    """The hooks by name, grouped by their default S."""
    from bpfchain.transform.policy import HOOKS

    groups: dict[str, list[str]] = {}
    for hook in HOOKS:
        groups.setdefault(_default(hook), []).append(hook.name)
    lines = []
    for success, names in groups.items():
        lines.append(f"  S={success}")
        lines += wrap(", ".join(names), width, initial_indent="    ", subsequent_indent="    ",
                      break_long_words=False, break_on_hyphens=False)  # fmt: skip
    for note in dict.fromkeys(hook.note for hook in HOOKS if hook.note):
        named = ", ".join(hook.name for hook in HOOKS if hook.note == note)
        lines += wrap(f"{named}: {note}.", width, initial_indent="  ", subsequent_indent="    ",
                      break_on_hyphens=False)  # fmt: skip
    return "\n".join(lines)


def hooks_table() -> str:
    """Every hook: its sections, code names with values, default S, and what is to be known of it."""
    from bpfchain.transform.policy import HOOKS

    lines = []
    for hook in HOOKS:
        lines.append(f"{hook.name}  ({hook.prog_type}{_attach(hook)}, context {hook.context})")
        sections = ", ".join((*hook.sections, *hook.accepts))
        named = [f"{c.name}={c.value}" if c.name != str(c.value) else c.name for c in hook.codes]
        named += [f"{name}={value}" for name, value in hook.aliases]
        rows = [("sections", sections), ("codes", ", ".join(named)), ("default S", _default(hook))]
        if hook.note:
            rows.append(("note", hook.note))
        for title, text in rows:
            lines += wrap(text, 96, initial_indent=f"  {title:10}", subsequent_indent=" " * 12,
                          break_long_words=False, break_on_hyphens=False)  # fmt: skip
    return "\n".join(lines)


def _default(hook: Hook) -> str:
    return hook.success.describe(hook.names)


def _attach(hook: Hook) -> str:
    return f", {hook.attach_type}" if hook.attach_type else ""

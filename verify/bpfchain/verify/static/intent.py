"""What a patched object says was intended: the checker's own reading of its ``.bpfchain`` section.

Nothing in it is believed beyond that. The hook, index and codes say what is to be shown; strategy,
keep, front and body are hints that the accounting compares with what it finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bpfchain.transform.codes import CODE_MAX, CODE_MIN, CodeSet
from bpfchain.transform.errors import BpfchainError
from bpfchain.transform.policy import LINKS_MAX, Hook, hook_named
from bpfchain.verify.static.model import SHF_ALLOC, SHT_STRTAB, Obj, Unreadable

__all__ = ["SECTION", "Intent", "read_intents"]

SECTION: Final = ".bpfchain"
_FORMAT: Final = "1"
_STRATEGIES: Final = ("inline", "subprog", "none")
_MODES: Final = ("slots", "map")
_KEYS: Final = (
    "link", "format", "tool", "hook", "index", "success", "redirect", "saved", "mode", "last",
    "slots", "strategy", "why", "keep", "front", "body", "debug", "input",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """One link, as ``.bpfchain`` tells it (DESIGN section 2 says what each means)."""

    program: str
    hook: Hook
    index: int
    success: CodeSet
    redirect: CodeSet
    saved: tuple[int, ...]
    mode: str
    last: bool
    slots_map: str
    strategy: str
    keep: str | None
    front: int
    body: int
    debug: str
    input_sha256: str
    tool: str

    @property
    def states(self) -> tuple[int | None, ...]:
        """The saved codes with which the link may start, None (nothing saved) first."""
        return (None, *self.saved) if self.mode == "slots" else (None,)

    @property
    def ends(self) -> bool:
        """Whether no link follows: declared the last, or at the highest index."""
        return self.last or self.index == LINKS_MAX - 1

    @property
    def entries(self) -> Mapping[int | None, str]:
        """State -> name of its entry program, in the order they stand in the section."""
        return {state: self.entry_name(state) for state in self.states}

    def entry_name(self, state: int | None) -> str:
        """The program's own name for "nothing saved", else with the saved code's name behind."""
        if state is None:
            return self.program
        return f"{self.program}__{self.hook.name_of(state).lower().replace('-', 'm')}"

    @property
    def body_name(self) -> str:
        """The function that holds the body where it moved."""
        return f"{self.program}__body"

    @property
    def saved_map(self) -> str:
        """The map that holds the saved code in mode ``map``."""
        if self.slots_map == "bpfchain_slots":
            return "bpfchain_saved"
        return f"{self.slots_map}_c"


def read_intents(obj: Obj) -> tuple[Intent, ...]:
    """The links that the object says it holds, in the order they were made.

    Raises Unreadable where the section is not a string table of groups that each say everything.
    """
    found = [section for section in obj.sections if section.name == SECTION]
    if not found:
        return ()
    if len(found) > 1:
        raise Unreadable(f"{len(found)} sections {SECTION}")
    section = found[0]
    if section.type != SHT_STRTAB or section.flags != SHF_ALLOC:
        raise Unreadable(
            f"section {SECTION} is no string table that is kept by strip (STRTAB, ALLOC)"
        )
    return tuple(_intent(group) for group in _groups(section.data))


def _groups(data: bytes) -> list[dict[str, str]]:
    if data[:1] != b"\0" or data[-1:] != b"\0":
        raise Unreadable(f"section {SECTION} does not begin and end with a NUL")
    groups: list[dict[str, str]] = []
    for raw in data[1:-1].split(b"\0"):
        try:
            key, equals, value = raw.decode().partition("=")
        except UnicodeDecodeError:
            raise Unreadable(f"section {SECTION}: {raw!r} is not UTF-8") from None
        if key == "link":
            groups.append({})
        if not equals or not groups or key in groups[-1] or key not in _KEYS:
            raise Unreadable(f"section {SECTION}: {key!r} is out of place")
        groups[-1][key] = value
    for group in groups:
        for key in _KEYS:
            if key not in group:
                raise Unreadable(f"section {SECTION}: link {group['link']} does not tell its {key}")
    return groups


def _intent(group: Mapping[str, str]) -> Intent:
    where = f"section {SECTION}, link {group['link']}"
    if group["format"] != _FORMAT:
        raise Unreadable(f"{where}: format {group['format']} is not known")
    try:
        hook = hook_named(group["hook"])
        success, redirect = (
            CodeSet.parse(group[key], {}, what=key) for key in ("success", "redirect")
        )
        saved = tuple(int(code) for code in group["saved"].split(",") if code)
        index, front, body = (int(group[key]) for key in ("index", "front", "body"))
        if group["mode"] == "slots":  # raises where a code has no state number
            for code in (*saved, *(redirect if len(redirect) <= hook.states else ())):
                hook.state_of(code)
    except (BpfchainError, ValueError) as error:
        raise Unreadable(f"{where}: {error}") from None
    for key, known in (("strategy", _STRATEGIES), ("mode", _MODES), ("last", ("yes", "no"))):
        if group[key] not in known:
            raise Unreadable(f"{where}: {key}={group[key]} is not known")
    if not 0 <= index < LINKS_MAX:
        raise Unreadable(f"{where}: index {index} is outside 0..{LINKS_MAX - 1}")
    if CODE_MIN in redirect or CODE_MAX in redirect or len(redirect) > hook.states * 8:
        raise Unreadable(f"{where}: redirect is no list of codes")
    if len(set(saved)) != len(saved) or (saved and (index == 0 or group["mode"] == "map")):
        raise Unreadable(f"{where}: saved={group['saved']} makes no sense there")
    prefix, _, digest = group["input"].partition(":")
    if prefix != "sha256" or len(digest) != 64:
        raise Unreadable(f"{where}: input={group['input']} is no sha256")
    return Intent(
        program=group["link"], hook=hook, index=index, success=success, redirect=redirect,
        saved=saved, mode=group["mode"], last=group["last"] == "yes", slots_map=group["slots"],
        strategy=group["strategy"], keep=group["keep"] or None, front=front, body=body,
        debug=group["debug"], input_sha256=digest, tool=group["tool"],
    )  # fmt: skip

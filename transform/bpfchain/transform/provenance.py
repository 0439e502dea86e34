"""The ``.bpfchain`` section: what a patched object says of itself.

A string table of ``key=value`` entries, one group a link, each group begun by ``link=PROGRAM``. The
type STRTAB with flag ALLOC is what survives strip and objcopy and what every loader reads over
silently (DESIGN section 3). ``bpfchain verify`` believes no more of it than what was intended.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from . import records as r
from .codes import CodeSet
from .elf import Object
from .elf_edit import add_section, change_section
from .errors import RefusedError, UsageError
from .link import Link
from .policy import hook_named

__all__ = ["Provenance", "read_provenance", "with_provenance"]

SECTION: Final = ".bpfchain"
_FORMAT: Final = "1"


@dataclass(frozen=True, slots=True)
class Provenance:
    """One link of a patched object, as it was intended."""

    program: str
    link: Link
    strategy: str
    debug: str
    input_sha256: str
    tool: str
    why: str
    keep: str | None
    front: int
    """Added instructions before the body, of an entry that keeps it in place."""
    body: int
    """Instructions of the body."""

    def to_strings(self) -> tuple[str, ...]:
        """The group's entries."""
        link = self.link
        fields = {
            "link": self.program,
            "format": _FORMAT,
            "tool": self.tool,
            "hook": link.hook.name,
            "index": str(link.index),
            "success": _codes_text(link.success),
            "redirect": _codes_text(link.redirect),
            "saved": ",".join(map(str, link.saved)),
            "mode": link.mode,
            "last": "yes" if link.last else "no",
            "slots": link.slots_map,
            "strategy": self.strategy,
            "why": self.why,
            "keep": self.keep or "",
            "front": str(self.front),
            "body": str(self.body),
            "debug": self.debug,
            "input": f"sha256:{self.input_sha256}",
        }
        return tuple(f"{key}={value}" for key, value in fields.items())


def _codes_text(codes: CodeSet) -> str:
    return codes.describe({})


def with_provenance(obj: Object, entry: Provenance) -> Object:
    """The object that also says this."""
    added = b"".join(text.encode() + b"\0" for text in entry.to_strings())
    section = obj.section(SECTION)
    if section is not None:
        return change_section(obj, section.id, section.data + added)
    return add_section(obj, SECTION, b"\0" + added, type=r.SHT_STRTAB, flags=r.SHF_ALLOC)[0]


def read_provenance(obj: Object) -> tuple[Provenance, ...]:
    """The links that the object says it holds, in the order they were made.

    Raises RefusedError where the section is not as ``with_provenance`` writes it.
    """
    section = obj.section(SECTION)
    if section is None:
        return ()
    groups: list[dict[str, str]] = []
    try:
        for text in section.data.decode().split("\0"):
            key, _, value = text.partition("=")
            if key == "link":
                groups.append({})
            if key and not groups:
                raise ValueError(text)
            if key:
                groups[-1][key] = value
        return tuple(_read(MappingProxyType(group)) for group in groups)
    except (ValueError, KeyError, UsageError) as error:
        raise RefusedError(
            f"section {SECTION} is not readable ({error})",
            "it was written by another version, or damaged",
        ) from None


def _read(group: MappingProxyType[str, str]) -> Provenance:
    if group["format"] != _FORMAT:
        raise ValueError(f"format {group['format']}")
    link = Link(
        hook=hook_named(group["hook"]),
        index=int(group["index"]),
        success=CodeSet.parse(group["success"], {}, what=SECTION),
        redirect=CodeSet.parse(group["redirect"], {}, what=SECTION),
        saved=tuple(int(code) for code in group["saved"].split(",") if code),
        mode=group["mode"],
        last=group["last"] == "yes",
        slots_map=group["slots"],
    )
    return Provenance(
        program=group["link"], link=link, strategy=group["strategy"], debug=group["debug"],
        input_sha256=group["input"].removeprefix("sha256:"), tool=group["tool"],
        why=group["why"],
        keep=group["keep"] or None,
        front=int(group["front"]),
        body=int(group["body"]),
    )  # fmt: skip

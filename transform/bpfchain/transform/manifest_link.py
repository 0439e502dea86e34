"""The record of one link in a manifest.

A record is what was intended (``Link``), what came out (``Patched``, without its bytes) and which
files these are. It says nothing of its hook, mode and slots map: those are the whole chain's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .document import DIGEST, FILE, ONE_LINE, Form, Reader
from .errors import RefusedError, UsageError
from .link import Link
from .manifest_codes import at_key, code_json, codes_json, read_code, read_codes
from .manifest_proof import Verified
from .policy import LINKS_MAX, Hook
from .request import ALLOWANCES, Cost, EntryProgram, MapUse, Need, Patched

__all__ = ["DEBUG_KINDS", "STRATEGIES", "LinkRecord", "ManifestError", "record_of"]

STRATEGIES = ("inline", "subprog", "none")
DEBUG_KINDS = ("none", "kept", "dropped")

_U32_MAX = (1 << 32) - 1
_COUNT_MAX = (1 << 31) - 1
_KERNEL = Form("a kernel version such as 5.10", r"[0-9]+\.[0-9]+")


class ManifestError(RefusedError):
    """A manifest is not as its schema says, or contradicts itself (exit 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRecord:
    """One link as recorded. ``object`` is the patched file and ``input_file`` the one it was made of
    (None: it came from stdin), relative to the manifest, with ``/``; the other fields are those of
    ``Patched``."""

    link: Link
    object: str
    input_file: str | None
    input_sha256: str
    output_sha256: str
    program: str
    section: str
    entries: tuple[EntryProgram, ...]
    strategy: str
    why: str
    keep: str | None
    pinned: bool
    frags: bool
    before: Cost
    after: Cost
    debug: str
    license: str
    maps: tuple[MapUse, ...]
    needs: tuple[Need, ...]
    redirects: tuple[str, ...]
    tail_calls: bool
    allowed: tuple[str, ...]
    warnings: tuple[str, ...]
    verified: Verified | None = None

    @property
    def index(self) -> int:
        """The link's place in the chain."""
        return self.link.index

    @property
    def label(self) -> str:
        """The link in an error: ``link 2 (link2.o)``."""
        return f"link {self.index} ({self.object})"

    @classmethod
    def from_dict(cls, value: Any, hook: Hook, mode: str, slots_map: str) -> LinkRecord:
        """Read what ``to_dict`` wrote, for a chain of that hook, mode and slots map.

        Raises ManifestError.
        """
        return cls.read(Reader(value, ManifestError), hook, mode, slots_map)

    @classmethod
    def read(cls, r: Reader, hook: Hook, mode: str, slots_map: str) -> LinkRecord:
        """As ``from_dict``, at its place in a document."""
        link = _read_link(r, hook, mode, slots_map)
        instructions, stack = r.nested("instructions"), r.nested("stack")
        given = r.nested("input")
        record = cls(
            link=link,
            object=r.text("object", FILE),
            input_file=None if given.null("file") else given.text("file", FILE),
            input_sha256=_read_digest(given),
            output_sha256=_read_digest(r.nested("output")),
            program=r.text("program"),
            section=r.text("section"),
            entries=_read_entries(r, link),
            strategy=r.choice("strategy", STRATEGIES),
            why=r.text("why", ONE_LINE),
            keep=None if r.null("keep") else r.text("keep"),
            pinned=r.flag("pinned"),
            frags=r.flag("frags"),
            before=_read_cost("before", instructions, stack),
            after=_read_cost("after", instructions, stack),
            debug=r.choice("debug", DEBUG_KINDS),
            license=r.text("license", ONE_LINE),
            maps=tuple(_read_map(item) for item in r.objects("maps")),
            needs=tuple(_read_need(item) for item in r.objects("needs")),
            redirects=r.texts("redirects"),
            tail_calls=r.flag("tail_calls"),
            allowed=_read_allowed(r),
            warnings=r.texts("warnings"),
            verified=None if r.null("verified") else Verified.read(r.nested("verified")),
        )
        instructions.finish()
        stack.finish()
        r.finish()
        if record.program != record.entries[0].name:
            r.fail(f"the first entry is {record.entries[0].name}, not the program", at="program")
        return record

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        link, hook = self.link, self.link.hook
        return {
            "index": link.index,
            "object": self.object,
            "input": {"file": self.input_file, "sha256": self.input_sha256},
            "output": {"sha256": self.output_sha256},
            "program": self.program,
            "section": self.section,
            "entries": [
                {
                    "state": None if entry.state is None else code_json(entry.state, hook),
                    "program": entry.name,
                    "slot": entry.slot,
                }
                for entry in self.entries
            ],
            "strategy": self.strategy,
            "why": self.why,
            "keep": self.keep,
            "success": codes_json(link.success, hook),
            "redirect": codes_json(link.redirect, hook),
            "saved": [code_json(code, hook) for code in link.saved],
            "last": link.last,
            "pinned": self.pinned,
            "frags": self.frags,
            "instructions": {"before": self.before.instructions, "after": self.after.instructions},
            "stack": {"before": self.before.stack, "after": self.after.stack},
            "debug": self.debug,
            "license": self.license,
            "maps": [
                {key: getattr(use, key) for key in ("name", *_MAP_NUMBERS)} for use in self.maps
            ],
            "needs": [
                {"what": need.what, "why": need.why, "kernels": dict(need.kernels)}
                for need in self.needs
            ],
            "redirects": list(self.redirects),
            "tail_calls": self.tail_calls,
            "allowed": list(self.allowed),
            "warnings": list(self.warnings),
            "verified": self.verified and self.verified.to_dict(),
        }

    def validate(self) -> None:
        """Raise ManifestError unless the record says what its schema and its own link allow."""
        link = self.link
        again = LinkRecord.from_dict(self.to_dict(), link.hook, link.mode, link.slots_map)
        if again != self:
            differing = [key for key in self.__slots__ if getattr(self, key) != getattr(again, key)]
            raise ManifestError(f"in '{differing[0]}': reads back as another value")


def record_of(
    patched: Patched,
    *,
    object_path: str,
    input_path: str | None,
    input_sha256: str,
    output_sha256: str,
    verified: Verified | None = None,
) -> LinkRecord:
    """The record of a finished transformation. Both paths are relative to the manifest, with ``/``;
    digests are lower-case hexadecimal. Lists without an order of their own are sorted."""
    return LinkRecord(
        link=patched.link,
        object=object_path,
        input_file=input_path,
        input_sha256=input_sha256,
        output_sha256=output_sha256,
        program=patched.program,
        section=patched.section,
        entries=patched.entries,
        strategy=patched.strategy,
        why=patched.why,
        keep=patched.keep,
        pinned=patched.pinned,
        frags=patched.frags,
        before=patched.before,
        after=patched.after,
        debug=patched.debug,
        license=patched.license,
        maps=patched.maps,
        needs=tuple(
            Need(need.what, need.why, tuple(sorted(need.kernels))) for need in patched.needs
        ),
        redirects=tuple(sorted(set(patched.redirects))),
        tail_calls=patched.tail_calls,
        allowed=tuple(sorted(set(patched.allowed))),
        warnings=patched.warnings,
        verified=verified,
    )


def _read_link(r: Reader, hook: Hook, mode: str, slots_map: str) -> Link:
    fields: dict[str, Any] = {
        "index": r.integer("index", 0, LINKS_MAX - 1),
        "success": read_codes(r, "success", hook),
        "redirect": read_codes(r, "redirect", hook),
        "saved": tuple(read_code(item, hook) for item in r.objects("saved")),
        "last": r.flag("last"),
    }
    if len(set(fields["saved"])) < len(fields["saved"]):
        r.fail("a code is there twice", at="saved")
    try:
        return Link(hook=hook, mode=mode, slots_map=slots_map, **fields)
    except UsageError as error:
        key, message = at_key(error)
        r.fail(message, error.hint, at=key)


def _read_entries(r: Reader, link: Link) -> tuple[EntryProgram, ...]:
    hook = link.hook
    entries: list[EntryProgram] = []
    for item in r.objects("entries"):
        state = None if item.null("state") else read_code(item.nested("state"), hook)
        name, slot = item.text("program"), item.integer("slot", 0, hook.slots - 1)
        item.finish()
        if state is not None and state not in link.states:
            item.fail(f"{hook.name_of(state)} is not in 'saved'", at="state")
        if slot != hook.slot(state, link.index):
            right = hook.slot(state, link.index)
            item.fail(f"{slot} is another link's or state's slot: it must be {right}", at="slot")
        if any(name == entry.name for entry in entries):
            item.fail(f"two entries have the name {name}", at="program")
        entries.append(EntryProgram(name, state, slot))
    if tuple(entry.state for entry in entries) != link.states:
        wanted = ", ".join("none" if s is None else hook.name_of(s) for s in link.states)
        r.fail(f"there must be one for each state, in this order: {wanted}", at="entries")
    return tuple(entries)


def _read_digest(value: Reader) -> str:
    digest = value.text("sha256", DIGEST)
    value.finish()
    return digest


def _read_cost(key: str, instructions: Reader, stack: Reader) -> Cost:
    return Cost(
        instructions.integer(key, 0, _COUNT_MAX),
        None if stack.null(key) else stack.integer(key, 0, _COUNT_MAX),
    )


_MAP_NUMBERS = ("type", "key_size", "value_size", "max_entries", "flags")


def _read_map(item: Reader) -> MapUse:
    numbers = {k: None if item.null(k) else item.integer(k, 0, _U32_MAX) for k in _MAP_NUMBERS}
    use = MapUse(item.text("name"), **numbers)
    item.finish()
    return use


def _read_need(item: Reader) -> Need:
    table = item.nested("kernels")
    kernels = tuple(
        (arch, None if table.null(arch) else table.text(arch, _KERNEL)) for arch in table.names()
    )
    need = Need(item.text("what"), item.text("why", ONE_LINE), kernels)
    item.finish()
    return need


def _read_allowed(r: Reader) -> tuple[str, ...]:
    words = r.texts("allowed")
    for n, word in enumerate(words):
        if word not in ALLOWANCES:
            r.fail(f"{word!r} is not one of {', '.join(ALLOWANCES)}", at=f"allowed[{n}]")
    return words

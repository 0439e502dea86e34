"""The manifest: what a chain is, link by link, for the loader and the verifier.

A value with no file and no clock; ``manifest_file`` reads and writes it, ``chain_check`` says
whether a chain is whole, ``schema/manifest-1.json`` is the published form. Reading is strict: a
document of another major version, with a key that is not in the schema or with a number that
contradicts the policy table is refused, with the path inside the document.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any, Final

from .document import Form, Reader
from .errors import UsageError
from .link import Link
from .manifest_link import LinkRecord, ManifestError, record_of
from .manifest_proof import Tool
from .policy import LINKS_MAX, Hook, hook_named
from .version import VERSION

__all__ = [
    "CHAIN_NAME",
    "FORMAT_VERSION",
    "MAP_NAME",
    "MODES",
    "LinkRecord",
    "Manifest",
    "ManifestError",
    "Share",
    "SharedMap",
    "new_manifest",
    "record_of",
    "schema_text",
]

FORMAT_VERSION: Final = 1
MODES = ("slots", "map")
CHAIN_NAME = Form("a name of 1 to 64 characters without '/'", r"[^/\x00-\x1f\x7f]{1,64}")
MAP_NAME = Form("a map name: 1 to 15 letters, digits or '_'", r"[A-Za-z0-9_]{1,15}")
_THIS = Tool(name="bpfchain", version=VERSION)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedMap:
    """A map of a link."""

    index: int
    map: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Maps of several links that are one map. ``map`` is the name of the one."""

    map: str
    links: tuple[SharedMap, ...]

    @classmethod
    def read(cls, value: Reader) -> Share:
        """Read what ``to_dict`` wrote."""
        links = []
        for item in value.objects("links"):
            index = item.integer("index", 0, LINKS_MAX - 1)
            links.append(SharedMap(index=index, map=item.text("map")))
            item.finish()
        share = cls(map=value.text("map"), links=tuple(links))
        value.finish()
        if len(set(links)) < 2:
            value.fail("a map is shared by at least two", at="links")
        if share != share.ordered():
            value.fail("must be in order, each map once", at="links")
        return share

    def ordered(self) -> Share:
        """The same share, each map once, in the order of links and names."""
        return Share(
            map=self.map, links=tuple(sorted(set(self.links), key=lambda m: (m.index, m.map)))
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        links = [{"index": member.index, "map": member.map} for member in self.links]
        return {"map": self.map, "links": links}


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A chain, whole or under construction: ``links`` are in the order of their indexes, which may
    have gaps until ``chain_check.validate_complete`` is asked."""

    chain: str
    hook: Hook
    saved_code: str
    slots_map: str
    extensible: bool = False
    links: tuple[LinkRecord, ...] = ()
    share: tuple[Share, ...] = ()
    tool: Tool = _THIS

    @classmethod
    def from_dict(cls, value: object) -> Manifest:
        """Read what ``to_dict`` wrote. Raises ManifestError with the path inside the document."""
        r = Reader(value, ManifestError)
        _read_version(r)
        name = r.text("hook")
        hook = _hook(r, name)
        for key, right in (("attach_type", hook.attach_type), ("prog_type", hook.prog_type)):
            if r.raw(key) != right:
                r.fail(f"must be {'null' if right is None else right} for hook {name}", at=key)
        slots = r.nested("slots")
        slots_map = slots.text("map", MAP_NAME)
        entries = slots.integer("max_entries", 1, (1 << 32) - 1)
        slots.finish()
        if entries != hook.slots:
            slots.fail(
                f"{entries} is the table of another version: {name} has {hook.slots} slots",
                "patch the links again with one version",
                at="max_entries",
            )
        mode = r.choice("saved_code", MODES)
        links = tuple(LinkRecord.read(item, hook, mode, slots_map) for item in r.objects("links"))
        for n, (first, second) in enumerate(itertools.pairwise(links), start=1):
            if first.index >= second.index:
                r.fail(
                    f"{second.index} comes after {first.index}: indexes must rise",
                    at=f"links[{n}].index",
                )
        manifest = cls(
            chain=r.text("chain", CHAIN_NAME),
            hook=hook,
            saved_code=mode,
            slots_map=slots_map,
            extensible=r.flag("extensible"),
            links=links,
            share=_read_shares(r),
            tool=Tool.read(r.nested("tool")),
        )
        r.finish()
        return manifest

    def to_dict(self) -> dict[str, Any]:
        """The JSON document."""
        return {
            "version": FORMAT_VERSION,
            "tool": self.tool.to_dict(),
            "chain": self.chain,
            "hook": self.hook.name,
            "attach_type": self.hook.attach_type,
            "prog_type": self.hook.prog_type,
            "saved_code": self.saved_code,
            "slots": {"map": self.slots_map, "max_entries": self.hook.slots},
            "extensible": self.extensible,
            "links": [record.to_dict() for record in self.links],
            "share": [share.to_dict() for share in self.share],
        }

    def validate(self) -> None:
        """Raise ManifestError unless every record is sound and belongs to this chain.

        Says nothing about links that are not there yet: see ``chain_check.validate_complete``.
        """
        for n, record in enumerate(self.links):
            differing = self._differs(record.link)
            if differing:
                raise ManifestError(f"in 'links[{n}]': {record.label} {differing}", _ONE_HOOK)
        if Manifest.from_dict(self.to_dict()) != self:
            raise ManifestError("the manifest reads back as another value: build it from records")

    def record(self, index: int) -> LinkRecord | None:
        """The record of link ``index``, None where there is none."""
        return next((record for record in self.links if record.index == index), None)

    def with_record(self, record: LinkRecord) -> Manifest:
        """This manifest with the record in the place of one with the same index.

        Raises ManifestError where the record's hook, mode or slots map is not the chain's.
        """
        differing = self._differs(record.link)
        if differing:
            raise ManifestError(f"{record.label} {differing}", _ONE_HOOK)
        others = [known for known in self.links if known.index != record.index]
        links = tuple(sorted([*others, record], key=lambda known: known.index))
        return dataclasses.replace(self, links=links, tool=_THIS)

    def _differs(self, link: Link) -> str | None:
        mine = (self.hook.name, self.hook.slots, self.saved_code, self.slots_map)
        theirs = (link.hook.name, link.hook.slots, link.mode, link.slots_map)
        for what, right, found in zip(_COMMON, mine, theirs, strict=True):
            if right != found:
                return f"has {what} {found}, the chain {self.chain} has {right}"
        return None


_COMMON = ("hook", "slots", "saved-code mode", "slots map")
_ONE_HOOK = (
    "a chain has one hook, one mode and one slots map: use a manifest of its own for another"
)


def new_manifest(
    chain_name: str,
    record: LinkRecord,
    *others: LinkRecord,
    extensible: bool = False,
    share: tuple[Share, ...] = (),
) -> Manifest:
    """The manifest of a chain with these records, of which the first says hook, mode and slots map.

    Raises ManifestError where another one differs in them.
    """
    link = record.link
    manifest = Manifest(
        chain=chain_name,
        hook=link.hook,
        saved_code=link.mode,
        slots_map=link.slots_map,
        extensible=extensible,
        share=tuple(sorted((one.ordered() for one in share), key=lambda one: one.map)),
    )
    for one in (record, *others):
        if manifest.record(one.index) is not None:
            raise ManifestError(f"two records for link {one.index}")
        manifest = manifest.with_record(one)
    return manifest


def schema_text() -> str:
    """The JSON Schema (2020-12) of a manifest, as the package carries it."""
    from importlib.resources import files  # nothing else needs it: keeps start-up short

    return (files(__package__) / "schema" / f"manifest-{FORMAT_VERSION}.json").read_text("utf-8")


def _read_version(r: Reader) -> None:
    version = r.integer("version", 0, (1 << 31) - 1)
    if version != FORMAT_VERSION:
        r.fail(
            f"{version} is unknown to bpfchain {VERSION}, which reads {FORMAT_VERSION}",
            "use the version of bpfchain that wrote the manifest",
            at="version",
        )


def _hook(r: Reader, name: str) -> Hook:
    try:
        return hook_named(name)
    except UsageError as error:
        r.fail(error.message, error.hint, at="hook")


def _read_shares(r: Reader) -> tuple[Share, ...]:
    shares = tuple(Share.read(item) for item in r.objects("share"))
    seen: dict[SharedMap, str] = {}
    for n, share in enumerate(shares):
        if n and shares[n - 1].map >= share.map:
            r.fail("names must rise", at=f"share[{n}].map")
        for member in share.links:
            if member in seen:
                r.fail(
                    f"map {member.map} of link {member.index} is already in {seen[member]}",
                    at=f"share[{n}].links",
                )
            seen[member] = share.map
    return shares

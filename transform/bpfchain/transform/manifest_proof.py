"""What verified a link, as its manifest record holds it.

The verifier writes these values. The objects are typed and open: keys that this version does not
know are kept as they are (``more``), so that reading and writing a manifest loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .document import DIGEST, Reader

__all__ = ["RESULTS", "Corpus", "Coverage", "DynamicProof", "StaticProof", "Tool", "Verified"]

RESULTS = ("equal", "inconclusive", "not-run")
"""There is no "not equal": nothing is written, and nothing recorded, for such a link."""

_COUNT_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A program that wrote or verified something, with its version."""

    name: str
    version: str

    @classmethod
    def read(cls, value: Reader) -> Tool:
        """Read what ``to_dict`` wrote."""
        tool = cls(name=value.text("name"), version=value.text("version"))
        value.finish()
        return tool

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {"name": self.name, "version": self.version}


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A recording that a link was run on."""

    name: str
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {"name": self.name, "sha256": self.sha256}


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How many edges of the body's control flow the runs took, ``of`` how many."""

    edges: int
    of: int

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {"edges": self.edges, "of": self.of}


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticProof:
    """The result of the static checker, and the ELF readers that it used."""

    result: str
    readers: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, value: Reader) -> StaticProof:
        """Read what ``to_dict`` wrote."""
        result, readers = value.choice("result", RESULTS), value.texts("readers")
        return cls(result=result, readers=readers, more=value.rest())

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {**self.more, "result": self.result, "readers": list(self.readers)}


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicProof:
    """The result of running the original and the patched program: where, on what, how much."""

    result: str
    engines: tuple[str, ...] = ()
    corpora: tuple[Corpus, ...] = ()
    packets: int = 0
    coverage: Coverage | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, value: Reader) -> DynamicProof:
        """Read what ``to_dict`` wrote."""
        corpora = []
        for item in value.objects("corpora"):
            corpora.append(Corpus(name=item.text("name"), sha256=item.text("sha256", DIGEST)))
            item.finish()
        return cls(
            result=value.choice("result", RESULTS),
            engines=value.texts("engines"),
            corpora=tuple(corpora),
            packets=value.integer("packets", 0, _COUNT_MAX),
            coverage=None if value.null("coverage") else _coverage(value.nested("coverage")),
            more=value.rest(),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            **self.more,
            "result": self.result,
            "engines": list(self.engines),
            "corpora": [corpus.to_dict() for corpus in self.corpora],
            "packets": self.packets,
            "coverage": self.coverage and self.coverage.to_dict(),
        }


def _coverage(value: Reader) -> Coverage:
    of = value.integer("of", 0, _COUNT_MAX)
    found = Coverage(edges=value.integer("edges", 0, of), of=of)
    value.finish()
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """Both halves of a proof, and what ran them."""

    tool: Tool
    static: StaticProof
    dynamic: DynamicProof
    more: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, value: Reader) -> Verified:
        """Read what ``to_dict`` wrote."""
        return cls(
            tool=Tool.read(value.nested("tool")),
            static=StaticProof.read(value.nested("static")),
            dynamic=DynamicProof.read(value.nested("dynamic")),
            more=value.rest(),
        )

    def to_dict(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            **self.more,
            "tool": self.tool.to_dict(),
            "static": self.static.to_dict(),
            "dynamic": self.dynamic.to_dict(),
        }

"""A scenario: what a run depends on besides its packets, as a versioned JSON document.

It lies beside a capture (``x.pcap`` and ``x.scenario.json``) or is given with ``--scenario``. All of
it may be left out; ``schema/scenario-1.json`` is the published form. Reading is strict: a document
of another version, with a key that is not in the schema or a value out of range is refused, with the
path inside the document. Numbers above 2^53 are better written as texts ("0xffff888000000000"),
since many JSON tools round them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from bpfchain.transform.document import ONE_LINE, Form, Reader, parse_json
from bpfchain.transform.errors import RefusedError, UsageError
from bpfchain.verify.contexts import SkbContext, XdpContext
from bpfchain.verify.helper_answers import Answers
from bpfchain.verify.numbers import U64, content, hex_bytes, hex_text, number

__all__ = ["EMPTY", "FORMAT_VERSION", "MapEntry", "Scenario", "scenario_beside", "schema_text"]

FORMAT_VERSION: Final = 1
NAME = Form("a name of letters, digits, '_', '.' or '$'", r"[A-Za-z0-9_.$]+")


class MapEntry(NamedTuple):
    """An entry that a map holds at the start: bytes as they stand in memory, or a number that takes
    the map's size when it is known."""

    key: bytes | int
    value: bytes | int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """See the module. Contexts are used in turn: the packet with number n has context n modulo
    their number. For plain hooks each context is a run."""

    description: str = ""
    xdp: tuple[XdpContext, ...] = ()
    skb: tuple[SkbContext, ...] = ()
    raw: tuple[bytes, ...] = ()
    """Contexts of plain hooks, all of one length."""
    maps: Mapping[str, tuple[MapEntry, ...]] = field(default_factory=dict)
    answers: Answers = Answers()  # noqa: RUF009 - a frozen value
    kconfig: Mapping[str, int | str] = field(default_factory=dict)
    ksyms: Mapping[str, int] = field(default_factory=dict)
    memory: Mapping[int, bytes] = field(default_factory=dict)
    """Address -> bytes there, for helpers of the probe_read kind."""
    times: tuple[int, ...] = ()
    """What bpf_ktime_get_ns gives first, one a packet (ns since boot)."""

    @classmethod
    def from_dict(cls, value: object) -> Scenario:
        """Read what ``to_dict`` wrote. Raises RefusedError with the path inside the document."""
        r = Reader(value, RefusedError)
        version = r.integer("version", 0, (1 << 31) - 1)
        if version != FORMAT_VERSION:
            r.fail(f"{version} is unknown, this bpfchain reads {FORMAT_VERSION}", at="version")
        found: dict[str, Any] = {}
        if r.has("description"):
            found["description"] = r.text("description", ONE_LINE)
        if r.has("contexts"):
            found |= _read_contexts(r.nested("contexts"))
        if r.has("maps"):
            found["maps"] = _read_maps(r.nested("maps"))
        if r.has("answers"):
            found["answers"] = Answers.read(r.nested("answers"))
        if r.has("kconfig"):
            found["kconfig"] = _read_kconfig(r.nested("kconfig"))
        if r.has("ksyms"):
            symbols = r.nested("ksyms")
            found["ksyms"] = {
                name: number(symbols, symbols.raw(name), name) for name in _names(symbols)
            }
        if r.has("memory"):
            found["memory"] = _read_memory(r)
        if r.has("times"):
            found["times"] = tuple(
                number(r, value, f"times[{n}]") for n, value in enumerate(r.items("times"))
            )
        r.finish()
        return cls(**found)

    @classmethod
    def from_json(cls, data: bytes, name: str) -> Scenario:
        """Read a file's bytes; ``name`` stands in errors. Raises RefusedError."""
        try:
            return cls.from_dict(parse_json(data, RefusedError))
        except RefusedError as error:
            raise error.within(name) from None

    def to_dict(self) -> dict[str, Any]:
        """The JSON object, without what is empty or the default."""
        contexts = {
            "xdp": [context.to_dict() for context in self.xdp],
            "skb": [context.to_dict() for context in self.skb],
            "raw": [hex_text(context) for context in self.raw],
        }
        document = {
            "description": self.description,
            "contexts": {key: value for key, value in contexts.items() if value},
            "maps": {
                name: [
                    {"key": _plain(entry.key), "value": _plain(entry.value)} for entry in entries
                ]
                for name, entries in sorted(self.maps.items())
            },
            "answers": self.answers.to_dict(),
            "kconfig": dict(sorted(self.kconfig.items())),
            "ksyms": {name: hex(address) for name, address in sorted(self.ksyms.items())},
            "memory": [
                {"address": hex(address), "bytes": hex_text(data)}
                for address, data in sorted(self.memory.items())
            ],
            "times": list(self.times),
        }
        return {"version": FORMAT_VERSION} | {key: v for key, v in document.items() if v}

    def to_json(self) -> bytes:
        """The document's bytes, as they are written beside a capture."""
        return (json.dumps(self.to_dict(), indent=2) + "\n").encode()

    def seeds(
        self,
        sizes: Mapping[str, tuple[int, int]],
        byteorder: Literal["little", "big"] = "little",
    ) -> tuple[tuple[str, bytes, bytes], ...]:
        """Initial map entries (map, key, value) of maps in ``sizes`` (name -> bytes of key and value).

        Entries of other maps are left out: ``unknown_maps`` tells of them. Raises UsageError for a
        key or value that does not fit.
        """
        return tuple(
            (
                name,
                _sized(entry.key, sizes[name][0], byteorder, f"key of entry {n} of map {name}"),
                _sized(entry.value, sizes[name][1], byteorder, f"value of entry {n} of map {name}"),
            )
            for name, entries in self.maps.items()
            if name in sizes
            for n, entry in enumerate(entries)
        )

    def unknown_maps(self, known: Sequence[str]) -> tuple[str, ...]:
        """Names of maps in the scenario that are not among ``known``: misspelt, or of other links."""
        return tuple(name for name in self.maps if name not in known)

    def kconfig_bytes(self) -> dict[str, bytes]:
        """Configuration values as they stand in memory (little-endian, closing zeros left off, so
        that a value fits a variable of any size)."""
        return {
            name: value.encode()
            if isinstance(value, str)
            else value.to_bytes(max(1, (value.bit_length() + 7) // 8), "little")
            for name, value in self.kconfig.items()
        }


EMPTY: Final = Scenario()


def scenario_beside(capture: Path) -> Path:
    """Where the scenario of a capture lies: ``x.scenario.json`` beside ``x.pcap``."""
    return capture.with_name(capture.stem + ".scenario.json")


def schema_text() -> str:
    """The JSON Schema (2020-12) of a scenario, as the package carries it."""
    path = Path(__file__).parent / "schema" / f"scenario-{FORMAT_VERSION}.json"
    return path.read_text("utf-8")


def _sized(given: bytes | int, size: int, byteorder: Literal["little", "big"], what: str) -> bytes:
    if isinstance(given, bytes):
        if len(given) != size:
            raise UsageError(f"scenario: {what} has {len(given)} bytes, the map's have {size}")
        return given
    try:
        return given.to_bytes(size, byteorder, signed=given < 0)
    except OverflowError:
        raise UsageError(f"scenario: {what} is {given}, which {size} bytes do not hold") from None


def _plain(value: bytes | int) -> str | int:
    return hex_text(value) if isinstance(value, bytes) else value


def _names(r: Reader) -> tuple[str, ...]:
    names = r.names()
    for name in names:
        if not NAME.pattern.fullmatch(name):
            r.fail(f"expected {NAME.name}", at=name)
    return names


def _read_contexts(r: Reader) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if r.has("xdp"):
        found["xdp"] = tuple(XdpContext.read(item) for item in r.objects("xdp"))
    if r.has("skb"):
        found["skb"] = tuple(SkbContext.read(item) for item in r.objects("skb"))
    if r.has("raw"):
        raw = tuple(hex_bytes(r, item, f"raw[{n}]") for n, item in enumerate(r.items("raw")))
        for n, context in enumerate(raw):
            if not context or len(context) != len(raw[0]):
                r.fail("all contexts have one length, and it is not 0", at=f"raw[{n}]")
        found["raw"] = raw
    r.finish()
    for key, value in found.items():
        if not value:
            r.fail("is empty: leave it out for the defaults", at=key)
    return found


def _read_maps(r: Reader) -> dict[str, tuple[MapEntry, ...]]:
    found: dict[str, tuple[MapEntry, ...]] = {}
    for name in _names(r):
        entries = []
        for item in r.objects(name):
            entries.append(
                MapEntry(
                    content(item, item.raw("key"), "key"), content(item, item.raw("value"), "value")
                )
            )
            item.finish()
        if not entries:
            r.fail("is empty: leave the map out", at=name)
        found[name] = tuple(entries)
    return found


def _read_kconfig(r: Reader) -> dict[str, int | str]:
    found: dict[str, int | str] = {}
    for name in _names(r):
        value = r.raw(name)
        if isinstance(value, str):
            found[name] = r.text(name, ONE_LINE)
        else:
            found[name] = r.integer(name, 0, U64)
    return found


def _read_memory(r: Reader) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    for item in r.objects("memory"):
        address = number(item, item.raw("address"), "address")
        data = hex_bytes(item, item.raw("bytes"), "bytes")
        item.finish()
        if not data:
            item.fail("is empty", at="bytes")
        if address + len(data) - 1 > U64:
            item.fail("ends beyond the last address", at="bytes")
        for start, other in found.items():
            if start < address + len(data) and address < start + len(other):
                item.fail(f"overlaps what is at {start:#x}", at="address")
        found[address] = data
    return found

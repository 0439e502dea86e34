"""A counterexample in the HTML page: what differs, and the packet by fields, before and after."""

from __future__ import annotations

from collections.abc import Iterator

from ..result import Counterexample
from . import words
from .packet_fields import Field, fields_of
from .page import Html, details, element, join, table, text

__all__ = ["counterexample_of"]

_DATA = 512
"""Bytes of a packet that are shown by fields."""


def counterexample_of(example: Counterexample) -> Iterator[Html]:
    """All that is known of it."""
    facts: list[tuple[str, object]] = [
        ("packet", f"number {example.packet} of {example.corpus}, "
                 f"{words.plural(len(example.data), 'byte')}"),
        ("differs", example.dimension),
        ("expected", element("strong", example.expected)),
        ("got", element("strong", example.got)),
    ]  # fmt: skip
    if example.first_difference:
        facts.append(("first difference", str(example.first_difference)))
    if example.before:
        facts.append(
            ("before it", f"{words.plural(len(example.before), 'packet')} must run: see below")
        )
    if example.saved_as:
        facts.append(("saved as", element("code", example.saved_as)))
    yield element("dl", *(join((element("dt", name), element("dd", what))) for name, what in facts))
    if example.data:
        yield from _packet(example)
    if example.maps:
        rows = [(name, _mono(key), _mono(value)) for name, key, value in example.maps]
        yield element("h3", "Map entries that it needs")
        yield table(["map", "key", "value"], rows, classes=["name", "wrap", "wrap"])
    if any(example.context):
        yield details("Context", element("pre", example.context.hex(" ")))
    for number, packet in enumerate(example.before):
        title = f"Packet {number + 1} of {len(example.before)} before it, {words.plural(len(packet), 'byte')}"
        yield details(title, _table(["field", "bytes", "value"], _plain_rows(packet)))


def _packet(example: Counterexample) -> Iterator[Html]:
    if example.after is None:
        yield _table(["field", "bytes", "value"], _plain_rows(example.data))
    else:
        yield from _compared(example.data, *example.after)
    longest = max(len(example.data), *(len(data) for data in example.after or (b"",)))
    if longest > _DATA:
        yield element("p", f"… the first {_DATA} of {longest} bytes", class_="soft")


def _table(heads: list[str], rows: list[list[object]]) -> Html:
    return table(heads, rows, kind="packet", classes=["", *["mono"] * (len(heads) - 1)])


def _plain_rows(data: bytes) -> list[list[object]]:
    return [[item.name, item.data.hex(" "), item.value] for item in fields_of(data[:_DATA])]


def _compared(data: bytes, original: bytes, patched: bytes) -> Iterator[Html]:
    """Field beside field: as sent, as the original left it, as the patched program left it."""
    sent, left, right = (
        {item.name: item for item in fields_of(packet[:_DATA])}
        for packet in (data, original, patched)
    )
    names = list(dict.fromkeys((*sent, *left, *right)))
    rows, kinds = [], []
    for name in names:
        one, other = left.get(name), right.get(name)
        differs = (one.data if one else None) != (other.data if other else None)
        was = sent.get(name)
        changed = (was.data if was else None) != (one.data if one else None)
        kinds.append("differs" if differs else "changed" if changed else "")
        rows.append([name, _cell(was), _cell(one, was), _cell(other, one)])
    yield table(["field", "sent", "after the original", "after the patched program"], rows,
                kind="packet three", classes=["", "mono", "mono", "mono"], row_classes=kinds)  # fmt: skip
    if len(original) != len(patched):
        yield element("p", f"Lengths: {len(original)} and {len(patched)} bytes.")


def _cell(item: Field | None, beside: Field | None = None) -> Html:
    """The bytes, with those marked that are not as ``beside``; and what they mean."""
    if item is None:
        return element("span", "-", class_="soft")
    parts = []
    for at, byte in enumerate(item.data):
        same = beside is None or beside.data[at : at + 1] == bytes((byte,))
        parts.append(text(f"{byte:02x}") if same else element("mark", f"{byte:02x}"))
    meaning = element("span", item.value, class_="soft") if item.value else ""
    return element("span", join(parts, " "), meaning)


def _mono(data: bytes) -> Html:
    return element("span", data.hex(" "), class_="mono")

"""Numbers and bytes as scenarios write them: hexadecimal texts, lists of bytes, integers."""

from __future__ import annotations

from typing import Any

from bpfchain.transform.document import Form, Reader

__all__ = ["U64", "content", "hex_bytes", "hex_text", "number"]

U64 = (1 << 64) - 1
_HEX = Form("bytes as pairs of hexadecimal digits, with or without spaces",
            r"(?: *[0-9a-fA-F]{2})* *")  # fmt: skip
_NUMBER = Form(
    "an integer, or a text such as 0xffff888000000000", r"0x[0-9a-fA-F]{1,16}|[0-9]{1,20}"
)
_CONTENT_MAX = 1 << 64


def hex_text(data: bytes) -> str:
    """Bytes as documents write them."""
    return data.hex()


def hex_bytes(r: Reader, value: Any, at: str) -> bytes:
    """The bytes that a hexadecimal text (key or index ``at`` of ``r``) stands for."""
    if not isinstance(value, str) or not _HEX.pattern.fullmatch(value):
        r.fail(f"expected {_HEX.name}", at=at)
    return bytes.fromhex(value)


def number(r: Reader, value: Any, at: str, most: int = U64) -> int:
    """An integer from 0 to ``most``, which may be written as a text."""
    if isinstance(value, str) and _NUMBER.pattern.fullmatch(value):
        value = int(value, 16 if value.startswith("0x") else 10)
    if not isinstance(value, int) or isinstance(value, bool):
        r.fail(f"expected {_NUMBER.name}", at=at)
    if not 0 <= value <= most:
        r.fail(f"is outside 0..{most:#x}", at=at)
    return value


def content(r: Reader, value: Any, at: str) -> bytes | int:
    """A map's key or value: a hexadecimal text, a list of bytes, or an integer."""
    if isinstance(value, list):
        if not all(type(item) is int and 0 <= item <= 255 for item in value):
            r.fail("expected integers from 0 to 255", at=at)
        return bytes(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if not -_CONTENT_MAX // 2 <= value < _CONTENT_MAX:
            r.fail("does not fit 64 bits: write it as bytes", at=at)
        return value
    if not isinstance(value, str):
        r.fail("expected a hexadecimal text, a list of bytes or an integer", at=at)
    return hex_bytes(r, value, at)

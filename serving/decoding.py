"""Feast's stored values, which are serialised protobuf messages, as Python's.

https://protobuf.dev/programming-guides/encoding; fields: feast.types.Value. An empty value is null.
What is not exactly one value of the type raises one of WRONG_BYTES: nothing is guessed.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MORE, SEVEN = 128, 127
"""In each byte of a varint: there is another one; the payload."""
INT64_TAG, DOUBLE_TAG, STRING_TAG = 0x20, 0x29, 0x12
EMPTY = b""
EIGHT, MORES = 8, 0x8080808080808080
"""Bytes, and the bit of each that says that there is another."""
WRONG_BYTES = (IndexError, TypeError, ValueError, struct.error)
_double = struct.Struct("<Bd").unpack


def varint(raw: bytes, at: int) -> tuple[int, int]:
    """Return the int64 (two's complement) at `at`, and where it ends."""
    value = shift = 0
    for byte in raw[at:]:
        value |= (byte & SEVEN) << shift
        shift += 7
        if byte < MORE:
            break
    else:
        raise ValueError("a varint without an end")
    if value >= 1 << 64:
        raise ValueError("a varint of more than 64 bits")
    return (value if value < 1 << 63 else value - (1 << 64)), at + shift // 7


def int64(raw: bytes) -> int | None:
    if raw == EMPTY:
        return None
    if raw[0] != INT64_TAG:
        raise ValueError("no int64")
    if len(raw) == 2 and raw[1] < MORE:  # noqa: PLR2004
        return raw[1]
    if len(raw) == 1 + EIGHT:
        bits = int.from_bytes(raw[1:], "little")
        if bits & MORES == MORES >> 8:
            return _eight_bytes(bits)
    value, end = varint(raw, 1)
    if end != len(raw):
        raise ValueError("no int64")
    return value


def _eight_bytes(bits: int) -> int:
    """As `varint`, of the eight bytes that a time in microseconds has, in half of its time."""
    bits = (bits & 0x007F007F007F007F) | (bits & 0x7F007F007F007F00) >> 1
    bits = (bits & 0x00003FFF00003FFF) | (bits & 0x3FFF00003FFF0000) >> 2
    return (bits & 0x0FFFFFFF) | (bits & 0x0FFFFFFF00000000) >> 4


def double(raw: bytes) -> float | None:
    if raw == EMPTY:
        return None
    tag, value = _double(raw)
    if tag != DOUBLE_TAG:
        raise ValueError("no double")
    return float(value)


def string(raw: bytes) -> str | None:
    if raw == EMPTY:
        return None
    if raw[0] != STRING_TAG:
        raise ValueError("no string")
    size, start = (raw[1], 2) if raw[1] < MORE else varint(raw, 1)
    if size != len(raw) - start:
        raise ValueError("no string")
    return raw[start:].decode()


DECODERS: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "int64": (INT64_TAG, int64),
    "double": (DOUBLE_TAG, double),
    "string": (STRING_TAG, string),
}


def instant(raw: bytes) -> int:
    """Whole microseconds since the epoch in a serialised google.protobuf.Timestamp."""
    parts, at = {0x08: 0, 0x10: 0}, 0
    while at < len(raw):
        tag = raw[at]
        if tag not in parts:
            raise ValueError("no Timestamp")
        parts[tag], at = varint(raw, at + 1)
    return parts[0x08] * 1_000_000 + parts[0x10] // 1000

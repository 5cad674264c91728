"""Feast's stored values, which are serialised protobuf messages, as Python's.

https://protobuf.dev/programming-guides/encoding; fields: feast.types.Value. An empty value and an
absent one (None) are null. What is not exactly one value of the type raises one of WRONG_BYTES.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from stack.spec import FeatureType

INT64_TAG, DOUBLE_TAG, STRING_TAG = 0x20, 0x29, 0x12
WRONG_BYTES = (ValueError, struct.error)
DOUBLE = struct.Struct("<Bd")


def varint(raw: bytes, at: int) -> tuple[int, int]:
    """Return the int64 (two's complement) at `at`, and where it ends."""
    value = shift = 0
    for byte in raw[at:]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:  # there is no other byte
            break
    else:
        raise ValueError("a varint without an end")
    if value >> 64:
        raise ValueError("a varint of more than 64 bits")
    return value - (value >> 63 << 64), at + shift // 7


def int64(raw: bytes | None) -> int | None:
    if not raw:
        return None
    value, end = varint(raw, 1)
    if raw[0] != INT64_TAG or end != len(raw):
        raise ValueError("no int64")
    return value


def double(raw: bytes | None) -> float | None:
    if not raw:
        return None
    tag, value = DOUBLE.unpack(raw)
    if tag != DOUBLE_TAG:
        raise ValueError("no double")
    return float(value)


def string(raw: bytes | None) -> str | None:
    if not raw:
        return None
    size, start = varint(raw, 1)
    if raw[0] != STRING_TAG or size != len(raw) - start:
        raise ValueError("no string")
    return raw[start:].decode()


DECODERS: dict[FeatureType, tuple[int, Callable[[Any], Any]]] = {
    "int64": (INT64_TAG, int64),
    "double": (DOUBLE_TAG, double),
    "string": (STRING_TAG, string),
}


def instant(raw: bytes) -> int:
    """Whole microseconds since the epoch in a serialised google.protobuf.Timestamp."""
    parts = {0x08: 0, 0x10: 0}  # seconds and nanoseconds, by tag; one that is 0 is left out
    at = 0
    while at < len(raw):
        tag = raw[at]
        parts[tag], at = varint(raw, at + 1)
    seconds, nanos = parts.values()  # another tag's is one too many
    return seconds * 1_000_000 + nanos // 1000

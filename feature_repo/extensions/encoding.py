"""Arrow columns as the bytes that Feast's Redis store would write, a column at a time.

Feast keeps each value as a serialised protobuf `Value`, the event time as a `Timestamp`, and names
a hash by join keys, their values and the project. https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import ValueType
from feast.infra.key_encoding_utils import serialize_entity_key_prefix

if TYPE_CHECKING:
    import numpy.typing as npt

# Arrow type, tag of the field in feast.types.Value.
NUMBERS = {ValueType.DOUBLE: (pa.float64(), 0x29), ValueType.FLOAT: (pa.float32(), 0x35)}
INTEGERS = {
    ValueType.INT32: (pa.int32(), 0x18),
    ValueType.INT64: (pa.int64(), 0x20),
    ValueType.BOOL: (pa.bool_(), 0x38),
}
TEXTS = {ValueType.BYTES: (pa.binary(), 0x0A), ValueType.STRING: (pa.string(), 0x12)}
ENCODED = {kind: type_ for kind, (type_, _) in (NUMBERS | INTEGERS | TEXTS).items()}
"""Feast types that `values` knows, and the Arrow type that each must have."""

KEYS = {ValueType.INT64: pa.int64(), ValueType.STRING: pa.string()}
"""The same for join keys."""


def values(column: pa.Array, kind: ValueType) -> pa.Array:
    """Serialise a column of type ENCODED[kind]; null and NaN are b"", as in Feast."""
    if kind in TEXTS:
        found = _sized(TEXTS[kind][1], column)
    elif kind in INTEGERS:
        zero = pa.scalar(0, pa.int64()).cast(column.type)
        numbers = pc.fill_null(column, zero)
        found = _varints(INTEGERS[kind][1], numbers.to_numpy(zero_copy_only=False).astype(np.int64))
    else:
        column = pc.if_else(pc.is_nan(column), None, column)
        found = _fixed(NUMBERS[kind][1], pc.fill_null(column, 0.0).to_numpy())
    return pc.if_else(column.is_valid(), found, b"") if column.null_count else found


def times(column: pa.Array) -> pa.Array:
    """Serialise timestamps without nulls as google.protobuf.Timestamp: zero parts are left out."""
    instants = column.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy()
    seconds, rest = np.divmod(instants, 1_000_000)
    parts = [
        pc.if_else(pa.array(part != 0), _varints(tag, part), b"")
        for tag, part in ((0x08, seconds), (0x10, rest * 1000))
    ]
    return _join(*parts)


def keys(columns: dict[str, pa.Array], project: str) -> pa.Array:
    """Names of the entities' hashes. columns: join key → values of a type in KEYS, no nulls."""
    names = sorted(columns)
    parts: list[Any] = [serialize_entity_key_prefix(names)]
    for column in (columns[name] for name in names):
        if column.type == pa.int64():
            parts += [struct.pack("<II", ValueType.INT64.value, 8), _raw(column.to_numpy())]
        else:
            sizes = pc.binary_length(column).cast(pa.int32())
            parts += [struct.pack("<I", ValueType.STRING.value), _raw(sizes.to_numpy())]
            parts.append(column.cast(pa.binary()))
    return _join(*parts, project.encode())


def _join(*parts: Any) -> pa.Array:
    return pc.binary_join_element_wise(*parts, b"")


def _sized(tag: int, column: pa.Array) -> pa.Array:
    """Length-delimited fields."""
    column = pc.fill_null(column.cast(pa.binary()), b"")
    return _join(_varints(tag, pc.binary_length(column).to_numpy().astype(np.int64)), column)


def _fixed(tag: int, numbers: npt.NDArray[Any]) -> pa.Array:
    raw = numbers.view(np.uint8).reshape(len(numbers), -1)
    tags = np.full((len(numbers), 1), tag, np.uint8)
    return _rows(np.hstack([tags, raw]))


def _raw(numbers: npt.NDArray[Any]) -> pa.Array:
    return _rows(numbers.view(np.uint8).reshape(len(numbers), -1))


def _varints(tag: int, numbers: npt.NDArray[np.int64]) -> pa.Array:
    """Seven bits a byte, the lowest first, all but the last with the high bit set."""
    left = numbers.view(np.uint64)
    columns = [np.full(len(left), tag, np.uint8)]
    sizes = np.full(len(left), 2, np.int32)
    while (more := left >= 128).any():  # noqa: PLR2004
        columns.append((left & 127 | more * np.uint64(128)).astype(np.uint8))
        sizes += more
        left = left >> np.uint64(7)
        # A row that has ended goes on with zeros, which its size leaves out.
    columns.append(left.astype(np.uint8))
    return _rows(np.stack(columns, axis=1), sizes)


def _rows(matrix: npt.NDArray[np.uint8], sizes: npt.NDArray[np.int32] | None = None) -> pa.Array:
    """Rows of bytes, of each the first `sizes` (default: all), as an Arrow array of binary."""
    count, width = matrix.shape
    if sizes is None:
        sizes = np.full(count, width, np.int32)
    else:
        matrix = matrix[np.arange(width) < sizes[:, None]]
    ends = np.zeros(count + 1, np.int32)
    np.cumsum(sizes, out=ends[1:])
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(matrix.tobytes())]
    return pa.BinaryArray.from_buffers(pa.binary(), count, buffers)

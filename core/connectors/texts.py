"""Columns of texts as what their texts stand for."""

import pyarrow as pa
import pyarrow.compute as pc

TIME = pa.timestamp("us", tz="UTC")
WHOLE_DAY = r"^(\d{4}-\d\d-\d\d)$"
WHOLE_NUMBER = r"^(0|-?[1-9]\d*)$"
CODE = r"^[+-]?0\d|^\+"
"""Beginning of a text that is the same number as another text, such as 007 and 7."""
EXACT_DOUBLE = 2.0**53
"""From here on a double stands for several whole numbers."""


def inferred(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of texts in the first type that holds them all; a code stays a text.

    Times without an offset become times without a zone.
    """
    if texts.null_count == len(texts):
        return texts
    is_code = pc.match_substring_regex(texts, CODE)
    is_whole = pc.match_substring_regex(texts, WHOLE_NUMBER)
    number = pa.int64() if pc.all(is_whole).as_py() else pa.float64()
    for kind in (number, pa.bool_(), TIME, pa.timestamp("us")):
        try:
            values = with_offsets(texts, kind).cast(kind)
        except pa.ArrowInvalid:
            continue
        if kind == pa.float64():
            is_large = pc.greater_equal(pc.abs(values), EXACT_DOUBLE)
            is_other = pc.or_(is_code, pc.and_(is_whole, is_large))
            return texts if pc.any(is_other).as_py() else values
        return values
    return texts


def with_offsets(texts: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Return texts of times with an offset, also where they are whole days."""
    if not (pa.types.is_timestamp(kind) and kind.tz):
        return texts
    return pc.replace_substring_regex(texts, WHOLE_DAY, r"\1T00:00:00Z")

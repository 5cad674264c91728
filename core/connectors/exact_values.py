"""Values in another type, null where that type does not hold them.

A type holds a value if no other value of the source becomes the same one in it.
"""

import re
from datetime import datetime
from math import isfinite
from typing import Any, NamedTuple

import ibis
import pyarrow as pa
import pyarrow.compute as pc

from core.connectors.texts import (
    EXACT_DOUBLE,
    TIME,
    WHOLE_DAY,
    WHOLE_NUMBER,
    with_offsets,
)
from core.timestamps import EARLIEST_TIME, LATEST_TIME

OFFSET = r"(Z|[+-]\d\d(:?\d\d)?)$"
"""End of a time with an offset."""
WHOLE_DOUBLE = r"^(-?\d+)\.0$"
"""A whole number as pandas writes it in a column that has a gap."""
WHOLE_TEXT = r"([+-]?\d+)(?:\.0*)?"
END_OF_RULES = pa.scalar(datetime(2038, 1, 1), pa.timestamp("us"))  # noqa: DTZ001  (a local time)
"""From here on Arrow knows no summer time of a zone."""


class JudgedColumn(NamedTuple):
    """A column in another type.

    Attributes:
        values: Its values, null where there is none, and where the type does not hold it.
        is_lost: Whether a value is null as the type does not hold it.

    """

    values: pa.Array
    is_lost: pa.Array


def judge_column(
    column: pa.Array, kind: pa.DataType, *, is_identity: bool = False
) -> JudgedColumn | None:
    """Return a column of rows that a team prepared in a type, as an ingest judges its values.

    NaN is no value, as pandas writes it; days, and times without a zone, are of UTC.

    Args:
        column: Values of a source.
        kind: The type.
        is_identity: Whether different texts have to stay different: 007 is not 7.

    Returns:
        The column; None: nothing of the column's type is a value of this one.

    """
    if not _can_hold(kind, column.type):
        return None
    try:
        values = exact_values(column, kind, is_identity=is_identity, time_zone="UTC")
    except pa.ArrowNotImplementedError:
        return None
    is_missing = column.is_null()
    if pa.types.is_floating(values.type):
        is_nan = pc.fill_null(pc.is_nan(values), fill_value=False)
        is_missing = pc.or_(is_missing, is_nan)
    values = within_limits(values)
    return JudgedColumn(values, pc.and_not(values.is_null(), is_missing))


def _can_hold(kind: pa.DataType, source_type: pa.DataType) -> bool:
    """Whether a column of a type may have values of another type.

    A number may be any time, and a truth is no number; a number with a point has many texts.
    """
    if pa.types.is_null(source_type):
        return True
    dataset_type = type_of(source_type, "UTC")
    if kind == TIME:
        return dataset_type in (TIME, pa.string())
    if kind == pa.string():
        return dataset_type in (pa.string(), pa.int64(), pa.bool_())
    return bool(kind == pa.bool_() or dataset_type != pa.bool_())


def type_of(source_type: Any, time_zone: str | None = None) -> pa.DataType | None:
    """Return a dataset's type for a column of a source (type of Arrow or Ibis); None: it has none.

    time_zone: Zone of times that name none; without it, such times have no type.
    """
    if source_type == pa.uuid():
        source_type = pa.string()
    try:
        kind: Any = ibis.dtype(source_type)
    except (KeyError, ValueError):  # Ibis has no such type
        return None
    if kind.is_integer() or (kind.is_decimal() and kind.scale == 0):
        return pa.int64()
    if kind.is_numeric():
        return pa.float64()
    if kind.is_boolean():
        return pa.bool_()
    if kind.is_string():
        return pa.string()
    has_zone = kind.is_timestamp() and bool(kind.timezone or time_zone)
    return TIME if kind.is_date() or has_zone else None


def exact_values(
    column: pa.Array,
    kind: pa.DataType,
    *,
    is_identity: bool = False,
    time_zone: str | None = None,
) -> pa.Array:
    """Return a column in another type, null where that type does not hold the value.

    Args:
        column: Values of a source; texts come from a CSV.
        kind: Type of a dataset's column.
        is_identity: Whether different texts have to stay different: 007 is not 7.
        time_zone: Zone of times that name none. A time that a change of clocks repeats or leaves
            out becomes null.

    """
    if column.type == pa.uuid():
        texts = [None if value is None else str(value) for value in column.to_pylist()]
        column = pa.array(texts, pa.string())
    if pa.types.is_decimal(column.type) and pa.types.is_floating(kind):
        column = column.cast(pa.string())  # Arrow's own double may be the next one
    is_text = pa.types.is_string(column.type)
    if is_text and pa.types.is_integer(kind):
        return _whole_numbers(column, kind, is_identity=is_identity)
    if is_text and pa.types.is_floating(kind) and not is_identity:
        return _doubles(column, kind)
    if time_zone and kind == TIME:
        values = _zoned(column, time_zone)
    else:
        values = cast_or_null(with_offsets(column, kind) if is_text else column, kind)
    if pa.types.is_floating(column.type) and pa.types.is_integer(kind):
        largest = {16: 2.0**11, 32: 2.0**24, 64: EXACT_DOUBLE}[column.type.bit_width]
        is_exact = pc.less(pc.abs(column), largest)
    elif is_identity and pa.types.is_floating(kind):
        is_exact = pc.less(pc.abs(values), EXACT_DOUBLE)
    else:
        return values
    return _where(is_exact, values)


def _whole_numbers(
    texts: pa.Array, kind: pa.DataType, *, is_identity: bool
) -> pa.Array:
    """Return texts as integers; null where the type does not hold one.

    4.0 is 4, below 2^53, but where different texts have to stay different. Arrow takes 0x1F for 31.
    """
    if is_identity:
        return _where(
            pc.match_substring_regex(texts, WHOLE_NUMBER), cast_or_null(texts, kind)
        )
    # One pattern for both would take twice as long.
    is_hexadecimal = pc.or_(
        pc.match_substring(texts, "x"), pc.match_substring(texts, "X")
    )
    texts = _where(pc.invert(is_hexadecimal), texts)
    is_double = pc.match_substring_regex(texts, WHOLE_DOUBLE)
    if not pc.any(is_double).as_py():
        return cast_or_null(texts, kind)
    numbers = pc.replace_substring_regex(texts, WHOLE_DOUBLE, r"\1")
    values = cast_or_null(numbers, kind)
    wide = values.cast(pa.int64())
    is_exact = pc.and_(pc.less(wide, 2**53), pc.greater(wide, -(2**53)))
    return _where(pc.or_(pc.invert(is_double), is_exact), values)


def _doubles(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return texts as doubles; null where a whole number is none, such as 9007199254740993."""
    values = cast_or_null(texts, kind)
    is_large = pc.greater_equal(pc.abs(values), EXACT_DOUBLE)
    between = []
    for position in pc.indices_nonzero(is_large).to_pylist():
        match = re.fullmatch(WHOLE_TEXT, texts[position].as_py())
        number = values[position].as_py()
        if match and isfinite(number) and int(match[1]) != number:
            between.append(position)
    if not between:
        return values
    positions = pa.arange(0, len(values))
    is_between = pc.is_in(positions, pa.array(between, positions.type))
    return _where(pc.invert(is_between), values)


def within_limits(values: pa.Array) -> pa.Array:
    """Return values, null where a number is not finite or a time not within YEARS."""
    if pa.types.is_floating(values.type):
        is_within = pc.is_finite(values)
    elif pa.types.is_timestamp(values.type):
        is_late_enough = pc.greater_equal(values, EARLIEST_TIME)
        is_within = pc.and_(is_late_enough, pc.less(values, LATEST_TIME))
    else:
        return values
    return _where(is_within, values)


def _zoned(column: pa.Array, time_zone: str) -> pa.Array:
    """Return times in UTC; those without a zone, and days, are of `time_zone`.

    pandas writes 2026-11-20 for a column of midnights, and 2026-11-20 00:00:00 beside other times.
    """
    if pa.types.is_string(column.type):
        is_day = pc.match_substring_regex(column, WHOLE_DAY)
        has_offset = pc.match_substring_regex(column, OFFSET)
        has_offset = pc.and_(has_offset, pc.invert(is_day))
        values = cast_or_null(pc.if_else(has_offset, column, None), TIME)
        local_texts = pc.if_else(has_offset, None, column)
        local_times = cast_or_null(local_texts, pa.timestamp("us"))
        return pc.coalesce(values, _unambiguous(local_times, time_zone))
    is_local = pa.types.is_timestamp(column.type) and column.type.tz is None
    if is_local or pa.types.is_date(column.type):
        return _unambiguous(cast_or_null(column, pa.timestamp("us")), time_zone)
    return cast_or_null(column, TIME)


def _unambiguous(local_times: pa.Array, time_zone: str) -> pa.Array:
    """Return the moments of local times, null where there is none, or two, or it is unknown."""
    earliest, latest = (
        pc.assume_timezone(local_times, time_zone, ambiguous=side, nonexistent=side)
        for side in ("earliest", "latest")
    )
    is_known = pc.equal(earliest, latest)
    if time_zone != "UTC":
        is_known = pc.and_(is_known, pc.less(local_times, END_OF_RULES))
    return _where(is_known, earliest.cast(TIME))


def _where(condition: Any, values: pa.Array) -> pa.Array:
    """Return values, null where the condition is false."""
    if pc.all(condition).as_py():  # mostly; it saves a copy
        return values
    return pc.if_else(condition, values, None)


def cast_or_null(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast values; a value that Arrow would have to change becomes null.

    Arrow does not tell which values these are.
    """
    try:
        return column.cast(kind)
    except pa.ArrowInvalid:
        if len(column) == 1:
            return pa.nulls(1, kind)
    middle = len(column) // 2
    halves = [cast_or_null(column[:middle], kind), cast_or_null(column[middle:], kind)]
    return pa.concat_arrays(halves)

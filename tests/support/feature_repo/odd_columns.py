"""Drawn columns of parquet files: types of Arrow, values at their ends, and plain values of both."""

from datetime import UTC, date, datetime
from decimal import Decimal
from math import isnan

import numpy as np
import pyarrow as pa

from tests.support.feature_engine.odd.source import (
    DAY,
    HOUR,
    SECOND,
    TEXTS,
    micros,
    moment,
)

SUMMER_ZONE = "Europe/Berlin"
ZONES = ("UTC", None, SUMMER_ZONE, "+05:30")
INTS = (
    pa.int64(), pa.int8(), pa.int16(), pa.int32(),
    pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(),
)  # fmt: skip
FLOATS = (pa.float64(), pa.float32(), pa.float16())
TYPES = {
    "int": INTS,
    "number": (*INTS, *FLOATS, pa.bool_()),
    "float": FLOATS,
    "bool": (pa.bool_(),),
    "decimal": (
        pa.decimal128(18, 3), pa.decimal128(5, 2), pa.decimal128(38, 0), pa.decimal128(38, 10),
        pa.decimal256(38, 4), pa.decimal256(60, 2),
    ),
    "text": (
        pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()),
        pa.dictionary(pa.int32(), pa.large_string()),
    ),
    "time": tuple(
        pa.timestamp(unit, zone) for unit in ("us", "ms", "s", "ns") for zone in ZONES
    ),
    "day": (pa.date32(), pa.date64()),
    "list": (
        pa.list_(pa.int64()), pa.list_(pa.float64()), pa.large_list(pa.int32()),
        pa.list_(pa.string()),
    ),
    "bytes": (pa.binary(), pa.large_binary()),
    "time of day": (pa.time32("ms"), pa.time64("us")),
    "null": (pa.null(),),
}  # fmt: skip
"""Kind of a column → types of Arrow that it may have; the first is the usual one."""
NO_TIMES = (pa.date32(), pa.date64(), pa.string(), pa.int64())
"""Types of a column of times that Feast's own client does not read."""
NUMBERS = (
    0, 1, -1, 7, 127, 2**24 + 1, 2**31, 2**53 - 1, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 2**64 - 1,
)  # fmt: skip
DOUBLES = (
    0.0, -0.0, 0.1, 1.5, -3.25, 2.0**53, 1e300, -1e300, 5e-324, float("nan"), float("inf"),
    float("-inf"),
)  # fmt: skip
BYTES = (b"", b"\x00\xff", b"a")
FEW_VALUES = {
    pa.null(): (None,),
    pa.bool_(): (True, False),
    pa.time32("ms"): (0, 1, DAY // 1000 - 1),
    pa.time64("us"): (0, 1, DAY - 1),
    pa.binary(): BYTES,
    pa.large_binary(): BYTES,
}
BASE = micros(datetime(2026, 1, 1, tzinfo=UTC))
STEPS = (0, 1, SECOND, HOUR, DAY, 2 * DAY, 40 * DAY, -1, -DAY)
NEAR = tuple(BASE + step for step in STEPS)
FAR = tuple(
    micros(datetime(*day, tzinfo=UTC))
    for day in ((1, 1, 3), (1582, 10, 10), (1677, 1, 1), (2263, 1, 1), (9999, 12, 29))
)
"""Times (microseconds since 1970) of which nanoseconds have few."""


def types_of(kind, *, is_far):
    """Return the types of a kind that have all times which are drawn."""
    types = TYPES[kind]
    if is_far and kind == "time":
        # Pandas ends the process over times before 1677 in a zone with summer time.
        types = [each for each in types if each.unit != "ns" and each.tz != SUMMER_ZONE]
    return [*types]


def values_of(kind, *, is_far):
    """Return values of a type of Arrow, as PyArrow takes them: at its ends, and odd ones."""
    if kind in FEW_VALUES:
        return [*FEW_VALUES[kind]]
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        times = [*NEAR, BASE + 123_456, 0, -1, *(FAR if is_far else ())]
        return [time_in(kind, time) for time in times]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        first, *items = values_of(kind.value_type, is_far=is_far)
        return [[], [items[-1]], [first, None], items[:3]]
    return _numbers(kind) or [*TEXTS]


def _numbers(kind):
    """Return numbers of a type; none if it is of no number."""
    if pa.types.is_integer(kind):
        limits = np.iinfo(kind.to_pandas_dtype())
        return whole_numbers(kind, [*NUMBERS, int(limits.min), int(limits.max)])
    if pa.types.is_floating(kind):
        with np.errstate(over="ignore", under="ignore"):
            return [kind.to_pandas_dtype()(number) for number in DOUBLES]
    return _decimals(kind) if pa.types.is_decimal(kind) else []


def whole_numbers(kind, numbers):
    """Return the numbers that an integer type has."""
    limits = np.iinfo(kind.to_pandas_dtype())
    return [number for number in numbers if limits.min <= number <= limits.max]


def _decimals(kind):
    digits = (9,) * kind.precision
    ends = [Decimal((sign, digits, -kind.scale)) for sign in (0, 1)]
    return [*ends, Decimal(0), Decimal((0, (1,), -kind.scale))]


def time_in(kind, time):
    """Return a time (microseconds since 1970) as a value of a type, with what it has of it."""
    if pa.types.is_timestamp(kind):
        steps = {"s": SECOND, "ms": 1000, "us": 1}
        return time * 1000 if kind.unit == "ns" else time // steps[kind.unit]
    if kind == pa.date32():
        return time // DAY
    if kind == pa.date64():
        return time // DAY * DAY // 1000
    return time if kind == pa.int64() else moment(time).isoformat()


def as_time(value):
    """Return the moment of a value of a column of times; None: it says none."""
    if isinstance(value, str):
        return datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    return value if isinstance(value, datetime) else None


def plain_values(column):
    """Return values as they are compared: times are of UTC, and pandas' NaN is a null."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", "UTC"), safe=False)
    return [_plain(value) for value in column.to_pylist()]


def _plain(value):
    if isinstance(value, list):
        return [_plain(item) for item in value]
    is_nan = isinstance(value, float | np.floating) and isnan(value)
    return None if is_nan else value


def whole_seconds(value):
    """Return a value as training has it: Feast stores whole seconds of a time."""
    return value.replace(microsecond=0) if isinstance(value, datetime) else value

"""Types of values that clients send in JSON."""

import re
from ctypes import c_float
from datetime import datetime
from math import isfinite, isinf
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import AfterValidator, BeforeValidator, Strict

from core.timestamps import whole_second

INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
EXACT = 2**53
"""Largest integer up to which each has a double of its own."""
EXACT_SINGLE = 2**24
"""The same of a float of 32 bits."""
ISO_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}(:[0-9]{2}([.][0-9]{1,6}0*)?)?"
    r"([Zz]|[+-][0-9]{2}:?[0-9]{2})?"
)


def _whole(value: Any) -> Any:
    """Return an integer for a whole double: JSON has 4.0, and pandas makes it of a column with a gap.

    Raises:
        ValueError: A double of that size may have been another integer.

    """
    if type(value) is not float or not value.is_integer():
        return value
    if abs(value) >= EXACT:
        raise ValueError(
            f"expected an integer, or a double below 2**53, found {value:.0f}.0"
        )
    return int(value)


def _exact(value: Any) -> Any:
    """Return the value.

    Raises:
        ValueError: It is an integer that a double may not hold.

    """
    if type(value) is int and abs(value) > EXACT:
        raise ValueError(
            f"expected a double, found {value}, which no double may hold: write {value}.0"
        )
    return value


def _exact_single(value: Any) -> Any:
    """Return the value.

    Raises:
        ValueError: It is an integer that a float of 32 bits may not hold, or beyond all of them.

    """
    if type(value) is int and abs(value) > EXACT_SINGLE:
        raise ValueError(
            f"expected a float of 32 bits, found {value}, which none may hold: write {value}.0"
        )
    if type(value) is float and isfinite(value) and isinf(c_float(value).value):
        raise ValueError(f"expected a float of 32 bits, found {value}")
    return value


def exact_time(value: Any) -> Any:
    """Read a text in ISO 8601: a day and a time, to the microsecond at most.

    Digits without separators are refused: they may be a day, or seconds since 1970.
    """
    if type(value) is not str:
        return value
    if not ISO_TIME.fullmatch(value):
        raise ValueError(
            "expected a time like 2026-03-01T00:00:00Z, of microseconds at most, "
            f"found {value!r}"
        )
    return datetime.fromisoformat(value.upper())


Int64 = Annotated[
    int, Strict(), Ge(-INT64_MAX - 1), Le(INT64_MAX), BeforeValidator(_whole)
]
Int32 = Annotated[
    int, Strict(), Ge(-INT32_MAX - 1), Le(INT32_MAX), BeforeValidator(_whole)
]
Float64 = Annotated[float, Strict(), BeforeValidator(_exact)]
Single = Annotated[float, Strict(), BeforeValidator(_exact_single)]
"""A number that has a nearest float of 32 bits."""
Timestamp = Annotated[
    datetime,
    Strict(),
    BeforeValidator(
        lambda text: datetime.fromisoformat(text) if type(text) is str else text
    ),
    AfterValidator(whole_second),
]
"""ISO 8601 with an offset from UTC."""
Float32 = AfterValidator(lambda value: c_float(value).value)
"""A number of any type, rounded to the nearest float32."""

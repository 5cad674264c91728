"""Every type of a database, values at its ends, and what a dataset's column holds of them.

A value is SQL. What it is says the database's own client (`own_clients`); `held` says then what a
column of a dataset must have, in plain Python without Gyre.
"""

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import isfinite
from typing import NamedTuple
from zoneinfo import ZoneInfo

import numpy as np

MISFIT = "no column of that type holds it"
TIME = re.compile(
    r"(?P<year>\d+)-(?P<month>\d\d)-(?P<day>\d\d)"
    r"(?:[ T](?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?:\.(?P<part>\d{1,9}))?)?"
    r"(?P<offset>Z|[+-]\d\d(?::?\d\d)?)?"
)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
SURROGATE = re.compile("[\ud800-\udfff]")
LAST_YEAR = 9998
KINDS = {
    "int": "int",
    "whole": "int",
    "single": "float",
    "double": "float",
    "decimal": "float",
    "bool": "bool",
    "text": "text",
    "day": "time",
    "local": "time",
    "time": "time",
    "any": "text",
}
"""Kind of a database's type → kind of a dataset's column; others have none."""


class OwnType(NamedTuple):
    """A type of a database.

    Attributes:
        declared: As a table declares it.
        kind: One of KINDS, or "" where no column of a dataset has it. `whole` and `decimal` are
            exact, `day` and `local` have no zone, `any` has what it likes.
        values: SQL of values at its ends.

    """

    declared: str
    kind: str
    values: tuple[str, ...]


def held(value, kind, zone):
    """Return what a column of a dataset has for a value, or MISFIT.

    Args:
        value: What the client shows: a number, a text, a truth, bytes; None.
        kind: Kind of the dataset's column.
        zone: Name of the zone of times without one.

    """
    if value is None:
        return None
    judges = {"int": _whole, "float": _number, "bool": _truth}
    if kind in judges:
        return judges[kind](value)
    if kind == "text" and isinstance(value, int | Decimal):
        return str(value)
    has_text = isinstance(value, str) and not SURROGATE.search(value)
    if not has_text:
        return MISFIT
    return value if kind == "text" else _moment(value, zone)


def _whole(value):
    if isinstance(value, str):
        match = re.fullmatch(r"(-?\d+)(\.0)?", value)
        if not match:
            return MISFIT
        value = float(value) if match[2] else int(value)
    if isinstance(value, bytes) or not isfinite(value):
        return MISFIT
    if isinstance(value, np.float32) and abs(value) >= 2**24:
        return MISFIT
    if isinstance(value, float) and abs(value) >= 2**53:
        return MISFIT
    is_held = value == int(value) and -(2**63) <= value < 2**63
    return int(value) if is_held else MISFIT


def _number(value):
    if isinstance(value, str):
        value = Decimal(value) if NUMBER.fullmatch(value) else MISFIT
    if isinstance(value, bytes | str):
        return MISFIT
    try:
        number = float(value)
    except OverflowError:
        return MISFIT
    if not isfinite(number):
        return MISFIT
    if isinstance(value, int):
        return MISFIT if abs(value) > 2**53 else number
    is_between = isinstance(value, Decimal) and value == int(value) != int(number)
    return MISFIT if is_between else number


def _truth(value):
    if isinstance(value, bool):
        return value
    return {"true": True, "1": True, "false": False, "0": False}.get(
        str(value).lower(), MISFIT
    )


def _moment(text, zone):
    """Return the moment of a text in UTC."""
    match = TIME.fullmatch(text)
    if not match or len(match["year"]) != 4:
        return MISFIT
    part = (match["part"] or "").ljust(6, "0")
    if part[6:].strip("0"):
        return MISFIT
    numbers = [int(match[name] or 0) for name in ("year", "month", "day")]
    numbers += [int(match[name] or 0) for name in ("hour", "minute", "second")]
    try:
        time = datetime(*numbers, int(part[:6]))  # noqa: DTZ001  (a local time)
    except ValueError:
        return MISFIT
    offset = match["offset"]
    if offset == "Z":
        offset = "+00"
    if offset:
        hours, minutes = int(offset[1:3]), int(offset[3:].strip(":") or 0)
        shift = timedelta(hours=hours, minutes=minutes) * (-1 if "-" in offset else 1)
        in_utc = _shifted(time, -shift)
    elif zone or match["hour"] is None:
        in_utc = _local(time, zone or "UTC")
    else:
        return MISFIT
    is_within = in_utc is not None and 2 <= in_utc.year <= LAST_YEAR
    return in_utc.replace(tzinfo=UTC) if is_within else MISFIT


def _local(time, zone):
    """Return the moment of a local time, without its zone; None: there is none, or two."""
    if zone != "UTC" and time.year > 2037:
        return None
    offsets = {
        time.replace(tzinfo=ZoneInfo(zone), fold=fold).utcoffset() for fold in (0, 1)
    }
    if len(offsets) > 1:
        return None
    return _shifted(time, -offsets.pop())


def _shifted(time, shift):
    try:
        return time + shift
    except OverflowError:
        return None


def plain(text, kind):
    """Return the value that the text of a client is, for a type of a kind."""
    if text is None:
        return None
    if kind == "bool":
        return {"t": True, "f": False}.get(text, text == "true")
    readers = {
        "int": int,
        "whole": Decimal,
        "single": np.float32,
        "double": float,
        "decimal": Decimal,
    }
    return readers.get(kind, str)(text)

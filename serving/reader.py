"""Feast's online features straight from Redis, as a serving plan says: commands out, rows back.

What is stored is not guessed at: a row whose bytes are not what the plan expects is named with the
reason, for Feast's own reader to answer.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from serving.redis_connection import command
from stack.errors import DataError
from stack.moment import microseconds

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from feature_repo.serving_plan import PlannedFunction, PlannedView, ServingPlan, Value
    from stack.spec import Entity

Features = dict[str, int | float | str | None]
Columns = dict[str, list[Any]]
Raw = Sequence[bytes | None]
Odd = dict[int, str]
"""Rows, by position, that Feast's own reader is to answer, and why."""

INT64, STRING = struct.pack("<II", 4, 8), struct.pack("<I", 2)
"""Types of join keys in the name of a hash (feast.types.ValueType), sizes beside them."""
MORE, SEVEN = 128, 127
"""In each byte of a varint: there is another one; the payload."""
INT64_TAG, DOUBLE_TAG, STRING_TAG = 0x20, 0x29, 0x12
EMPTY = b""
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
    """Decode a serialised feast.types.Value, as the two below."""
    if raw == EMPTY:
        return None
    if raw[0] != INT64_TAG:
        raise ValueError("no int64")
    if len(raw) == 2 and raw[1] < MORE:  # noqa: PLR2004
        return raw[1]
    value, end = varint(raw, 1)
    if end != len(raw):
        raise ValueError("no int64")
    return value


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


class ViewReader:
    """Names and values of one view's hashes."""

    def __init__(self, plan: PlannedView) -> None:
        self._plan = plan
        fields = [plan.time, *(feature.field for feature in plan.features)]
        self._start = b"*%d\r\n$5\r\nHMGET\r\n" % (2 + len(fields))
        self._end = b"\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(f), f) for f in fields)
        self._decoders = [DECODERS[feature.kind][1] for feature in plan.features]
        self._nothing = (EMPTY,) * len(fields)

    def command(self, key: Entity) -> bytes:
        """Ask for the event time, then each feature."""
        name = self._plan.prefix
        for column, kind in self._plan.keys.items():
            value: Any = key[column]
            if kind == "int64":
                name += INT64 + value.to_bytes(8, "little", signed=True)
            else:
                text = value.encode()
                name += STRING + len(text).to_bytes(4, "little") + text
        name += self._plan.suffix
        return b"%b$%d\r\n%b%b" % (self._start, len(name), name, self._end)

    def columns(self, rows: Sequence[Raw], as_of: Sequence[datetime], odd: Odd) -> Columns:
        usable = [self._usable(n, row, as_of[n], odd) for n, row in enumerate(rows)]
        _, *raws = zip(*usable, strict=True)
        names = (feature.name for feature in self._plan.features)
        return {
            name: _decoded(decode, raw, odd)
            for name, decode, raw in zip(names, self._decoders, raws, strict=True)
        }

    def _usable(self, n: int, row: Raw, as_of: datetime, odd: Odd) -> Raw:
        """Return the row; nulls for an entity that is not there or a value that is too old."""
        time, ttl = row[0], self._plan.ttl_us
        if time is None:
            if any(value is not None for value in row):
                odd[n] = "absent"
            return self._nothing
        if not ttl:
            return row
        try:
            return row if microseconds(as_of) - instant(time) <= ttl else self._nothing
        except WRONG_BYTES:
            odd[n] = "encoding"
            return self._nothing


def _decoded(decode: Callable[[Any], Any], raws: Raw, odd: Odd) -> list[Any]:
    try:
        return [decode(raw) for raw in raws]
    except WRONG_BYTES:
        return [_one(decode, n, raw, odd) for n, raw in enumerate(raws)]


def _one(decode: Callable[[Any], Any], n: int, raw: bytes | None, odd: Odd) -> Any:
    try:
        return decode(raw)
    except WRONG_BYTES:
        odd[n] = "absent" if raw is None else "encoding"
        return None


class FunctionReader:
    """An on-demand view: its function, called with lists."""

    def __init__(self, plan: PlannedFunction) -> None:
        self._plan, names = plan, dict[str, Any]()
        # As trusted as the registry, of which Feast runs what is pickled there.
        exec(compile(plan.source, plan.name, "exec"), names)  # noqa: S102
        self._function = names[plan.function]

    def columns(self, known: Columns, count: int, odd: Odd) -> Columns:
        try:
            return self._call(known, slice(count), count)
        except Exception:  # noqa: BLE001  (of which row it is, is found out)
            return self._each(known, count, odd)

    def _each(self, known: Columns, count: int, odd: Odd) -> Columns:
        found: dict[str, list[Any]] = {name: [] for name in self._plan.outputs}
        for n in range(count):
            try:
                row = self._call(known, slice(n, n + 1), 1)
            except Exception:  # noqa: BLE001  (Feast's reader says what)
                odd[n] = "function"
                row = {name: [None] for name in found}
            for name, values in row.items():
                found[name] += values
        return found

    def _call(self, known: Columns, part: slice, count: int) -> Columns:
        # Copies: what a function does to its arguments is its own affair.
        given = {name: [*known[column][part]] for name, column in self._plan.inputs.items()}
        found = self._function(given)
        made = {name: PYTHON[kind](found[name]) for name, kind in self._plan.outputs.items()}
        if any(len(column) != count for column in made.values()):
            raise ValueError("not a value for each row")
        return made


def _ints(values: list[Any]) -> list[Any]:
    if not {*map(type, values)} <= {int, type(None)}:
        raise TypeError("no integers")
    struct.pack(f"<{len(values)}q", *[value or 0 for value in values])
    return values


def _doubles(values: list[Any]) -> list[Any]:
    if not {*map(type, values)} <= {float, int, type(None)}:
        raise TypeError("no numbers")
    found = [None if value is None else float(value) for value in values]
    return [None if value is None or math.isnan(value) else value for value in found]


def _strings(values: list[Any]) -> list[Any]:
    if not {*map(type, values)} <= {str, type(None)}:
        raise TypeError("no strings")
    return values


PYTHON: dict[str, Callable[[Any], list[Any]]] = {
    "int64": _ints, "double": _doubles, "string": _strings,
}  # fmt: skip
"""What a function gives, as Feast would; TypeError or ValueError where that is not plain."""


class DirectReader:
    """Reads what one plan describes; `problem` says why it should not."""

    def __init__(self, plan: ServingPlan, features: Sequence[str]) -> None:
        """features: those of a row, in its order.

        Raises:
            DataError: the service does not have them.

        """
        self.plan, self._features = plan, features
        self._views = [ViewReader(view) for view in plan.views]
        self._functions = [FunctionReader(function) for function in plan.functions]
        self._keys = {column for view in plan.views for column in view.keys}
        self._unknown = (None,) * len(features)
        self.problem = self._problem()
        lacking = {*features} - self._names()
        if lacking and plan.not_direct is None:
            raise DataError(f"feature service {plan.service!r} has no {', '.join(sorted(lacking))}")

    def _names(self) -> set[str]:
        of_views = {feature.name for view in self.plan.views for feature in view.features}
        return of_views.union(*(function.outputs for function in self.plan.functions))

    def commands(self, keys: Sequence[Entity]) -> list[bytes]:
        """One HMGET for each view and key, all of a view together.

        Raises:
            KeyError, AttributeError, OverflowError: a key is not of the columns and types.

        """
        return [view.command(key) for view in self._views for key in keys]

    def rows(
        self, replies: Sequence[Raw], keys: Sequence[Entity], as_of: Sequence[datetime]
    ) -> tuple[list[Features | None], Odd]:
        """Features of each key from the replies to its commands; None: unknown, or odd."""
        odd = Odd()
        columns = self.columns(replies, keys, as_of, odd)
        values = zip(*(columns[name] for name in self._features), strict=True)
        names, unknown = self._features, self._unknown
        rows = [None if row == unknown else dict(zip(names, row, strict=True)) for row in values]
        for n in odd:
            rows[n] = None
        return rows, odd

    def columns(
        self, replies: Sequence[Raw], keys: Sequence[Entity], as_of: Sequence[datetime], odd: Odd
    ) -> Columns:
        count, found = len(keys), Columns()
        for n, view in enumerate(self._views):
            found |= view.columns(replies[n * count : (n + 1) * count], as_of, odd)
        if self._functions:
            known = found | {name: [key[name] for key in keys] for name in self._keys}
            known["as_of"] = [microseconds(at) for at in as_of]
            for function in self._functions:
                found |= function.columns(known, count, odd)
        return found

    def _problem(self) -> str | None:
        """Say why Feast's own reader should answer."""
        plan, installed = self.plan, version("feast")
        if plan.standing.feast != installed:
            return f"version: the plan is of Feast {plan.standing.feast}, {installed} is installed"
        if plan.not_direct is not None:
            return f"plan: {plan.not_direct}"
        for feature in (f for view in plan.views for f in view.features):
            if feature.tag != DECODERS[feature.kind][0]:
                return f"tag: {feature.name} is stored under {feature.tag}"
        for each in (*plan.samples, *plan.canaries):
            if self.commands([each.key]) != [*self._by_feast(each.hashes)]:
                return f"keys: of {dict(each.key)} another name is read than Feast reads"
        return self._misread()

    def _by_feast(self, hashes: Sequence[bytes]) -> list[bytes]:
        return [
            command(b"HMGET", name, view.time, *(feature.field for feature in view.features))
            for view, name in zip(self.plan.views, hashes, strict=True)
        ]

    def _misread(self) -> str | None:
        canaries, odd = self.plan.canaries, Odd()
        if not canaries:
            return None
        replies = [stored for each in zip(*(c.stored for c in canaries), strict=True)
                   for stored in each]  # fmt: skip
        keys, times = [each.key for each in canaries], [each.as_of for each in canaries]
        found = self.columns(replies, keys, times, odd)
        for n, each in enumerate(canaries):
            for name, value in each.found.items():
                if n not in odd and not same(found[name][n], value):
                    return f"canary: {name} of {dict(each.key)} is {value!r} by Feast, not by us"
        return None

    def probe(self) -> list[bytes]:
        """Commands whose replies `compare` takes: the canaries as they are stored now."""
        return self.commands([canary.key for canary in self.plan.canaries])

    def compare(self, live: Sequence[Raw]) -> tuple[str | None, bool]:
        """Say which canary has other bytes at the same event time; whether they can be read."""
        count, views = len(self.plan.canaries), self.plan.views
        for n, canary in enumerate(self.plan.canaries):
            rows = [live[view * count + n] for view in range(len(views))]
            for stored, now in zip(canary.stored, rows, strict=True):
                if now[0] == stored[0] and tuple(now) != stored:
                    odd = Odd()
                    self.columns(rows, [canary.key], [canary.as_of], odd)
                    what = "is stored with other bytes than Feast read at the same event time"
                    return f"canary: {dict(canary.key)} {what}", not odd
        return None, True


def same(one: Value, other: Value) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return type(one) is type(other) and one == other

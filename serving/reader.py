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

from serving.decoding import DECODERS, EMPTY, WRONG_BYTES, instant
from serving.on_demand import Columns, FunctionReader, Odd
from serving.redis_connection import command
from stack.errors import DataError
from stack.moment import microseconds

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from feature_repo.serving_plan import PlannedView, ServingPlan, Value
    from stack.spec import Entity

Features = dict[str, int | float | str | None]
Raw = Sequence[bytes | None]

INT64, STRING = struct.pack("<II", 4, 8), struct.pack("<I", 2)
"""Types of join keys in the name of a hash (feast.types.ValueType), sizes beside them."""


class ViewReader:
    """Names and values of one view's hashes."""

    def __init__(self, plan: PlannedView) -> None:
        self._plan = plan
        fields = [plan.time, *(feature.field for feature in plan.features)]
        self._start = b"*%d\r\n$5\r\nHMGET\r\n" % (2 + len(fields))
        self._end = b"\r\n" + b"".join(b"$%d\r\n%b\r\n" % (len(f), f) for f in fields)
        self._decoders = [(each.name, DECODERS[each.kind][1]) for each in plan.features]
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
        holds = not self._plan.ttl_us
        usable = [
            row if holds and row[0] is not None else self._usable(n, row, as_of[n], odd)
            for n, row in enumerate(rows)
        ]
        _, *raws = zip(*usable, strict=True)
        try:
            return {
                name: [*map(decode, raw)]
                for (name, decode), raw in zip(self._decoders, raws, strict=True)
            }
        except WRONG_BYTES:
            return {
                name: [_one(decode, n, each, odd) for n, each in enumerate(raw)]
                for (name, decode), raw in zip(self._decoders, raws, strict=True)
            }

    def _usable(self, n: int, row: Raw, as_of: datetime, odd: Odd) -> Raw:
        """Return the row; nulls for an entity that is not there or a value that is too old."""
        time = row[0]
        if time is None:
            if any(value is not None for value in row):
                odd[n] = "absent"
            return self._nothing
        try:
            age = microseconds(as_of) - instant(time)
        except WRONG_BYTES:
            odd[n] = "encoding"
            return self._nothing
        return row if age <= self._plan.ttl_us else self._nothing


def _one(decode: Callable[[Any], Any], n: int, raw: bytes | None, odd: Odd) -> Any:
    try:
        return decode(raw)
    except WRONG_BYTES:
        odd[n] = "absent" if raw is None else "encoding"
        return None


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

"""Features straight from Redis, as a look-up specification says: commands out, rows back."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import hiredis
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import RedisError

from feature_repo.on_demand import load_function
from serving.decoding import DECODERS, instant
from serving.metrics import UNREADABLE_FEATURES
from stack.errors import DataError, FeaturesUnavailableError
from stack.moment import microseconds

if TYPE_CHECKING:
    from mlflow_server.lookup import LookupSpecification, StoredView
    from stack.spec import Entity, FeatureType

Features = dict[str, int | float | str | None]
"""Feature → value. An empty one: what is stored of the entity cannot be read."""
Columns = dict[str, list[Any]]
Reply = Sequence[bytes | None]
OPENING_SECONDS = 0.5
READ_SECONDS, KEY_SECONDS = 0.05, 0.000_01
"""Deadline of a read: so long, and for each key beside it."""
INT64, STRING = struct.pack("<II", 4, 8), struct.pack("<I", 2)
"""Types of join keys in the name of a hash (feast.types.ValueType), an int64's size beside it."""
RETURNED: dict[FeatureType, set[type]] = {"int64": {int}, "double": {float, int}, "string": {str}}
"""What an on-demand function may return for a column of a type, beside None."""


class ViewReader:
    """Commands for one view's hashes, and columns from their replies."""

    def __init__(self, view: StoredView) -> None:
        self._view = view
        self._fields = (view.time, *(feature.field for feature in view.features))
        self._decoders = [(each.name, DECODERS[each.kind][1]) for each in view.features]
        self._absent = (None,) * len(self._fields)

    def command(self, key: Entity) -> tuple[bytes, ...]:
        """Ask for the event time, then each feature."""
        name = self._view.prefix
        for column, kind in self._view.keys.items():
            value: Any = key[column]
            if kind == "int64":
                name += INT64 + value.to_bytes(8, "little", signed=True)
            else:
                text = value.encode()
                name += STRING + len(text).to_bytes(4, "little") + text
        return (b"HMGET", name + self._view.suffix, *self._fields)

    def columns(self, replies: Sequence[Reply], as_of: Sequence[datetime]) -> Columns:
        """Values by feature; nulls where they are older than the view's time to live."""
        if self._view.ttl_us:
            oldest = [microseconds(at) - self._view.ttl_us for at in as_of]
            replies = [
                self._absent if reply[0] is None or instant(reply[0]) < at else reply
                for reply, at in zip(replies, oldest, strict=True)
            ]
        _, *columns = zip(*replies, strict=True)
        return {
            name: [*map(decode, column)]
            for (name, decode), column in zip(self._decoders, columns, strict=True)
        }


class RowReader:
    """Commands for entities, and rows of features from the replies. Nothing is guessed."""

    def __init__(self, lookup: LookupSpecification, features: Sequence[str]) -> None:
        """features: those of a row, in its order.

        Raises:
            DataError: the specification lacks one, stores it as another type than this reads, or
                names a function that the project does not have.

        """
        stored = [feature for view in lookup.views for feature in view.features]
        known = {each.name for each in stored}.union(*(each.outputs for each in lookup.functions))
        if lacking := {*features} - known:
            raise DataError(f"the look-up specification lacks {', '.join(sorted(lacking))}")
        for each in stored:
            tag = DECODERS[each.kind][0]
            if each.tag != tag:
                raise DataError(f"{each.name} is stored under tag {each.tag}, expected {tag}")
        self._features = features
        self._views = [ViewReader(view) for view in lookup.views]
        self._functions = [
            (function, load_function(function.module, function.function, function.sha256))
            for function in lookup.functions
        ]
        self._unknown = (None,) * len(features)

    def commands(self, keys: Sequence[Entity]) -> list[tuple[bytes, ...]]:
        """One HMGET for each view and key, all of a view together."""
        return [view.command(key) for view in self._views for key in keys]

    def rows(
        self, replies: Sequence[Reply], keys: Sequence[Entity], as_of: Sequence[datetime]
    ) -> list[Features | None]:
        """Features of each key from the replies to its commands; None: an unknown entity.

        A row with a value of another type than expected, or that a function fails at, is empty.
        """
        try:
            columns = self._columns(replies, keys, as_of)
        except Exception:  # noqa: BLE001  (a row's failure is not its neighbours')
            if len(keys) == 1:
                UNREADABLE_FEATURES.inc()
                return [{}]
            alone = enumerate(zip(keys, as_of, strict=True))
            return [self.rows(replies[n :: len(keys)], [key], [at])[0] for n, (key, at) in alone]
        values = zip(*(columns[name] for name in self._features), strict=True)
        return [
            None if row == self._unknown else dict(zip(self._features, row, strict=True))
            for row in values
        ]

    def _columns(
        self, replies: Sequence[Reply], keys: Sequence[Entity], as_of: Sequence[datetime]
    ) -> Columns:
        columns: Columns = {}
        for n, view in enumerate(self._views):
            columns |= view.columns(replies[n * len(keys) : (n + 1) * len(keys)], as_of)
        if self._functions:
            known = columns | {name: [key[name] for key in keys] for name in keys[0]}
            known["as_of"] = [microseconds(at) for at in as_of]
            for function, call in self._functions:
                # Copies: what a function does to its arguments is its own affair.
                found = call({name: known[column][:] for name, column in function.inputs.items()})
                for name, kind in function.outputs.items():
                    columns[name] = _typed(kind, found[name], len(keys))
        return columns


def _typed(kind: FeatureType, values: list[Any], count: int) -> list[Any]:
    """Return what a function gave as Feast would store and give it back; NaN is null."""
    if len(values) != count or {*map(type, values)} - RETURNED[kind] - {type(None)}:
        raise TypeError(f"not {count} values of {kind}")
    if kind != "double":
        return values
    return [None if value is None or math.isnan(value) else float(value) for value in values]


class RedisReader:
    """One connection, opened by `probe`; one micro-batch on it at a time, the others wait.

    A batch is packed once, sent and read under one deadline. Whatever ends it early ends the
    connection too, and fails who waits: a late reply is never taken for another batch's.
    """

    def __init__(self, address: str, lookup: LookupSpecification, features: Sequence[str]) -> None:
        """lookup: where it has no views, Redis is only pinged."""
        self._rows = RowReader(lookup, features)
        marks = sorted({view.mark for view in lookup.views})
        self._ping = ("MGET", *marks) if marks else ("PING",)
        pool: Any = ConnectionPool.from_url(address)
        self._connection: AbstractConnection = pool.make_connection()
        self._turn = asyncio.Lock()
        self._closed = False

    async def read(
        self, keys: Sequence[Entity], as_of: Sequence[datetime]
    ) -> list[Features | None]:
        """Rows in the order of `keys`; None: an unknown entity.

        Raises:
            FeaturesUnavailableError: Redis is not connected, refuses, breaks off or is too late.

        """
        commands = self._rows.commands(keys)
        replies = await self._ask(commands, READ_SECONDS + KEY_SECONDS * len(keys))
        return self._rows.rows(replies, keys, as_of)

    async def probe(self) -> datetime | None:
        """Open if need be, and read up to when (UTC) features are online.

        Raises:
            FeaturesUnavailableError: as `read`; or Redis holds no features.

        """
        if not self._connection.is_connected:
            await self._ask((), OPENING_SECONDS)
        (marks,) = await self._ask([self._ping], READ_SECONDS)
        if not isinstance(marks, list):
            return None
        if None in marks:
            raise FeaturesUnavailableError("Redis holds no features (any more): gyre ingest")
        return min(datetime.fromisoformat(mark.decode()) for mark in marks)

    async def close(self) -> None:
        """Let the batches under way end; nothing is opened any more."""
        self._closed = True
        async with self._turn:
            await self._connection.disconnect(nowait=True)

    async def _ask(self, commands: Sequence[tuple[Any, ...]], seconds: float) -> list[Any]:
        """Send commands and return their replies. To ask nothing opens the connection."""
        async with self._turn:
            connection = self._connection
            if not connection.is_connected and (commands or self._closed):
                raise FeaturesUnavailableError("Redis: not connected")
            try:
                async with asyncio.timeout(seconds):
                    # redis-py packs in Python: 6 us a row in place of 2, of 18 in all.
                    packed = b"".join(map(hiredis.pack_command, commands))
                    await connection.send_packed_command(packed)
                    return [await connection.read_response() for _ in commands]
            except BaseException as exc:
                await connection.disconnect(nowait=True)
                if isinstance(exc, RedisError | OSError):
                    late = f"no answer within {seconds * 1000:.0f} ms"
                    what = late if isinstance(exc, TimeoutError) else exc
                    raise FeaturesUnavailableError(f"Redis: {what}") from exc
                raise

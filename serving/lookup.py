"""Features straight from Redis, as a look-up specification says: commands out, rows back.

Values are Feast's serialised protobuf messages (feast.types.Value), read as
https://protobuf.dev/programming-guides/encoding says. An empty one and an absent one are null; what
is not exactly one value of the type raises one of WRONG_BYTES.
"""

import asyncio
import struct
from collections.abc import Callable, Sequence
from ctypes import c_int32
from datetime import datetime, timedelta
from typing import Any

import hiredis
import numpy as np
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import RedisError

from core.errors import DataError, FeaturesUnavailableError
from core.spec import Entity, FeatureType
from core.timestamps import BEGINNING, microseconds, whole_second
from feature_repo.on_demand import load_function
from mlflow_server.served_model import LookupSpecification, StoredView
from serving.metrics import UNREADABLE_FEATURES

Features = dict[str, int | float | datetime | str | None]
"""Feature → value. An empty one: what is stored of the entity cannot be read."""
Rows = list[Features | None]
Keys = Sequence[Entity]
Moments = Sequence[datetime]
Columns = dict[str, list[Any]]
Replies = Sequence[Sequence[bytes | None]]
Read = Callable[[bytes, int], tuple[Any, int]]
"""Bytes and where a value begins → the value, and where it ends."""
OPENING_SECONDS = 0.5
READ_SECONDS, KEY_SECONDS = 0.05, 0.000_01
"""Deadline of a read: so long, and for each key beside it."""
INT64, STRING = struct.pack("<II", 4, 8), struct.pack("<I", 2)
"""Types of join keys in the name of a hash (feast.types.ValueType), an int64's size beside it."""
RETURNED: dict[FeatureType, tuple[set[type], Callable[[Any], Any]]] = {
    "int32": ({np.int32}, int),
    "int64": ({int}, int),
    "float32": ({np.float32}, float),
    "double": ({float, int}, float),
    "bool": ({bool}, bool),
    "timestamp": ({datetime}, whole_second),
    "string": ({str}, str),
}
"""What an on-demand function may return for a type, beside None, and what Feast makes of it."""
NO_TIME = -(2**63)
"""What Feast stores of a timestamp that is null."""
WRONG_BYTES = (ValueError, OverflowError, struct.error)


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


def number(layout: str) -> Read:
    """Read a number of fixed size."""
    fixed = struct.Struct(layout)
    return lambda raw, at: (fixed.unpack_from(raw, at)[0], at + fixed.size)


def text(raw: bytes, at: int) -> tuple[str, int]:
    size, start = varint(raw, at)
    return raw[start : start + size].decode(), start + size


def moment(seconds: int) -> datetime | None:
    return None if seconds == NO_TIME else BEGINNING + timedelta(seconds=seconds)


DECODERS: dict[FeatureType, tuple[int, Read, Callable[[Any], Any]]] = {
    "int32": (0x18, varint, lambda value: c_int32(value).value),
    "int64": (0x20, varint, int),
    "float32": (0x35, number("<f"), float),
    "double": (0x29, number("<d"), float),
    "bool": (0x38, varint, bool),
    "timestamp": (0x40, varint, moment),
    "string": (0x12, text, str),
}
"""Tag of the field of feast.types.Value, what reads it, and what makes the value of it."""


def decoder(kind: FeatureType) -> Callable[[bytes | None], Any]:
    """Return what reads a stored value of a type."""
    tag, read, made = DECODERS[kind]

    def decode(raw: bytes | None) -> Any:
        if not raw:
            return None
        value, end = read(raw, 1)
        if raw[0] != tag or end != len(raw):
            raise ValueError(f"not one {kind}")
        return made(value)

    return decode


def instant(raw: bytes) -> int:
    """Whole microseconds since the epoch in a serialised google.protobuf.Timestamp."""
    parts = {0x08: 0, 0x10: 0}  # seconds and nanoseconds, by tag; one that is 0 is left out
    at = 0
    while at < len(raw):
        tag = raw[at]
        parts[tag], at = varint(raw, at + 1)
    seconds, nanos = parts.values()  # another tag's is one too many
    return seconds * 1_000_000 + nanos // 1000


class ViewReader:
    def __init__(self, view: StoredView) -> None:
        self._view = view
        self._fields = (view.time, *(feature.field for feature in view.features))
        self._decoders = [(each.name, decoder(each.kind)) for each in view.features]
        self._absent = (None,) * len(self._fields)

    def command(self, key: Entity) -> tuple[bytes, ...]:
        name = self._view.prefix
        for column, kind in self._view.keys.items():
            value: Any = key[column]
            if kind == "int64":
                name += INT64 + value.to_bytes(8, "little", signed=True)
            else:
                text = value.encode()
                name += STRING + len(text).to_bytes(4, "little") + text
        return (b"HMGET", name + self._view.suffix, *self._fields)

    def columns(self, replies: Replies, as_of: Moments) -> Columns:
        """Values by feature; nulls where they are older than the view's time to live."""
        if self._view.ttl_us:
            oldest = [microseconds(at) - self._view.ttl_us for at in as_of]
            replies = [
                self._absent if reply[0] is None or instant(reply[0]) < at else reply
                for reply, at in zip(replies, oldest, strict=True)
            ]
        _, *columns = zip(*replies, strict=True)
        read = zip(self._decoders, columns, strict=True)
        return {name: [*map(decode, column)] for (name, decode), column in read}


class RowReader:
    def __init__(self, lookup: LookupSpecification, features: Sequence[str]) -> None:
        """features: those of a row, in its order (DataError: they cannot be read)."""
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
            (each, load_function(each.module, each.function, each.sha256))
            for each in lookup.functions
        ]
        self._unknown = (None,) * len(features)

    def commands(self, keys: Keys) -> list[tuple[bytes, ...]]:
        return [view.command(key) for view in self._views for key in keys]

    def rows(self, replies: Replies, keys: Keys, as_of: Moments) -> Rows:
        """Features of each key; None: an unknown entity; empty: a value or a function fails."""
        try:
            columns = self._columns(replies, keys, as_of)
        except Exception:  # noqa: BLE001  (a row's failure is not its neighbours')
            if len(keys) == 1:
                UNREADABLE_FEATURES.inc()
                return [{}]
            alone = enumerate(zip(keys, as_of, strict=True))
            return [self.rows(replies[n :: len(keys)], [key], [at])[0] for n, (key, at) in alone]
        names, unknown = self._features, self._unknown
        rows = zip(*(columns[name] for name in names), strict=True)
        return [None if row == unknown else dict(zip(names, row, strict=True)) for row in rows]

    def _columns(self, replies: Replies, keys: Keys, as_of: Moments) -> Columns:
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
    types, made = RETURNED[kind]
    if len(values) != count or {*map(type, values)} - types - {type(None)}:
        raise TypeError(f"not {count} values of {kind}")
    return [None if value is None or value != value else made(value) for value in values]  # noqa: PLR0124


class RedisReader:
    """One connection, opened by `probe`; one micro-batch on it at a time, the others wait.

    A batch is packed once, sent and read under one deadline. Whatever ends it early ends the
    connection too, and fails who waits: a late reply is never taken for another batch's.
    """

    def __init__(self, address: str, lookup: LookupSpecification, features: Sequence[str]) -> None:
        self._rows = RowReader(lookup, features)
        marks = sorted({view.mark for view in lookup.views})
        self._ping = ("MGET", *marks) if marks else ("PING",)
        pool: Any = ConnectionPool.from_url(address)
        self._connection: AbstractConnection = pool.make_connection()
        self._turn = asyncio.Lock()
        self._closed = False

    async def read(self, keys: Keys, as_of: Moments) -> Rows:
        """Rows in the order of `keys`; None: an unknown entity (FeaturesUnavailableError)."""
        commands = self._rows.commands(keys)
        replies = await self._ask(commands, READ_SECONDS + KEY_SECONDS * len(keys))
        return self._rows.rows(replies, keys, as_of)

    async def probe(self) -> datetime | None:
        """Open if need be, and read up to when (UTC) features are online. Raises as `read`."""
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
        """Return the replies to commands. To ask nothing opens the connection."""
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

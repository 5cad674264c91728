"""Features straight from Redis, as a look-up specification says: commands out, rows back.

Values are Feast's serialised protobuf messages (feast.types.Value), read as
https://protobuf.dev/programming-guides/encoding says. An empty one and an absent one are null; what
is not exactly one value of the type raises one of WRONG_BYTES.
"""

import asyncio
import json
import struct
from collections.abc import Callable, Sequence
from ctypes import c_int32
from datetime import datetime, timedelta
from typing import Any, NamedTuple

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


class StoredRow(NamedTuple):
    """What the online store holds of one key.

    Attributes:
        features: By name; empty: what is stored cannot be read.
        absent_views: Views that have no row of the key, or none that is young enough.

    """

    features: Features
    absent_views: tuple[str, ...] = ()


Rows = list[StoredRow | None]
"""In the order of the keys; None: no view has a row of the key."""
Keys = Sequence[Entity]
Moments = Sequence[datetime]
Columns = dict[str, list[Any]]
Replies = Sequence[Sequence[bytes | None]]
ReadValue = Callable[[bytes, int], tuple[Any, int]]
"""Bytes and where a value begins → the value, and where it ends."""
OPENING_SECONDS = 0.5
READ_SECONDS = 0.05
"""Deadline of a read."""
KEY_SECONDS = 0.000_01
"""So much more for each key."""
INT64_TYPE = struct.pack("<II", 4, 8)
STRING_TYPE = struct.pack("<I", 2)
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


def number(layout: str) -> ReadValue:
    """Read a number of fixed size."""
    fixed = struct.Struct(layout)
    return lambda raw, at: (fixed.unpack_from(raw, at)[0], at + fixed.size)


def text(raw: bytes, at: int) -> tuple[str, int]:
    size, start = varint(raw, at)
    return raw[start : start + size].decode(), start + size


def moment(seconds: int) -> datetime | None:
    return None if seconds == NO_TIME else BEGINNING + timedelta(seconds=seconds)


DECODERS: dict[FeatureType, tuple[int, ReadValue, Callable[[Any], Any]]] = {
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
    tag, read_value, convert = DECODERS[kind]

    def decode(raw: bytes | None) -> Any:
        if not raw:
            return None
        value, end = read_value(raw, 1)
        if raw[0] != tag or end != len(raw):
            raise ValueError(f"not one {kind}")
        return convert(value)

    return decode


def instant(raw: bytes) -> int:
    """Whole microseconds since the epoch in a serialised google.protobuf.Timestamp."""
    # Seconds and nanoseconds, by tag; one that is 0 is left out.
    parts = {
        0x08: 0,
        0x10: 0,
    }
    at = 0
    while at < len(raw):
        tag = raw[at]
        parts[tag], at = varint(raw, at + 1)
    seconds, nanos = parts.values()  # another tag's is one too many
    return seconds * 1_000_000 + nanos // 1000


class ViewReader:
    """Reads one stored view: a command for each key, and columns of the replies."""

    def __init__(self, view: StoredView) -> None:
        self.name = view.name
        self._view = view
        self._fields = (view.time, *(feature.field for feature in view.features))
        self._decoders = [
            (feature.name, decoder(feature.kind)) for feature in view.features
        ]
        self._absent = (None,) * len(self._fields)

    def command(self, key: Entity) -> tuple[bytes, ...]:
        """Return the command that reads the row of a key."""
        name = self._view.prefix
        for column, kind in self._view.keys.items():
            value: Any = key[column]
            if kind == "int64":
                name += INT64_TYPE + value.to_bytes(8, "little", signed=True)
            else:
                text = value.encode()
                name += STRING_TYPE + len(text).to_bytes(4, "little") + text
        return (b"HMGET", name + self._view.suffix, *self._fields)

    def in_time(self, replies: Replies, as_of: Moments) -> Replies:
        """Return the replies, of a row older than the view's time to live one without values."""
        if not self._view.ttl_us:
            return replies
        young_replies = []
        for reply, moment in zip(replies, as_of, strict=True):
            oldest = microseconds(moment) - self._view.ttl_us
            is_young = reply[0] is not None and instant(reply[0]) >= oldest
            young_replies.append(reply if is_young else self._absent)
        return young_replies

    def columns(self, replies: Replies) -> Columns:
        """Return values by feature."""
        fields = [*zip(*replies, strict=True)]
        columns: Columns = {}
        for (name, decode), values in zip(self._decoders, fields[1:], strict=True):
            columns[name] = [*map(decode, values)]
        return columns


class RowReader:
    """Reads rows: features of stored views, and of on-demand functions over them."""

    def __init__(self, lookup: LookupSpecification, features: Sequence[str]) -> None:
        """Prepare to read features.

        Args:
            lookup: How the feature service is read.
            features: Those of a row, in its order.

        Raises:
            DataError: They cannot be read.

        """
        stored_features = [
            feature for view in lookup.views for feature in view.features
        ]
        names = {feature.name for feature in stored_features}
        for function in lookup.functions:
            names |= function.outputs.keys()
        if not names.issuperset(features):
            missing = ", ".join(sorted({*features} - names))
            raise DataError(f"the look-up specification lacks {missing}")
        self._features = features
        self._nulls = (None,) * len(features)
        self._views = [ViewReader(view) for view in lookup.views]
        self._long_names = {}
        for view in lookup.views:
            for feature in view.features:
                self._long_names[f"{view.name}__{feature.name}"] = feature.name
        self._functions = []
        for function in lookup.functions:
            call = load_function(function.module, function.function, function.sha256)
            self._functions.append((function, call))

    def commands(self, keys: Keys) -> list[tuple[bytes, ...]]:
        """Return the commands that read all views: those of a view follow one another."""
        return [view.command(key) for view in self._views for key in keys]

    def rows(self, replies: Replies, keys: Keys, as_of: Moments) -> Rows:
        """Return the row of each key; where a value or a function fails, it has no features."""
        try:
            rows = self._rows(replies, keys, as_of)
        except Exception:  # noqa: BLE001  (a row's failure is not its neighbours')
            if len(keys) == 1:
                UNREADABLE_FEATURES.inc()
                return [StoredRow({})]
            rows = []
            for position, key in enumerate(keys):
                rows += self.rows(
                    replies[position :: len(keys)], [key], [as_of[position]]
                )
        return rows

    def _rows(self, replies: Replies, keys: Keys, as_of: Moments) -> Rows:
        columns: Columns = {}
        absent_views: list[list[str]] = [[] for _ in keys]
        for number, view in enumerate(self._views):
            first = number * len(keys)
            view_replies = view.in_time(replies[first : first + len(keys)], as_of)
            columns |= view.columns(view_replies)
            for reply, absent in zip(view_replies, absent_views, strict=True):
                if not any(reply):
                    absent.append(view.name)
        unknown_keys = [len(absent) == len(self._views) > 0 for absent in absent_views]
        if all(unknown_keys):
            return [None] * len(keys)
        if self._functions:
            self._add_outputs(columns, keys, as_of)
        rows: Rows = []
        row_values = zip(*(columns[name] for name in self._features), strict=True)
        for values, absent, is_unknown in zip(
            row_values, absent_views, unknown_keys, strict=True
        ):
            if is_unknown or values == self._nulls:
                rows.append(None)
            else:
                features = dict(zip(self._features, values, strict=True))
                rows.append(StoredRow(features, tuple(absent)))
        return rows

    def _add_outputs(self, columns: Columns, keys: Keys, as_of: Moments) -> None:
        """Add what the on-demand functions return to the columns of the stored views."""
        inputs = dict(columns)
        for name in keys[0]:
            inputs[name] = [key[name] for key in keys]
        inputs["as_of"] = [microseconds(moment) for moment in as_of]
        for name, feature_name in self._long_names.items():
            inputs[name] = inputs[feature_name]
        for function, call in self._functions:
            # A function may change what it is given.
            outputs = call({name: values[:] for name, values in inputs.items()})
            for name, kind in function.outputs.items():
                columns[name] = _typed(kind, outputs[name], len(keys))


def _typed(kind: FeatureType, values: list[Any], count: int) -> list[Any]:
    """Return what a function gave as Feast would store and give it back; NaN is null."""
    types, convert = RETURNED[kind]
    if len(values) != count or {*map(type, values)} - types - {type(None)}:
        raise TypeError(f"not {count} values of {kind}")
    return [
        None if value is None or value != value else convert(value)  # noqa: PLR0124
        for value in values
    ]


class RedisReader:
    """One connection, opened by `probe`; one micro-batch on it at a time, the others wait.

    A batch is packed once, sent and read under one deadline. Whatever ends it early ends the
    connection too, and fails who waits: a late reply is never taken for another batch's.
    """

    def __init__(
        self, address: str, lookup: LookupSpecification, features: Sequence[str]
    ) -> None:
        self._rows = RowReader(lookup, features)
        state_keys = sorted({view.state for view in lookup.views})
        self._ping = ("MGET", *state_keys) if state_keys else ("PING",)
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
        (states,) = await self._ask([self._ping], READ_SECONDS)
        if not isinstance(states, list):
            return None
        times: list[datetime] = []
        for state in states:
            # Null until all is online.
            time = json.loads(state)["time"] if state else None
            if time is None:
                raise FeaturesUnavailableError(
                    "Redis holds no features (any more): gyre ingest"
                )
            times.append(datetime.fromisoformat(time))
        return min(times)

    async def close(self) -> None:
        """Let the batches under way end; nothing is opened any more."""
        self._closed = True
        async with self._turn:
            await self._connection.disconnect(nowait=True)

    async def _ask(
        self, commands: Sequence[tuple[Any, ...]], seconds: float
    ) -> list[Any]:
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
                    reason = f"{exc}"
                    if isinstance(exc, TimeoutError):
                        reason = f"no answer within {seconds * 1000:.0f} ms"
                    raise FeaturesUnavailableError(f"Redis: {reason}") from exc
                raise

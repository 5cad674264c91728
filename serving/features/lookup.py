"""Features of entities as Redis holds them, read as a look-up specification says.

Feast stores a feature as a serialised message feast.types.Value. An empty message and an absent one
are null. A message that is not one
value of the expected type raises ValueError or DecodeError.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.timestamp_pb2 import Timestamp

from core.errors import DataError
from core.spec import Entity, FeatureType
from core.timestamps import BEGINNING, microseconds, whole_second
from feature_repo.on_demand import load_function
from mlflow_server.manifest import LookupSpecification, StoredView
from serving.metrics import UNREADABLE_FEATURES

FeatureValues = dict[str, int | float | datetime | str | None]


class StoredRow(NamedTuple):
    """Values of one key in the online store.

    Attributes:
        features: Features by name; empty: the stored values cannot be read.
        absent_views: Views that have no row of the key, or none that is young enough.

    """

    features: FeatureValues
    absent_views: tuple[str, ...] = ()


StoredRows = list[StoredRow | None]
"""Rows in the order of the keys; None: no view has a row of the key."""
Keys = Sequence[Entity]
Moments = Sequence[datetime]
Columns = dict[str, list[Any]]
Reply = Sequence[bytes | None]
Decode = Callable[[bytes | None], Any]
Field = descriptor_pb2.FieldDescriptorProto
VALUE_FIELDS: dict[FeatureType, tuple[int, Any]] = {
    "string": (2, Field.TYPE_STRING),
    "int32": (3, Field.TYPE_INT32),
    "int64": (4, Field.TYPE_INT64),
    "double": (5, Field.TYPE_DOUBLE),
    "float32": (6, Field.TYPE_FLOAT),
    "bool": (7, Field.TYPE_BOOL),
    "timestamp": (8, Field.TYPE_INT64),
}
"""Number and type of the fields of feast.types.Value (feast/protos/feast/types/Value.proto)."""
NO_TIME = -(2**63)
"""Value that Feast stores for a timestamp that is null."""
CACHED_VALUES = 4_096
"""Decoded values kept for a feature: most integers and texts have few."""
INT64_TYPE = (4).to_bytes(4, "little") + (8).to_bytes(4, "little")
STRING_TYPE = (2).to_bytes(4, "little")
"""Types of join keys in the name of a hash (feast.types.ValueType), an int64's size beside it."""
RETURN_TYPES: dict[FeatureType, tuple[set[type], Callable[[Any], Any]]] = {
    "int32": ({np.int32}, int),
    "int64": ({int}, int),
    "float32": ({np.float32}, float),
    "double": ({float, int}, float),
    "bool": ({bool}, bool),
    "timestamp": ({datetime}, whole_second),
    "string": ({str}, str),
}
"""Types that an on-demand function may return, beside None, and how Feast converts them."""


def value_class() -> Any:
    """Return the class of feast.types.Value, of the types that features have, without Feast."""
    file = descriptor_pb2.FileDescriptorProto(
        name="gyre/value.proto", package="gyre", syntax="proto3"
    )
    message = file.message_type.add(name="Value")
    message.oneof_decl.add(name="value")
    for kind, (number, field_type) in VALUE_FIELDS.items():
        message.field.add(
            name=kind,
            number=number,
            type=field_type,
            label=Field.LABEL_OPTIONAL,
            oneof_index=0,
        )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("gyre.Value"))


VALUE = value_class()


def decoder(kind: FeatureType) -> Decode:
    """Return a function that decodes a stored value of a type."""

    def decode(serialised: bytes | None) -> Any:
        if not serialised:
            return None
        message = VALUE.FromString(serialised)
        if message.WhichOneof("value") != kind:
            raise ValueError(f"not one {kind}")
        value = getattr(message, kind)
        if kind != "timestamp":
            return value
        return None if value == NO_TIME else BEGINNING + timedelta(seconds=value)

    return lru_cache(CACHED_VALUES)(decode)


class ViewReader:
    """Reads one stored view: a command for each key, and columns of the replies."""

    def __init__(self, view: StoredView) -> None:
        self.name = view.name
        self._view = view
        self._fields = (view.time, *(feature.field for feature in view.features))
        self._decoders = {
            feature.name: decoder(feature.kind) for feature in view.features
        }
        self._absent: Reply = (None,) * len(self._fields)

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

    def young_replies(
        self, replies: Sequence[Reply], moments: Moments
    ) -> Sequence[Reply]:
        """Return the replies. A row older than the view's time to live has no values."""
        if not self._view.ttl_us:
            return replies
        young_replies = []
        for reply, moment in zip(replies, moments, strict=True):
            time = reply[0]
            is_young = False
            if time is not None:
                age = microseconds(moment) - Timestamp.FromString(time).ToMicroseconds()
                is_young = age <= self._view.ttl_us
            young_replies.append(reply if is_young else self._absent)
        return young_replies

    def columns(self, replies: Sequence[Reply]) -> Columns:
        """Return the values of each feature, in the order of the replies."""
        columns = {}
        for position, (name, decode) in enumerate(self._decoders.items(), start=1):
            columns[name] = [decode(reply[position]) for reply in replies]
        return columns


class RowReader:
    """Reads rows: features of stored views, and of on-demand functions over them."""

    def __init__(self, lookup: LookupSpecification, features: Sequence[str]) -> None:
        """Prepare to read features.

        Args:
            lookup: How the feature service is read.
            features: Names of the features of a row, in order.

        Raises:
            DataError: The features cannot be read.

        """
        self._long_names = {
            f"{view.name}__{feature.name}": feature.name
            for view in lookup.views
            for feature in view.features
        }
        names = {*self._long_names.values()}.union(
            *(function.outputs for function in lookup.functions)
        )
        if not names.issuperset(features):
            missing = ", ".join(sorted({*features} - names))
            raise DataError(f"the look-up specification lacks {missing}")
        self._features = features
        self._views = [ViewReader(view) for view in lookup.views]
        self._functions = []
        for function in lookup.functions:
            call = load_function(function.module, function.function, function.sha256)
            self._functions.append((function, call))

    def commands(self, keys: Keys) -> list[tuple[bytes, ...]]:
        """Return the commands that read all views; commands of one view follow one another."""
        return [view.command(key) for view in self._views for key in keys]

    def rows(
        self, replies: Sequence[Reply], keys: Keys, moments: Moments
    ) -> StoredRows:
        """Return the row of each key; where a value or a function fails, it has no features."""
        try:
            return self._rows(replies, keys, moments)
        except Exception:  # noqa: BLE001  (a row's failure is not its neighbours')
            if len(keys) == 1:
                UNREADABLE_FEATURES.inc()
                return [StoredRow({})]
        rows = []
        for position, key in enumerate(keys):
            own_replies = replies[position :: len(keys)]
            rows += self.rows(own_replies, [key], [moments[position]])
        return rows

    def _rows(
        self, replies: Sequence[Reply], keys: Keys, moments: Moments
    ) -> StoredRows:
        columns: Columns = {}
        absent_views: list[list[str]] = [[] for _ in keys]
        for number, view in enumerate(self._views):
            start = number * len(keys)
            view_replies = replies[start : start + len(keys)]
            view_replies = view.young_replies(view_replies, moments)
            columns |= view.columns(view_replies)
            for reply, absent in zip(view_replies, absent_views, strict=True):
                if not any(reply):
                    absent.append(view.name)
        view_count = len(self._views)
        is_known = [not 0 < view_count == len(absent) for absent in absent_views]
        if not any(is_known):  # a function may fail at nulls
            return [None] * len(keys)
        if self._functions:
            self._add_outputs(columns, keys, moments)
        rows = []
        feature_columns = [columns[name] for name in self._features]
        row_values = zip(*feature_columns, strict=True)
        for absent, is_row, values in zip(
            absent_views, is_known, row_values, strict=True
        ):
            features = dict(zip(self._features, values, strict=True))
            rows.append(StoredRow(features, tuple(absent)) if is_row else None)
        return rows

    def _add_outputs(self, columns: Columns, keys: Keys, moments: Moments) -> None:
        """Add what the on-demand functions return to the columns of the stored views."""
        inputs = dict(columns)
        for column in keys[0]:
            inputs[column] = [key[column] for key in keys]
        inputs["as_of"] = [microseconds(moment) for moment in moments]
        for long_name, name in self._long_names.items():
            inputs[long_name] = inputs[name]
        for function, call in self._functions:
            # A function may change what it is given.
            outputs = call({name: values[:] for name, values in inputs.items()})
            for name, kind in function.outputs.items():
                columns[name] = _typed(kind, outputs[name], len(keys))


def _typed(kind: FeatureType, values: list[Any], count: int) -> list[Any]:
    """Return a function's values as Feast would store and return them; NaN is null."""
    types, convert = RETURN_TYPES[kind]
    if len(values) != count or {*map(type, values)} - types - {type(None)}:
        raise TypeError(f"not {count} values of {kind}")
    typed_values = []
    for value in values:
        is_null = value is None or value != value  # noqa: PLR0124  (NaN)
        typed_values.append(None if is_null else convert(value))
    return typed_values

"""Commands that write feature values to Redis as Feast's Redis store does.

A value is a serialised `feast.types.Value` in a field of the entity's hash, see `redis_names`.

All of this travels to Spark's executors by value, so it imports nothing of Gyre but `redis_names`,
which travels too.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView, RepoConfig, ValueType
from feast.infra.key_encoding_utils import (
    deserialize_entity_key,
    serialize_entity_key_prefix,
)
from feast.protos.feast.types import Value_pb2
from feast.type_map import python_values_to_proto_values
from feast.types import from_feast_to_pyarrow_type
from google.protobuf.timestamp_pb2 import Timestamp
from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from feature_repo.published.redis_names import (
    KeyValues,
    entity_values,
    hash_fields,
    hash_names,
)

SCALARS = (
    ValueType.BOOL,
    ValueType.INT32,
    ValueType.INT64,
    ValueType.FLOAT,
    ValueType.DOUBLE,
    ValueType.STRING,
)
NO_TIME = -(2**63)
"""Number that Feast stores for a timestamp that is null."""
SCAN_COUNT = 10_000
"""Keys that Redis looks at in one step of a scan."""
Command = tuple[str | bytes, ...]
"""A command of Redis, and its arguments."""


def connect_redis(address: str, timeout_seconds: float) -> Any:
    """Return a client of Redis that tries no command again: a writer notices each failure."""
    return Redis.from_url(
        address,
        socket_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
    )


def format_config(config: RepoConfig) -> RepoConfig:
    """Return the part of Feast's configuration that the format depends on; no address is in it."""
    versioning = config.registry.enable_online_feature_view_versioning
    return RepoConfig(
        project=config.project,
        provider="local",
        registry={"path": "", "enable_online_feature_view_versioning": versioning},
        entity_key_serialization_version=config.entity_key_serialization_version,
    )


def write_commands(
    config: RepoConfig, view: FeatureView, rows: pa.Table
) -> Iterator[Command]:
    """Yield the command that writes each row of a view, one row for each entity.

    Args:
        config: Feast's configuration, for the project's name.
        view: Feast's view.
        rows: Join keys, event time and features.

    """
    for values in _hash_values(config, view, rows):
        yield "HSET", *values


def delete_commands(
    config: RepoConfig, view: FeatureView, keys: Iterable[KeyValues]
) -> Iterator[Command]:
    """Yield the command that deletes the values of each entity in a view.

    Redis deletes a hash with its last field.
    """
    features = [feature.name for feature in view.features]
    fields = hash_fields(config, view, features)
    for name in hash_names(config, view, keys):
        yield "HDEL", name, *fields


def _hash_values(
    config: RepoConfig, view: FeatureView, rows: pa.Table
) -> Iterator[tuple[bytes, ...]]:
    """Yield the name of each row's hash, followed by fields and values in turn."""
    names = [feature.name for feature in view.features]
    fields = hash_fields(config, view, names)
    columns: list[Iterable[bytes]] = [hash_names(config, view, key_values(view, rows))]
    columns += [fields[:1] * len(rows), _times(rows[view.batch_source.timestamp_field])]
    for feature, field in zip(view.features, fields[1:], strict=True):
        columns += [[field] * len(rows), _values(feature, rows[feature.name])]
    yield from zip(*columns, strict=True)


def key_values(view: FeatureView, rows: pa.Table) -> list[KeyValues]:
    """Return the join keys of rows of a view."""
    columns = [rows[name].to_pylist() for name in sorted(view.join_keys)]
    return list(zip(*columns, strict=True))


def key_text(key: KeyValues) -> str:
    """Return join keys as a member of the sorted sets of `state`."""
    return json.dumps(key)


def scan_keys(
    redis: Any, config: RepoConfig, view: FeatureView
) -> Iterator[tuple[bytes, KeyValues]]:
    """Yield the name and the join keys of each hash that holds entities with a view's keys."""
    suffix = config.project.encode()
    prefix = serialize_entity_key_prefix(sorted(view.join_keys))
    for name in redis.scan_iter(b"*" + suffix, count=SCAN_COUNT):
        if name.startswith(prefix):
            entity = deserialize_entity_key(name.removesuffix(suffix))
            yield name, entity_values(entity)


def _times(column: pa.ChunkedArray) -> list[bytes]:
    """Serialise timestamps without nulls."""
    microseconds = column.cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    proto = Timestamp()
    texts = []
    for moment in microseconds.to_pylist():
        proto.seconds = moment // 1_000_000
        proto.nanos = moment % 1_000_000 * 1_000
        texts.append(proto.SerializeToString())
    return texts


def _values(feature: Any, column: pa.ChunkedArray) -> list[bytes]:
    """Serialise a column of a feature; a null and a NaN become an empty text."""
    kind = feature.dtype.to_value_type()
    if kind in SCALARS:
        values = column.cast(from_feast_to_pyarrow_type(feature.dtype)).to_pylist()
    elif kind is ValueType.UNIX_TIMESTAMP:
        seconds = pc.floor_temporal(column, unit="second").cast(
            pa.timestamp("s", "UTC")
        )
        values = pc.fill_null(seconds.cast(pa.int64()), NO_TIME).to_pylist()
    else:
        protos = python_values_to_proto_values(column.to_pylist(), kind)
        return [proto.SerializeToString() for proto in protos]
    field = f"{kind.name.lower()}_val"  # the field of feast.types.Value for this type
    proto = Value_pb2.Value()
    texts = []
    for value in values:
        if value is None or value != value:  # noqa: PLR0124  (not a number)
            texts.append(b"")
        else:
            setattr(proto, field, value)
            texts.append(proto.SerializeToString())
    return texts

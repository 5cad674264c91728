"""Online store: Feast's Redis store whose writes only a strictly newer stored row refuses.

The stock store also refuses corrections of an equal time, and compares in the client, so writers
overtake each other. Here a script in Redis does both. Bytes and reading are the stock store's.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Literal

from feast import FeatureView, RepoConfig, ValueType, utils
from feast.infra.key_encoding_utils import (
    deserialize_entity_key,
    serialize_entity_key,
    serialize_entity_key_prefix,
)
from feast.infra.online_stores import redis as stock
from feast.infra.online_stores.helpers import _mmh3, compute_versioned_name
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp

ROWS_PER_CALL = 128
"""Redis answers nobody else during one call: about 0.6 ms."""
CALLS_PER_TRIP = 50

# KEYS: one hash per row. ARGV: 1 to write older rows too, seconds until keys expire (0: never), the
# number of fields, their names, the time's first; then the values row by row, the time's first.
SCRIPT = """
local function microseconds(timestamp)  -- a protobuf Timestamp: varints of seconds and nanoseconds
  local found, at = {0, 0}, 1
  while at <= #timestamp do
    local field, value, scale, byte = math.floor(timestamp:byte(at) / 8), 0, 1, 128
    while byte > 127 do
      at = at + 1
      byte = timestamp:byte(at)
      value = value + byte % 128 * scale
      scale = scale * 128
    end
    found[field] = value < 2 ^ 63 and value or value - 2 ^ 64  -- before 1970: to half an hour
    at = at + 1
  end
  return found[1] * 1e6 + found[2] / 1e3
end
local force, ttl, width = ARGV[1] == '1', tonumber(ARGV[2]), tonumber(ARGV[3])
local pairs = {}
for n = 1, width do pairs[2 * n - 1] = ARGV[3 + n] end
for row, key in ipairs(KEYS) do
  local time = 4 + row * width
  local stored = not force and redis.call('HGET', key, ARGV[4])
  if not stored or microseconds(stored) <= microseconds(ARGV[time]) then
    for n = 1, width do pairs[2 * n] = ARGV[time + n - 1] end
    redis.call('HSET', key, unpack(pairs))
    if ttl > 0 then redis.call('EXPIRE', key, ttl) end
  end
end
"""


class NewestOnlineStoreConfig(stock.RedisOnlineStoreConfig):  # type: ignore[misc]
    """`online_store` in feature_store.yaml. skip_dedup: true writes older rows too.

    redis_type: a script's keys must be on one node, so no Redis Cluster.
    """

    type: Literal["feature_repo.extensions.online.NewestOnlineStore"] = (
        "feature_repo.extensions.online.NewestOnlineStore"
    )
    redis_type: Literal["redis", "redis_sentinel"] = "redis"


class NewestOnlineStore(stock.RedisOnlineStore):  # type: ignore[misc]
    """Several views may share an entity's hash; each has its own event time in it."""

    _rewritten: set[bytes] | None = None

    def client(self, config: RepoConfig) -> Any:
        """Redis, with the connections of the stock store."""
        # Private: Feast offers no client. It ends when the stock store's client is public.
        return self._get_client(config.online_store)

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: Iterable[Any],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write Feast's rows (entity key, feature → value, event time, created time)."""
        version = config.entity_key_serialization_version
        for names, rows in groupby(data, key=lambda row: tuple(row[1])):
            keys, cells = list[bytes](), list[bytes]()
            for entity, values, at, _ in rows:
                keys.append(serialize_entity_key(entity, version) + config.project.encode())
                time = Timestamp()
                time.FromDatetime(utils.make_tzaware(at))
                cells.append(time.SerializeToString())
                cells += [value.SerializeToString() for value in values.values()]
            self.write(config, table, names, keys, cells)
            if progress:
                progress(len(keys))

    async def online_write_batch_async(self, *args: Any, **kwargs: Any) -> None:
        await asyncio.to_thread(self.online_write_batch, *args, **kwargs)

    def write(
        self,
        config: RepoConfig,
        table: FeatureView,
        names: Sequence[str],
        keys: Sequence[bytes],
        cells: Sequence[bytes],
    ) -> None:
        """Write encoded rows, but for those that are older than what stands there.

        cells: row by row the event time (protobuf Timestamp) and a Value of each of `names`.

        Raises:
            RedisError: what was written until then stays; writing again is the same.

        """
        options, fields = config.online_store, hash_fields(config, table, names)
        force = options.skip_dedup or self._rewritten is not None
        head = [int(force), options.key_ttl_seconds or 0, len(fields), *fields]
        with self.client(config).pipeline(transaction=False) as pipe:
            for start in range(0, len(keys), ROWS_PER_CALL):
                end = start + ROWS_PER_CALL
                part = keys[start:end]
                values = cells[start * len(fields) : end * len(fields)]
                pipe.eval(SCRIPT, len(part), *part, *head, *values)
                if len(pipe) == CALLS_PER_TRIP:
                    pipe.execute()
            pipe.execute()
        if self._rewritten is not None:
            self._rewritten.update(keys)

    @contextmanager
    def rewriting(self, config: RepoConfig, table: FeatureView) -> Iterator[None]:
        """Make the view's values online exactly what is written meanwhile, older or not.

        In the end entities without a row lose the view's values. One writer at a time.
        """
        self._rewritten = set()
        try:
            yield
            client = self.client(config)
            fields = hash_fields(config, table, [feature.name for feature in table.features])
            for key in self._keys(config, table):
                if key not in self._rewritten:
                    client.hdel(key, *fields)
        finally:
            self._rewritten = None

    def keys_of(self, config: RepoConfig, view: FeatureView, column: str, value: Any) -> set[bytes]:
        """Keys of the view's hashes whose entity has `value` in `column`, maybe beside others."""
        wanted = Value(int64_val=value) if isinstance(value, int) else Value(string_val=value)
        found = set()
        for key in self._keys(config, view):
            entity = deserialize_entity_key(key.removesuffix(config.project.encode()))
            if (column, wanted) in zip(entity.join_keys, entity.entity_values, strict=True):
                found.add(key)
        return found

    def _keys(self, config: RepoConfig, table: FeatureView) -> Iterator[bytes]:
        prefix = serialize_entity_key_prefix(table.join_keys)
        found = self.client(config).scan_iter(b"*" + config.project.encode(), count=10_000)
        return (key for key in found if key.startswith(prefix))


def hash_fields(config: RepoConfig, table: FeatureView, names: Sequence[str]) -> list[bytes]:
    """Names in the hash: of the view's event time, then of each feature."""
    # Private: `_mmh3`. It ends when the stock store says the names of its fields.
    view = compute_versioned_name(table, config.registry.enable_online_feature_view_versioning)
    return [f"_ts:{view}".encode(), *(_mmh3(f"{view}:{name}") for name in names)]


def tag(kind: ValueType) -> int:
    """Tag of the field of feast.types.Value that holds a value of a type."""
    value, field = Value(), f"{kind.name.lower()}_val"
    setattr(value, field, getattr(value, field))
    return int(value.SerializeToString()[0])

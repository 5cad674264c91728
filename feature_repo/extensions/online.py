"""Online store: Feast's Redis store whose writes only a strictly newer stored row refuses.

The stock store also refuses rows of an equal time, so corrections never arrive, and compares in the
client, so writers overtake each other. Here a script in Redis compares and writes each entity's
hash in one step. Keys, fields and bytes are the stock store's: its readers see no difference.

Values older than their view's time to live are not found, as offline; the stock store gives them.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from feast import utils
from feast.infra.online_stores import redis as stock
from google.protobuf.timestamp_pb2 import Timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from feast import FeatureView, RepoConfig

ROWS_PER_CALL = 128
"""Redis answers nobody else during one call: about 0.6 ms."""

ASKED_AT: ContextVar[datetime | None] = ContextVar("asked_at", default=None)
"""The moment (UTC) that reads are about, see `as_of`; None: the clock's."""

Row = tuple[datetime | None, dict[str, Any] | None]
"""Event time and values of one entity in one view, as Feast has them."""

ROWS_PER_TRIP = 50 * ROWS_PER_CALL

# KEYS: one hash per row. ARGV: 1 to write older rows too, seconds until keys expire (0: never), the
# hash's field names, the time's first; after them the values row by row, the time's first.
# A stored time is a protobuf Timestamp: fields 1 and 2, varints, negative ones in ten bytes.
SCRIPT = """
local function instant(bytes)
  local found, at = {[8] = 0, [16] = 0}, 1
  while at <= #bytes do
    local tag, value, complement, scale, size = bytes:byte(at), 0, 0, 1, 0
    repeat
      at, size = at + 1, size + 1
      local byte = bytes:byte(at)
      if size < 10 then
        value, complement = value + byte % 128 * scale, complement + (127 - byte % 128) * scale
        scale = scale * 128
      end
    until byte < 128
    found[tag] = size < 10 and value or -1 - complement
    at = at + 1
  end
  return found[8], found[16]
end
local function older(new, stored)
  local s, n = instant(new)
  local stored_s, stored_n = instant(stored)
  return s < stored_s or (s == stored_s and n < stored_n)
end
local force, ttl, width, written = ARGV[1] == '1', tonumber(ARGV[2]), tonumber(ARGV[3]), 0
local pairs = {}
for n = 1, width do pairs[2 * n - 1] = ARGV[3 + n] end
for row, key in ipairs(KEYS) do
  local from = 3 + row * width
  local new, stored = ARGV[from + 1], not force and redis.call('HGET', key, pairs[1])
  if not stored or stored == new or not older(new, stored) then
    for n = 1, width do pairs[2 * n] = ARGV[from + n] end
    redis.call('HSET', key, unpack(pairs))
    if ttl > 0 then redis.call('EXPIRE', key, ttl) end
    written = written + 1
  end
end
return written
"""
SCRIPT_SHA = hashlib.sha1(SCRIPT.encode()).hexdigest()  # noqa: S324  (Redis names scripts so)


class NewestOnlineStoreConfig(stock.RedisOnlineStoreConfig):  # type: ignore[misc]
    """`online_store` in feature_store.yaml.

    skip_dedup: true writes older rows too, as in the stock store.
    redis_type: a script's keys must be on one node, so no Redis Cluster.
    """

    type: Literal["feature_repo.extensions.online.NewestOnlineStore"] = (
        "feature_repo.extensions.online.NewestOnlineStore"
    )
    redis_type: Literal["redis", "redis_sentinel"] = "redis"


class NewestOnlineStore(stock.RedisOnlineStore):  # type: ignore[misc]
    """Several views may share an entity's hash; each has its own event time in it."""

    _rewritten: set[bytes] | None = None

    def __init__(self) -> None:
        super().__init__()
        self._ttl: dict[str, timedelta | None] = {}

    def _generate_hset_keys_for_features(
        self, feature_view: FeatureView, *args: Any, **kwargs: Any
    ) -> Any:
        # What every way of reading calls with the view, right before its values come by name.
        found = super()._generate_hset_keys_for_features(feature_view, *args, **kwargs)
        self._ttl[found[0][-1].removeprefix("_ts:")] = feature_view.ttl
        return found

    def _convert_redis_values_to_protobuf(
        self, redis_values: Any, feature_view: str, requested_features: list[str]
    ) -> list[Row]:
        rows: list[Row] = super()._convert_redis_values_to_protobuf(
            redis_values, feature_view, requested_features
        )
        return newer(rows, self._ttl[feature_view])

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: Iterable[Any],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write Feast's rows (entity key, feature → value, event time, created time)."""
        for names, rows in groupby(data, key=lambda row: tuple(row[1])):
            keys, cells = list[bytes](), list[bytes]()
            for entity, values, at, _ in rows:
                keys += self._generate_redis_keys_for_entities(config, [entity])
                time = Timestamp()
                time.FromDatetime(utils.make_tzaware(at))
                cells += [
                    time.SerializeToString(),
                    *(v.SerializeToString() for v in values.values()),
                ]
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
    ) -> int:
        """Write encoded rows; return how many were not older than what stood there.

        cells: row by row the event time (protobuf Timestamp) and the value (Feast's Value) of each
        feature in `names`: len(keys) * (1 + len(names)) of them.

        Raises:
            RedisError: what was written until then stays; writing again is the same.

        """
        options, fields = config.online_store, _fields(config, table, names)
        force, written = options.skip_dedup or self._rewritten is not None, 0
        head = [int(force), options.key_ttl_seconds or 0, len(fields), *fields]
        for trip in range(0, len(keys), ROWS_PER_TRIP):
            with self._get_client(options).pipeline(transaction=False) as pipe:
                for start in range(trip, min(trip + ROWS_PER_TRIP, len(keys)), ROWS_PER_CALL):
                    part = keys[start : start + ROWS_PER_CALL]
                    values = cells[start * len(fields) : (start + ROWS_PER_CALL) * len(fields)]
                    # Each trip begins with the script itself: a Redis that was restarted in
                    # between knows it again, also when the client repeats a trip of its own.
                    call = ("EVAL", SCRIPT) if start == trip else ("EVALSHA", SCRIPT_SHA)
                    pipe.execute_command(*call, len(part), *part, *head, *values)
                written += sum(pipe.execute())
        if self._rewritten is not None:
            self._rewritten.update(keys)
        return written

    @contextmanager
    def rewriting(self, config: RepoConfig, table: FeatureView) -> Iterator[None]:
        """Make the view's values online exactly what is written meanwhile.

        Every row is written, older or not, and in the end entities without one lose the view's
        values. Readers see the old value or the new one at any time. One writer at a time.
        """
        self._rewritten = set()
        try:
            yield
            self._forget(config, table, keep=self._rewritten)
        finally:
            self._rewritten = None

    def _forget(self, config: RepoConfig, table: FeatureView, keep: set[bytes]) -> None:
        client = self._get_client(config.online_store)
        prefix, project = stock._redis_key_prefix(table.join_keys), config.project.encode()  # noqa: SLF001
        fields = _fields(config, table, [feature.name for feature in table.features])
        for key in client.scan_iter(b"*" + project, count=10_000):
            if key.startswith(prefix) and key not in keep:
                client.hdel(key, *fields)


def newer(rows: list[Row], ttl: timedelta | None) -> list[Row]:
    """`rows`, nulls where one is older than its view's time to live."""
    if not ttl:
        return rows
    oldest = (ASKED_AT.get() or datetime.now(UTC)) - ttl
    return [row if row[0] and row[0] >= oldest else (None, None) for row in rows]


@contextmanager
def as_of(moment: datetime) -> Iterator[None]:
    """Have what is read inside be as old as it was at `moment` (aware UTC).

    A value is found until it is exactly its view's time to live old, as in the offline join.
    """
    before = ASKED_AT.set(moment)
    try:
        yield
    finally:
        ASKED_AT.reset(before)


def _fields(config: RepoConfig, table: FeatureView, names: Sequence[str]) -> list[bytes]:
    """Names in the hash: of the view's event time, then of each feature."""
    view = stock._versioned_fv_name(table, config)  # noqa: SLF001
    return [f"_ts:{view}".encode(), *(stock._mmh3(f"{view}:{name}") for name in names)]  # noqa: SLF001

"""Feast's online side: the newest features of an entity, or a clear word that there are none."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import feast
from feast.infra.online_stores.online_store import OnlineStore
from feast.type_map import feast_value_type_to_python_type
from feast.types import String
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from core.errors import FeaturesUnavailableError
from core.settings import Settings
from core.spec import Entity
from core.timestamps import microseconds
from feature_repo.store import SAMPLES, mark, online_client, online_store, open_store, request_data

Row = tuple[datetime | None, dict[str, Any] | None]
"""Event time and values of one entity in one view, as Feast has them."""

READ_DEADLINE = 0.05

Features = dict[str, int | float | datetime | str | None]


class OnlineFeatures:
    """Reads one feature service, for one thread. A call waits 50 ms for Redis at most.

    The registry is read once and then only by `watermark`.
    """

    def __init__(
        self,
        settings: Settings,
        service: str,
        features: Sequence[str],
        store: feast.FeatureStore | None = None,
    ) -> None:
        """store: in place of the one that `feature_store.yaml` names."""
        self._store = store or open_store(settings, READ_DEADLINE)
        self._service = self._store.get_feature_service(service)
        used = {projection.name for projection in self._service.feature_view_projections}
        self._views = [v.name for v in self._store.list_feature_views() if v.name in used]
        self._features = features
        self._online = _ValuesInTime(online_store(self._store))
        self._redis = online_client(self._store)
        if self._redis is not None:
            # redis-py's own three retries would turn a deadline of 50 ms into seconds.
            self._redis.set_retry(Retry(NoBackoff(), 0))

    def read(self, keys: Sequence[Entity], as_of: datetime) -> list[Features | None]:
        """Features of each entity as known now, with clock-dependent ones at `as_of` (UTC).

        keys: with request data. None: an entity that is unknown, or of which every value is older
        than its view's time to live; single values that are too old are None.

        Raises:
            FeaturesUnavailableError: Redis is down or too slow.

        """
        self._online.as_of = as_of
        asked = [{**key, "as_of": microseconds(as_of)} for key in keys]
        store = self._store
        try:
            found = self._online.get_online_features(
                store.config, self._service, asked, store.registry, store.project
            ).proto
        except RedisError as exc:
            raise FeaturesUnavailableError(f"Redis: {exc}") from exc
        names = found.metadata.feature_names.val
        columns = {n: column.values for n, column in zip(names, found.results, strict=True)}
        read = feast_value_type_to_python_type
        values = zip(*(map(read, columns[name]) for name in self._features), strict=True)
        rows = [dict(zip(self._features, row, strict=True)) for row in values]
        return [row if any(v is not None for v in row.values()) else None for row in rows]

    def ping(self) -> None:
        """Raise FeaturesUnavailableError unless Redis answers in time and holds the features.

        Another store is asked for an entity; what it raises passes through.
        """
        if self._redis is None:
            self.read([self._some_entity()], datetime.now(UTC))
            return
        try:
            found = self._redis.exists(*(mark(self._store, view) for view in self._views))
        except RedisError as exc:
            raise FeaturesUnavailableError(f"Redis: {exc}") from exc
        if found < len(self._views):
            raise FeaturesUnavailableError("Redis holds no features (any more): gyre ingest")

    def watermark(self) -> datetime | None:
        """The time (UTC) up to which the source is complete and its features are online."""
        self._store.refresh_registry()
        ends = [self._store.get_feature_view(name).most_recent_end_time for name in self._views]
        return None if not ends or None in ends else min(ends)

    def close(self) -> None:
        if self._redis is not None:
            self._redis.close()

    def _some_entity(self) -> Entity:
        fields = request_data(self._store, self._service)
        return {name: SAMPLES[kind][0] for name, kind in fields.items()} | {
            projection.join_key_map.get(key.name, key.name): "" if key.dtype == String else 0
            for projection in self._service.feature_view_projections
            if projection.name in self._views
            for key in self._store.get_feature_view(projection.name).entity_columns
        }


class _ValuesInTime(OnlineStore):  # type: ignore[misc]
    """Reads another store, and finds nothing older at `as_of` than its view's time to live.

    A value is found until it is exactly that old, as in the offline join.
    """

    def __init__(self, store: OnlineStore) -> None:
        self._store = store
        self.as_of = datetime.now(UTC)

    def online_read(self, config: Any, table: Any, *asked: Any, **options: Any) -> list[Row]:
        rows: list[Row] = self._store.online_read(config, table, *asked, **options)
        if not table.ttl:
            return rows
        oldest = self.as_of - table.ttl
        return [row if row[0] and row[0] >= oldest else (None, None) for row in rows]

    def _read_only(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError

    online_write_batch = update = teardown = _read_only

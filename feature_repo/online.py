"""Feast's online side: the newest features of an entity, or a clear word that there are none."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from feast.infra.online_stores.redis import RedisOnlineStore
from feast.types import String
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from typeguard import suppress_type_checks

from feature_repo.extensions.online import as_of as reading_as_of
from feature_repo.extensions.online import newer
from feature_repo.store import mark, online_client, open_store
from stack.errors import FeaturesUnavailableError
from stack.moment import microseconds

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import feast

    from feature_repo.extensions.online import Row
    from stack.settings import Settings
    from stack.spec import Entity

READ_DEADLINE = 0.05

Features = dict[str, int | float | str | None]


class OnlineFeatures:
    """Reads one feature service. Each call ends within 50 ms of waiting for Redis.

    The registry is read once and then only by `watermark`, which a background thread calls: a
    refresh on the path of a request would stop it for milliseconds.
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
        # Feast checks the types of its own calls at each read: a tenth of the time it takes.
        self._unchecked = suppress_type_checks()
        self._unchecked.__enter__()
        self._redis = None
        online = self._store._get_provider().online_store  # noqa: SLF001  (no public way)
        if isinstance(online, RedisOnlineStore):
            self._redis = online_client(self._store)
            # redis-py's own three retries would turn a deadline of 50 ms into seconds.
            self._redis.set_retry(Retry(NoBackoff(), 0))
        else:
            online.online_read = _within_time_to_live(online.online_read)

    def read(self, keys: Sequence[Entity], as_of: datetime) -> list[Features | None]:
        """Features of each entity as known now, with clock-dependent ones at `as_of` (UTC).

        keys: of each entity the value of every join key.
        None stands for an entity that the store does not know, or of which every value is older
        than its view's time to live; single values that are too old are None.

        Raises:
            FeaturesUnavailableError: Redis is down or too slow; when to try again is the caller's.

        """
        instant = microseconds(as_of)
        rows = [{**key, "as_of": instant} for key in keys]
        try:
            columns = answer(self._store, self._service, rows, as_of)
        except RedisError as exc:
            raise FeaturesUnavailableError(f"Redis: {exc}") from exc
        values = [columns[name] for name in self._features]
        return [
            None if all(value is None for value in row)
            else dict(zip(self._features, row, strict=True))
            for row in zip(*values, strict=True)
        ]  # fmt: skip

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

    def _some_entity(self) -> Entity:
        return {
            projection.join_key_map.get(key.name, key.name): "" if key.dtype == String else 0
            for projection in self._service.feature_view_projections
            if projection.name in self._views
            for key in self._store.get_feature_view(projection.name).entity_columns
        }

    def watermark(self) -> datetime | None:
        """The time (UTC) up to which the source is complete and its features are online."""
        self._store.refresh_registry()
        ends = [self._store.get_feature_view(name).most_recent_end_time for name in self._views]
        return None if not ends or None in ends else min(ends)

    def close(self) -> None:
        self._unchecked.__exit__(None, None, None)
        if self._redis is not None:
            self._redis.close()


def _within_time_to_live(read: Callable[..., list[Row]]) -> Callable[..., list[Row]]:
    """`online_read` of a store, which finds nothing that is older than its view's time to live."""

    def online_read(
        config: Any, table: Any, entity_keys: Any, requested_features: Any = None, **more: Any
    ) -> list[Row]:
        rows = read(config, table, entity_keys, requested_features, **more)
        return newer(rows, table.ttl)

    return online_read


def answer(
    store: Any, service: Any, rows: Sequence[Mapping[str, Any]], as_of: datetime
) -> dict[str, list[int | float | str | None]]:
    """Feast's answer by column. rows: join keys and request data; as_of (UTC): see the store."""
    with reading_as_of(as_of):
        found = store.get_online_features(service, rows).proto
    columns = zip(found.metadata.feature_names.val, found.results, strict=True)
    return {name: [_value(each) for each in column.values] for name, column in columns}


def _value(found: Any) -> int | float | str | None:
    """A Feast value as Python's; `to_dict` does the same for columns nobody asked for."""
    kind = found.WhichOneof("val")
    value: int | float | str | None = None if kind is None else getattr(found, kind)
    return value

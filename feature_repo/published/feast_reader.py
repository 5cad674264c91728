"""Online features as Feast reads them, for stores that serving cannot read by itself."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import feast
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey

from core.settings import Settings
from core.spec import Entity
from core.timestamps import BEGINNING, microseconds
from feature_repo.published.redis_names import entity_values
from feature_repo.published.service import AS_OF, PublishedService
from feature_repo.published.store import open_store

READ_TIMEOUT_SECONDS = 0.05


class OnlineFeatures:
    """Reads one feature service, for one thread. Errors of the store pass through.

    Args:
        settings: Settings of the installation.
        service: Name of a published feature service.
        features: Names of the features of a row.
        store: Feast's store; by default that of `feature_store.yaml`.

    Attributes:
        newest_times: Newest event time (aware UTC) that was read of each view.

    """

    def __init__(
        self,
        settings: Settings,
        service: str,
        features: Sequence[str],
        store: feast.FeatureStore | None = None,
    ) -> None:
        self._store = store or open_store(settings, READ_TIMEOUT_SECONDS)
        self._service = PublishedService(settings, service, self._store)
        self._features = features
        self._is_team_store = settings.feast_repo is not None
        self._online = _ValuesInTime(self._store.provider.online_store)
        self.newest_times = self._online.newest_times

    def read(
        self,
        keys: Sequence[Entity],
        as_of: datetime,
    ) -> list[dict[str, Any] | None]:
        """Read the current features of entities.

        Args:
            keys: Join keys and request data of each entity.
            as_of: Time (aware UTC) for features that depend on the clock, and for times to live.

        Returns:
            A row for each entity; None if no view has a row of it that is young enough.

        """
        if not keys:
            return []  # Feast fails
        self._online.as_of = as_of
        self._online.present.clear()
        clock = {AS_OF: microseconds(as_of)}
        response = self._online.get_online_features(
            config=self._store.config,
            features=self._service.feast_service,
            entity_rows=[{**key, **clock} for key in keys],
            registry=self._store.registry,
            project=self._store.project,
        )
        columns = response.to_dict()
        rows: list[dict[str, Any] | None] = []
        for position, key in enumerate(keys):
            row = {name: columns[name][position] for name in self._features}
            rows.append(row if self._is_known(key) else None)
        return rows

    def _is_known(self, key: Entity) -> bool:
        """Whether a view had a row of an entity when the views were last read."""
        if not self._service.stored:
            return True
        for view in self._service.stored:
            names = view.projection.join_key_map
            values = [key[names.get(name, name)] for name in sorted(view.join_keys)]
            if (view.projection.name_to_use(), *values) in self._online.present:
                return True
        return False

    def warm_up(self) -> None:
        """Read an entity that hardly exists: the first call of an on-demand view takes seconds."""
        now = datetime.now(UTC)
        kinds = self._service.key_types | self._service.request_data
        others: dict[str, Any] = {"string": "", "timestamp": now}
        key = {name: others.get(kind, 0) for name, kind in kinds.items()}
        with suppress(Exception):  # a team's function need not take such values
            self.read([key], now)

    def probe(self) -> datetime | None:
        """Read an unknown entity of each view; return the time (UTC) that all views are online to.

        The time is None if one of them never came online.
        """
        if (
            not self._is_team_store
        ):  # a team says itself how long its registry may be cached
            self._store.refresh_registry()
        times = []
        for view in self._service.stored:
            self._online.online_read(self._store.config, view, [EntityKey()])
            published = self._store.get_feature_view(
                view.name, allow_registry_cache=True
            )
            times.append(published.most_recent_end_time)
        return None if not times or None in times else min(times)

    def close(self) -> None:
        asyncio.run(self._store.close())


class _ValuesInTime(OnlineStore):  # type: ignore[misc]
    """Reads another store, without values that are older at `as_of` than their view's time to live.

    A value of exactly that age is read, as in the offline join.

    Attributes:
        as_of: Time of the read, aware UTC.
        present: View and values of the sorted join keys for each row that was read.
        newest_times: Newest event time that was read of each view.

    """

    def __init__(self, store: OnlineStore) -> None:
        self._store = store
        self.as_of = datetime.now(UTC)
        self.present: set[tuple[Any, ...]] = set()
        self.newest_times: dict[str, datetime] = {}

    def online_read(
        self, config: Any, table: Any, entity_keys: Any, **options: Any
    ) -> list[Any]:
        stored = self._store.online_read(config, table, entity_keys, **options)
        rows: list[Any] = []
        for key, (time, values) in zip(entity_keys, stored, strict=True):
            is_present = has_row(time, values)
            if is_present:
                newest = self.newest_times.get(table.name, time)
                self.newest_times[table.name] = max(newest, time)
            if is_present and table.ttl:
                is_present = time >= self.as_of - table.ttl
            if is_present:
                self.present.add((table.projection.name_to_use(), *entity_values(key)))
            rows.append((time, values) if is_present else (None, None))
        return rows

    def _read_only(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError

    online_write_batch = update = teardown = _read_only


def has_row(time: datetime | None, values: Mapping[str, Any]) -> bool:
    """Whether the values that Feast read for a key are a row.

    For a key without a row, Feast's Redis store returns nulls of BEGINNING. `OnlineValues` writes
    such nulls to a store from which Feast cannot delete.
    """
    if time is None or time > BEGINNING:
        return time is not None
    return any(value.WhichOneof("val") for value in values.values())

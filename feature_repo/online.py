"""Feast's own reading of online features, for stores that serving cannot read by itself."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import feast
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey

from core.settings import Settings
from core.spec import Entity
from core.timestamps import microseconds
from feature_repo.service_views import service_views
from feature_repo.store import open_store

StoredRow = tuple[datetime | None, dict[str, Any] | None]
"""Event time and values of one entity in one view, as Feast has them."""
Features = dict[str, int | float | datetime | str | None]
READ_TIMEOUT_SECONDS = 0.05


class OnlineFeatures:
    """Reads one feature service, for one thread. What the store raises passes."""

    def __init__(
        self,
        settings: Settings,
        service: str,
        features: Sequence[str],
        store: feast.FeatureStore | None = None,
    ) -> None:
        """Open the store.

        Args:
            settings: Of the installation.
            service: Name of a published feature service.
            features: What a row holds.
            store: In place of the one that `feature_store.yaml` names.

        """
        self._store = store or open_store(settings, READ_TIMEOUT_SECONDS)
        self._service = self._store.get_feature_service(service)
        self._views = service_views(self._store, self._service).stored
        self._features = features
        self._online = _ValuesInTime(self._store.provider.online_store)

    def read(
        self,
        keys: Sequence[Entity],
        as_of: datetime,
    ) -> list[Features | None]:
        """Read the features of each entity as known now.

        Args:
            keys: Join keys and request data of each entity.
            as_of: The moment (UTC) of features that depend on the clock, and of times to live.

        Returns:
            A row of each entity. It is None of one that is unknown, or of which every value is
            older than its view's time to live.

        """
        self._online.as_of = as_of
        store = self._store
        clock = {"as_of": microseconds(as_of)}
        response = self._online.get_online_features(
            config=store.config,
            features=self._service,
            entity_rows=[{**key, **clock} for key in keys],
            registry=store.registry,
            project=store.project,
        )
        columns = response.to_dict()
        rows: list[Features | None] = []
        for values in zip(*map(columns.get, self._features), strict=True):
            is_unknown = values.count(None) == len(values)
            row = dict(zip(self._features, values, strict=True))
            rows.append(None if is_unknown else row)
        return rows

    def ping(self) -> None:
        """Read nobody from each view; what the store raises passes."""
        nobody = EntityKey()
        for view in self._views:
            self._online.online_read(self._store.config, view, [nobody])

    def watermark(self) -> datetime | None:
        """Return the time (UTC) up to which the source is complete and its features are online."""
        self._store.refresh_registry()
        times = []
        for view in self._views:
            published = self._store.get_feature_view(view.name)
            times.append(published.most_recent_end_time)
        return None if not times or None in times else min(times)

    def close(self) -> None:
        asyncio.run(self._store.close())


class _ValuesInTime(OnlineStore):  # type: ignore[misc]
    """Reads another store, and nothing older at `as_of` than its view's time to live.

    A value is read until it is exactly that old, as in the offline join.
    """

    def __init__(self, store: OnlineStore) -> None:
        self._store = store
        self.as_of = datetime.now(UTC)

    def online_read(
        self,
        config: Any,
        table: Any,
        *keys: Any,
        **options: Any,
    ) -> list[StoredRow]:
        stored: list[StoredRow] = self._store.online_read(config, table, *keys, **options)
        if not table.ttl:
            return stored
        oldest = self.as_of - table.ttl
        rows: list[StoredRow] = []
        for time, values in stored:
            is_valid = time is not None and time >= oldest
            rows.append((time, values) if is_valid else (None, None))
        return rows

    def _read_only(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError

    online_write_batch = update = teardown = _read_only

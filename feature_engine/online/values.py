"""The online values of a dataset's views: their state, what is stored, and how it is computed.

The value online is the newest row of an entity at or before now. A writer holds the dataset's
feature lock: ingest for a batch, the event consumer for a micro-batch.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from functools import cached_property
from typing import Any

import pyarrow as pa
from feast import FeatureView
from feast.errors import FeastObjectNotFoundException
from feast.infra.key_encoding_utils import deserialize_entity_key
from feast.infra.online_stores.redis import RedisOnlineStoreConfig

from core.errors import DataError
from core.locks import ONLINE_LOCK, one_writer
from core.settings import Settings
from core.tables.table import Table
from feature_engine.offline.views import (
    ViewState,
    ViewTable,
    view_tables,
)
from feature_engine.online.entity_values import compute_view, raw_rows
from feature_engine.online.redis_rows import connect_redis, scan_keys
from feature_engine.online.state import OnlineState, read_state
from feature_engine.online.writer import OnlineWriter, ViewValues
from feature_repo.definition import Dataset
from feature_repo.published.config import online_redis
from feature_repo.published.feast_reader import has_row
from feature_repo.published.redis_names import KeyValues, hash_names, state_key
from feature_repo.published.store import WRITE_DEADLINE, open_store

LOCK_SECONDS = 10.0


class OnlineValues:
    """Reads and writes the online values of one dataset; for one thread.

    Every call raises RedisError where Redis does not answer, or refuses a write.

    Args:
        settings: Settings of the installation.
        dataset: The dataset that makes the views.
        raw: The dataset's raw table.
        timeout_seconds: Time that Redis may take for one command.

    Attributes:
        settings: See above.
        dataset: See above.
        raw: See above.
        tables: The tables of the dataset's views.
        store: Feast's store.
        redis: A client of Redis.
        is_redis: Whether the values are in Redis, not in another store of Feast.
        writer: The writer of the values.

    """

    def __init__(
        self,
        settings: Settings,
        dataset: Dataset,
        raw: Table,
        timeout_seconds: float = WRITE_DEADLINE,
    ) -> None:
        self.settings = settings
        self.dataset = dataset
        self.raw = raw
        self.tables = view_tables(settings, dataset, raw)
        self.store = open_store(settings, timeout_seconds)
        self.redis = connect_redis(online_redis(settings), timeout_seconds)
        self.is_redis = isinstance(
            self.store.config.online_store, RedisOnlineStoreConfig
        )
        feast_write = None if self.is_redis else self.store.provider.ingest_df
        self.writer = OnlineWriter(
            self.store.config, self.redis, feast_write, is_locked=True
        )

    @cached_property
    def views(self) -> dict[str, FeatureView]:
        """Feast's views as they were published when `problem` was last asked for.

        Raises:
            FeastObjectNotFoundException: One of them is not published.

        """
        return {name: self.store.get_feature_view(name) for name in self.dataset.views}

    def lock(self) -> AbstractContextManager[None]:
        """Make reading, computing and writing one step for all processes.

        Raises:
            DataError: Another process holds the lock for more than 10 s.

        """
        name = ONLINE_LOCK.format(self.dataset.name)
        return one_writer(self.settings, name, LOCK_SECONDS)

    def state(self, view: str) -> OnlineState | None:
        """Return the state of a view's values; None: Redis holds none."""
        return read_state(self.redis, state_key(self.store.project, view))

    def moment(self, view: str, now: datetime) -> datetime:
        """Return the time up to which rows of a view count: now, or a later time that is online."""
        state = self.state(view)
        return now if state is None or state.time is None else max(now, state.time)

    def redefined_views(self) -> list[str]:
        """Return the names of the views whose rows are of another expression than the code's."""
        if not self.raw.exists:
            return []
        return [view.name for view in self.tables if view.is_redefined()]

    def problem(self) -> str | None:
        """Return the reason why the consumer may write nothing; None if it may.

        Ingest alone writes the values of a changed expression.
        """
        vars(self).pop("views", None)
        try:
            self.views  # noqa: B018  (whether they are published)
        except FeastObjectNotFoundException as exc:
            return f"{exc}; run: cd feature_repo && feast apply"
        changed_views = self.redefined_views()
        if not changed_views:
            return None
        names = ", ".join(changed_views)
        return f"{names}: expression changed; run: gyre ingest {self.dataset.name}"

    def compute(
        self, rows: pa.Table, former_rows: pa.Table, moment: datetime
    ) -> list[ViewValues]:
        """Compute the newest values of some entities in every view: see `compute_view`.

        Args:
            rows: Every raw row of these entities.
            former_rows: Raw rows that are, or were, of these entities.
            moment: Aware UTC; see `moment`.

        """
        values = []
        for name, view in self.views.items():
            until = self.moment(name, moment)
            values.append(compute_view(self.dataset, view, rows, former_rows, until))
        return values

    def compute_entities(
        self, entities: Collection[Any], moment: datetime
    ) -> list[ViewValues]:
        """Compute the newest values of entities, given by values of the dataset's entity column."""
        if not entities:
            return []
        column = self.dataset.entity
        rows = raw_rows(self.raw, [column], [(entity,) for entity in entities])
        former_rows = pa.table(
            {column: pa.array(entities, rows.schema.field(column).type)}
        )
        if any(list(view.join_keys) != [column] for view in self.views.values()):
            former_rows = rows
        return self.compute(rows, former_rows, moment)

    def lost_keys(self, view: str, keys: Sequence[KeyValues]) -> set[KeyValues]:
        """Return the keys of which the store has no row."""
        feast_view = self.views[view]
        config = self.store.config
        names = hash_names(config, feast_view, keys)
        entities = [
            deserialize_entity_key(name[: -len(config.project)]) for name in names
        ]
        store = self.store.provider.online_store
        rows = store.online_read(config, feast_view, entities)
        lost_keys = {
            key for key, row in zip(keys, rows, strict=True) if not has_row(*row)
        }
        # The consumer may have deleted a key that the table still has.
        return lost_keys - self.writer.keys_ahead(view, sorted(lost_keys))

    def stored_keys(self, view: str) -> Iterator[KeyValues]:
        """Yield the keys of all entities that have values of any view with a view's join keys."""
        if self.is_redis:
            for _, keys in scan_keys(self.redis, self.store.config, self.views[view]):
                yield keys

    def hashes_of(self, column: str, value: int | str) -> set[bytes]:
        """Return the names of the hashes of entities that have a value in a key column."""
        names = set()
        for view in self.views.values():
            columns = sorted(view.join_keys)
            if self.is_redis and column in columns:
                position = columns.index(column)
                for name, key in scan_keys(self.redis, self.store.config, view):
                    if key[position] == value:
                        names.add(name)
        return names

    def close(self) -> None:
        self.redis.close()


def written_state(view: ViewTable, version: int | None = None) -> ViewState:
    """Return the state of a view's rows in a version of its table (default: the newest).

    Raises:
        DataError: The view has no rows, or their state is not known.

    """
    state = view.state(version)
    if state is None:
        raise DataError(
            f"{view.name}: its rows are not computed; run: gyre ingest {view.dataset.name}"
        )
    return state

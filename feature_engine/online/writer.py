"""The one writer of online values: the last word on a key has the newer raw table.

Online is the newest row of each entity at or before now, and no value goes back. Who computes values
sees to the first. This module sees to the second, for values of two kinds:

- Values that are newer than the view's table, from the event consumer and from windows that end.
  Their keys are noted in a sorted set, with the version of the raw table, before they are written.
- Rows of the view's table, from a refresh. A key that is noted is ahead of the table: its row is left
  out. Spark's executors do not hold the feature lock, as every other writer does: there a transaction
  watches the notes, and begins anew where a key is noted meanwhile.

All of this travels to Spark's executors by value, so it imports nothing of Gyre but values, and
modules that travel too.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pandas as pd
import pyarrow as pa
from feast import FeatureView, RepoConfig
from redis.exceptions import RedisError

from core.timestamps import BEGINNING
from feature_engine.online.redis_rows import (
    Command,
    connect_redis,
    delete_commands,
    key_text,
    key_values,
    write_commands,
)
from feature_engine.online.state import ahead_key
from feature_repo.published.redis_names import KeyValues

BATCH_KEYS = 1_000
"""Keys of one transaction of a refresh."""
FeastWrite = Callable[[FeatureView, pd.DataFrame], None]


@dataclass(frozen=True)
class ViewValues:
    """Values of some entities in one view.

    Attributes:
        view: Feast's view.
        rows: The newest row of each entity: join keys, event time, features.
        deleted: Keys of entities that have no row.
        next_rows: The first row of each entity that is not due yet.

    """

    view: FeatureView
    rows: pa.Table
    deleted: Sequence[KeyValues] = ()
    next_rows: pa.Table | None = None

    def all_keys(self) -> list[KeyValues]:
        """Return the keys of the rows, then those that are deleted."""
        return [*key_values(self.view, self.rows), *self.deleted]


class OnlineWriter:
    """Writes values of entities, and deletes those of entities without a row.

    Args:
        config: Feast's configuration.
        redis: A client of Redis. It has the sorted sets also where another store has the values.
        feast_write: Feast's own write, where the values are in another store; None: in Redis.
        is_locked: Whether the caller holds the feature lock while it writes.

    """

    def __init__(
        self,
        config: RepoConfig,
        redis: Any,
        feast_write: FeastWrite | None = None,
        *,
        is_locked: bool = False,
    ) -> None:
        self._config = config
        self._redis = redis
        self._feast_write = feast_write
        self._is_locked = is_locked

    def write(
        self, values: Iterable[ViewValues], raw_version: int | None = None
    ) -> None:
        """Write values of entities, in any views.

        Args:
            values: The newest row of each entity at or before now.
            raw_version: Version of the raw table that values newer than the view's table are computed
                from. Their keys are noted, so that the next refresh writes them again. None: rows of
                the view's table, which are left out where their key is noted.

        Raises:
            RedisError: Redis does not answer, or refuses a write.

        """
        if raw_version is None:
            for view_values in values:
                self._write_rows_of_table(view_values)
        else:
            self._write_newer(values, raw_version)

    def keys_ahead(
        self, view: str, keys: Sequence[KeyValues], raw_version: int = 0
    ) -> set[KeyValues]:
        """Return the keys that are noted with a version of the raw table, or with a later one."""
        noted = ahead_key(self._config.project, view)
        if not keys or not self._redis.exists(noted):
            return set()
        texts = [key_text(key) for key in keys]
        versions = self._redis.zmscore(noted, texts)
        return {
            key
            for key, version in zip(keys, versions, strict=True)
            if version is not None and version >= raw_version
        }

    def _write_newer(self, values: Iterable[ViewValues], raw_version: int) -> None:
        with self._redis.pipeline(transaction=False) as pipe:
            for view_values in values:
                notes = {key_text(key): raw_version for key in view_values.all_keys()}
                if notes:
                    name = view_values.view.name
                    pipe.zadd(ahead_key(self._config.project, name), notes)
                if self._feast_write:
                    self._write_by_feast(view_values)
                else:
                    self._add_commands(pipe, view_values)
            pipe.execute()

    def _write_rows_of_table(self, values: ViewValues) -> None:
        noted = ahead_key(self._config.project, values.view.name)
        for batch in _batches(values):
            if self._feast_write:
                self._write_by_feast(self._behind(batch))
            elif self._is_locked:
                with self._redis.pipeline(transaction=False) as pipe:
                    self._add_commands(pipe, self._behind(batch))
                    pipe.execute()
            else:
                commands = list(self._commands(batch))
                add_commands = partial(_add_behind, noted, batch, commands)
                self._redis.transaction(add_commands, noted)

    def _add_commands(self, pipe: Any, values: ViewValues) -> None:
        for command in self._commands(values):
            pipe.execute_command(*command)

    def _commands(self, values: ViewValues) -> Iterator[Command]:
        """Yield the command of each key, in the order of `ViewValues.all_keys`."""
        yield from write_commands(self._config, values.view, values.rows)
        yield from delete_commands(self._config, values.view, values.deleted)

    def _behind(self, values: ViewValues) -> ViewValues:
        """Return the values whose keys are not noted."""
        keys_ahead = self.keys_ahead(values.view.name, values.all_keys())
        if not keys_ahead:
            return values
        row_keys = key_values(values.view, values.rows)
        is_behind = pa.array([key not in keys_ahead for key in row_keys], pa.bool_())
        deleted = [key for key in values.deleted if key not in keys_ahead]
        return ViewValues(values.view, values.rows.filter(is_behind), deleted)

    def _write_by_feast(self, values: ViewValues) -> None:
        """Write to another online store. Feast cannot delete: an entity without a row gets nulls.

        They are dated BEGINNING, which tells them from a row whose features are null.
        """
        now = datetime.now(UTC)
        names = sorted(values.view.join_keys)
        empty_rows = []
        for keys in values.deleted:
            row = dict(zip(names, keys, strict=True))
            empty_rows.append(row | {"event_timestamp": BEGINNING, "created": now})
        nulls = pa.Table.from_pylist(empty_rows, schema=values.rows.schema)
        # Feast writes the first chunk alone.
        rows = pa.concat_tables([values.rows, nulls]).combine_chunks()
        if rows.num_rows and self._feast_write:
            frame = rows.to_pandas(types_mapper=pd.ArrowDtype)
            self._feast_write(values.view, frame)


def write_on_executor(
    config: RepoConfig,
    view: FeatureView,
    address: str,
    timeout_seconds: float,
    rows: pa.Table,
) -> str:
    """Write rows of a view's table on an executor of Spark.

    Args:
        config: A result of `format_config`.
        view: Feast's view.
        address: Redis' address.
        timeout_seconds: Time that Redis may take for a command.
        rows: Join keys, event time and features.

    Returns:
        The reason why Redis did not take the rows; empty if it did.

    """
    try:
        with closing(connect_redis(address, timeout_seconds)) as redis:
            OnlineWriter(config, redis).write([ViewValues(view, rows)])
    except RedisError as exc:
        return str(exc)
    return ""


def _batches(values: ViewValues) -> Iterator[ViewValues]:
    """Yield values of at most 1,000 keys at a time."""
    for start in range(0, values.rows.num_rows, BATCH_KEYS):
        yield ViewValues(values.view, values.rows.slice(start, BATCH_KEYS))
    for start in range(0, len(values.deleted), BATCH_KEYS):
        deleted = values.deleted[start : start + BATCH_KEYS]
        yield ViewValues(values.view, values.rows.slice(0, 0), deleted)


def _add_behind(
    noted: str, values: ViewValues, commands: Sequence[Command], pipe: Any
) -> None:
    """Add the commands of the keys that are not noted to a transaction, which watches the notes."""
    versions: Sequence[float | None] = [None] * len(commands)
    if pipe.exists(noted):
        texts = [key_text(key) for key in values.all_keys()]
        versions = pipe.zmscore(noted, texts)
    pipe.multi()
    for version, command in zip(versions, commands, strict=True):
        if version is None:
            pipe.execute_command(*command)

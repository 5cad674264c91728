"""The rows of a view to write online: the newest row of each key whose value may differ."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import ibis
import ibis.expr.types as ir

from feature_engine.engines.engine import read_files, temporary_table
from feature_engine.engines.periods import period_of
from feature_engine.offline.raw import changed_rows
from feature_engine.offline.views import ViewTable
from feature_engine.online.entity_values import key_rows
from feature_repo.published.redis_names import KeyValues


class ViewDifference:
    """The rows of one version of a view at a moment, compared with older versions.

    Args:
        connection: Connection of an engine; temporary tables are made there.
        view: The view's table.
        keys: Names of the view's join keys.
        version: The version of the view's table.
        moment: Aware UTC. Rows that are dated later do not count yet.

    """

    def __init__(
        self,
        connection: Any,
        view: ViewTable,
        keys: Sequence[str],
        version: int,
        moment: datetime,
    ) -> None:
        self._connection = connection
        self._view = view
        self._keys = keys
        self._version = version
        self._moment = moment
        self._rows = read_files(connection, view.table, view.table.names(version))
        self.no_rows = self._rows.schema().to_pyarrow().empty_table()
        self._latest = self._rows.limit(0)

    def changed_keys(
        self,
        old_versions: Iterable[int],
        since: datetime,
        more_keys: Sequence[KeyValues],
    ) -> ir.Table | None:
        """Return the keys whose newest rows may differ from the rows of older versions.

        Args:
            old_versions: Versions of the view's table.
            since: The moment of the newest rows of the older versions.
            more_keys: Keys that are added.

        Returns:
            A table of join keys; None where an older version is gone or of another definition.

        """
        rows = self._read(self._files_since(since))
        times = rows.event_timestamp
        due = rows.filter((times > since) & (times <= self._moment))
        parts = [self.key_table(more_keys), due.select(self._keys)]
        for old_version in old_versions:
            keys = self._keys_of_changed_entities(old_version)
            if keys is None:
                return None
            parts.append(keys)
        return temporary_table(self._connection, ibis.union(*parts, distinct=True))

    def newest(self, keys: ir.Table | None) -> ir.Table:
        """Return the newest row of each of the keys (None: of all), by event_timestamp, created."""
        due = self._rows.filter(self._rows.event_timestamp <= self._moment)
        if keys is not None:
            due = due.semi_join(keys, self._keys)
        latest = due.group_by(self._keys).agg(event_timestamp=due.event_timestamp.max())
        self._latest = temporary_table(self._connection, latest)
        earliest = self._connection.to_pyarrow(
            self._latest.event_timestamp.min()
        ).as_py()
        if earliest is None:
            return self._rows.limit(0)
        rows = self._read(self._files_since(earliest))
        newest = rows.semi_join(self._latest, [*self._keys, "event_timestamp"])
        by_key = ibis.window(group_by=self._keys, order_by=ibis.desc("created"))
        return newest.filter(ibis.row_number().over(by_key) == 0)

    def vanished(self, keys: ir.Table) -> ir.Table:
        """Return the keys without a row; call `newest` before."""
        return keys.anti_join(self._latest, self._keys).select(self._keys)

    def key_table(self, keys: Iterable[KeyValues]) -> ir.Table:
        """Return keys as a table."""
        return ibis.memtable(key_rows(self.no_rows.schema, self._keys, keys))

    def _keys_of_changed_entities(self, old_version: int) -> ir.Table | None:
        """Return the old and the new keys of entities whose raw rows changed since a version."""
        state = self._view.state(self._version)
        old_state = self._view.state(old_version)
        files = self._view.table.changed_files(old_version, self._version)
        if state is None or old_state is None or files is None:
            return None
        if old_state.definition != state.definition:
            return None
        changes = changed_rows(
            self._connection, self._view.raw, old_state.raw, state.raw
        )
        if changes is None:
            return None
        added_files, removed_files = files
        rows = self._read([*added_files, *removed_files])
        return rows.semi_join(changes, self._view.dataset.entity).select(self._keys)

    def _files_since(self, moment: datetime) -> list[str]:
        """Return the files of the version that have rows of a moment's period, or of later ones."""
        return self._view.table.names(
            self._version, within=f"period >= {period_of(moment)}"
        )

    def _read(self, files: Sequence[str]) -> ir.Table:
        """Open files of the view; without files there are no rows."""
        if not files:
            return self._rows.limit(0)
        return read_files(self._connection, self._view.table, files)

"""Feature views: Ibis expressions over a raw table, each with a Delta table for its rows.

The commit of a view's rows holds the state of the view: the definition, and the version of the raw
table. Rows are cut into periods of event time. A refresh computes the rows of changed entities anew
from the period of the earliest change on, and copies the rows of all others; files of earlier
periods stay.
"""

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import ibis
import ibis.expr.types as ir
import numpy as np
import pyarrow as pa
from feast import FeatureView

from core.errors import DataError, UncomputableError
from core.settings import Settings
from core.tables.table import Table
from feature_engine.engines.engine import (
    VALUE_ERRORS,
    engine_connection,
    read_files,
    temporary_table,
    value_error,
    write_files,
)
from feature_engine.engines.periods import PERIOD, period_of
from feature_engine.offline.raw import changed_rows, open_raw, raw_table
from feature_repo.definition import Dataset
from feature_repo.definition_hash import view_definition
from feature_repo.published.config import VIEWS_FOLDER
from feature_repo.published.service import PublishedService, field_types

DEFINITION_DIGITS = 15
"""Digits of a hash in hexadecimal: a Delta table can note 60 bits."""
LAST_PERIOD = 2**31
"""A period later than every row."""


class ViewState(NamedTuple):
    """State of a view: the definition and the raw rows that its rows were computed from.

    Attributes:
        definition: Hash of the view's SQL and of the identity of the raw table.
        raw: Version of the raw table.

    """

    definition: int
    raw: int


class ViewTable:
    """The Delta table of one feature view.

    Args:
        settings: Settings of the installation.
        dataset: Dataset of the view.
        raw: Raw table of the dataset.
        name: Name of the view, a key of `dataset.views`.

    """

    def __init__(
        self, settings: Settings, dataset: Dataset, raw: Table, name: str
    ) -> None:
        self.name = name
        self.dataset = dataset
        self.raw = raw
        self.table = view_table(settings, name)
        self._settings = settings
        self._expression = dataset.views[name]

    def state(self, version: int | None = None) -> ViewState | None:
        """Return the state of a version, by default of the newest one; None if it is not known."""
        notes = self.table.noted(ViewState._fields, version)
        return ViewState(**notes) if notes else None

    def state_in_code(self) -> ViewState:
        """Return the state that rows would have if they were computed now."""
        definition = view_definition(self.dataset, self.name)
        text = f"{definition} {self.raw.identity} {PERIOD}"
        digest = hashlib.sha256(text.encode()).hexdigest()
        return ViewState(
            definition=int(digest[:DEFINITION_DIGITS], 16), raw=self.raw.version
        )

    def is_redefined(self) -> bool:
        """Whether the rows, if there are any, are of another expression than the code's."""
        state = self.state()
        return state is None or state.definition != self.state_in_code().definition

    def refresh(self) -> None:
        """Bring the rows to the newest version of the raw table, in one commit."""
        with (
            self.table.writing()
        ):  # a refresh that waited for another may find no change
            old_state = self.state()
            new_state = self.state_in_code()
            if old_state != new_state:
                self._refresh(old_state, new_state)

    def _refresh(self, old_state: ViewState | None, new_state: ViewState) -> None:
        scratch = self._settings.cache / f"{self.name}.refresh"
        shutil.rmtree(scratch, ignore_errors=True)  # left by a killed refresh
        scratch.mkdir(parents=True)
        first_period = None
        with engine_connection(self._settings, scratch / "spill") as connection:
            raw_rows = open_raw(connection, self.raw, new_state.raw)
            changes = None
            if old_state is not None and old_state.definition == new_state.definition:
                changes = changed_rows(
                    connection=connection,
                    raw=self.raw,
                    old_version=old_state.raw,
                    new_version=new_state.raw,
                )
            if changes is None:
                view_rows = self._expression(raw_rows)
            else:
                changes = temporary_table(connection, changes)
                first_period = self._first_period(changes)
                view_rows = self._updated_rows(
                    connection=connection,
                    raw_rows=raw_rows,
                    changes=changes,
                    first_period=first_period,
                )
            files = write_files(
                connection, view_rows, self.table, first_period, scratch / "rows"
            )
            columns = view_rows.schema().to_pyarrow()
        self.table.commit(
            files,
            columns,
            within=None if first_period is None else f"period >= {first_period}",
            notes=new_state._asdict(),
        )
        shutil.rmtree(scratch)

    def _first_period(self, changes: ir.Table) -> int:
        """Return the period of the earliest change, from which files are replaced."""
        earliest: datetime | None = (
            changes[self.dataset.event_time].min().to_pyarrow().as_py()
        )
        return period_of(earliest) if earliest else LAST_PERIOD

    def _updated_rows(
        self, connection: Any, raw_rows: ir.Table, changes: ir.Table, first_period: int
    ) -> ir.Table:
        """Compute the rows of changed entities, and add the others' rows from `first_period` on."""
        entity = self.dataset.entity
        computed = self._expression(raw_rows.semi_join(changes, entity))
        old_files = self.table.names(within=f"period >= {first_period}")
        if not old_files:
            return computed
        old_rows = read_files(connection, self.table, old_files)
        copied = old_rows.anti_join(changes, entity).select(computed.columns)
        return computed.union(copied.cast(computed.schema()))


def view_table(settings: Settings, view: str) -> Table:
    """Return the table of a view; the view's expression decides its columns."""
    return Table(settings, f"{VIEWS_FOLDER}/{view}", pa.schema([]))


def view_tables(settings: Settings, dataset: Dataset, raw: Table) -> list[ViewTable]:
    """Return the tables of all views of a dataset."""
    return [ViewTable(settings, dataset, raw, name) for name in dataset.views]


def write_views(settings: Settings, dataset: Dataset, raw: Table) -> None:
    """Bring every view of `dataset` to the newest version of its raw table, each in one commit.

    Raises:
        DataError: The raw table is empty, so there is nothing to compute from.
        UncomputableError: The table has a row that the view cannot be computed from.

    """
    if raw.version < 0:
        raise DataError(f"{dataset.name}: no rows yet; check the source")
    for view in view_tables(settings, dataset, raw):
        try:
            view.refresh()
        except VALUE_ERRORS as exc:
            raise UncomputableError(
                f"{dataset.name}: {view.name} cannot be computed from a row that is in the table "
                f"({value_error(exc)}); to move such rows to quarantine, run: "
                f"gyre ingest {dataset.name} --full"
            ) from exc


def require_built(service: PublishedService) -> None:
    """Refuse a feature service if one of its views lacks the rows of its expression.

    Raises:
        DataError: A view was published, but not computed since.

    """
    for dataset in service.datasets().values():
        for problem in unbuilt_views(service.settings, dataset, service.stored):
            raise DataError(problem)


def unbuilt_views(
    settings: Settings, dataset: Dataset, views: Iterable[FeatureView]
) -> Iterator[str]:
    """Yield a line for each published view of a dataset that lacks the rows of its expression.

    Raw rows that came since are no reason: then the features are late, which others measure.
    """
    raw = raw_table(settings, dataset)
    for view in views:
        if view.name not in dataset.views:
            continue
        view_table = ViewTable(settings, dataset, raw, view.name)
        table = view_table.table
        reason = ""
        remedy = f"run: gyre ingest {dataset.name}"
        if not table.names() or not raw.exists:
            reason = "no rows yet"
        elif view_table.is_redefined():
            reason = "its rows are of another expression"
        else:
            columns = table.stored_schema().names
            missing_fields = sorted(field_types(view.features).keys() - columns)
            if missing_fields:
                reason = f"its expression gives no {', '.join(missing_fields)}"
                remedy = f"add it to the expression, then {remedy}"
        if reason:
            yield f"{view.name}: applied, not built ({reason}); {remedy}"


def entities(
    settings: Settings,
    views: Mapping[str, Iterable[str]],
    key: Iterable[str],
    until: datetime | None = None,
    limit: int | None = None,
    since: datetime | None = None,
) -> pa.Table:
    """Return entities that have a row in one of some views; entities with the newest rows are first.

    Args:
        settings: Settings of the installation.
        views: Join keys of each view, by the name of the view.
        key: Join keys of the entities. Where the views have different keys, the first entity of
            one view is put together with the first entity of each other view, and so on.
        until: Time up to which rows count, aware UTC; None counts all rows.
        limit: Largest number of entities for each set of keys.
        since: Time after which rows count, aware UTC; None counts all rows.

    Returns:
        The columns `key`; no rows if no view has one of these keys.

    """
    columns = [*key]
    parts: dict[tuple[str, ...], list[ir.Table]] = {}
    with engine_connection(settings) as connection:
        for view, join_keys in views.items():
            table = view_table(settings, view)
            names = table.names()
            view_key = tuple(name for name in columns if name in join_keys)
            if names and view_key:
                rows = read_files(connection, table, names)
                keyed_rows = rows.select(*view_key, "event_timestamp")
                parts.setdefault(view_key, []).append(keyed_rows)
        keys = []
        for view_key, tables in parts.items():
            rows = ibis.union(*tables)
            if until is not None:
                rows = rows.filter(rows.event_timestamp <= until)
            if since is not None:
                rows = rows.filter(rows.event_timestamp > since)
            times = {"event_timestamp": rows.event_timestamp.max()}
            newest = rows.group_by(view_key).agg(times)
            newest = newest.order_by(ibis.desc("event_timestamp"), *view_key)
            newest = newest.select(view_key).limit(limit)
            keys.append(connection.to_pyarrow(newest))
    return _put_together(keys, columns)


def _put_together(parts: list[pa.Table], columns: list[str]) -> pa.Table:
    """Complete the entities of each part with columns of the other parts."""
    filled_parts = [part for part in parts if part.num_rows]
    # Keys of several columns stay whole.
    filled_parts.sort(key=lambda part: part.num_columns)
    row_count = max((part.num_rows for part in filled_parts), default=0)
    values: dict[str, pa.ChunkedArray] = {}
    for part in filled_parts:
        rows = part.take(np.arange(row_count) % part.num_rows)
        values |= dict(zip(rows.column_names, rows.columns, strict=True))
    if values.keys() < set(columns):
        return pa.table({name: [] for name in columns})
    return pa.table(values).select(columns)

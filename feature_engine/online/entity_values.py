"""Feature values of single entities, computed from their raw rows by the views' expressions."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

import ibis
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView

from core.tables.table import Table
from feature_engine.engines.duckdb_engine import row_connection
from feature_engine.offline.raw import open_raw
from feature_engine.online.redis_rows import key_values
from feature_engine.online.writer import ViewValues
from feature_engine.windows import Windows
from feature_repo.definition import Dataset
from feature_repo.published.redis_names import KeyValues

Row = dict[str, Any]
"""A raw row."""


def compute_view(
    dataset: Dataset,
    view: FeatureView,
    rows: pa.Table,
    former_rows: pa.Table,
    until: datetime,
) -> ViewValues:
    """Compute the newest values of some entities in one view.

    Args:
        dataset: The dataset that makes the view.
        view: Feast's view.
        rows: Every raw row of these entities.
        former_rows: Raw rows that are, or were, of these entities. An entity of such a row that has
            no row in the view is deleted.
        until: Aware UTC; rows of the view after it do not count yet.

    Raises:
        One of VALUE_ERRORS: The expression cannot take a value, such as an amount beyond its
            decimals.

    """
    expression = dataset.views[view.name]
    former_keys = former_rows
    with row_connection() as connection:
        raw = ibis.memtable(rows)
        if isinstance(expression, Windows):
            view_rows = expression.around(raw, until)
        else:
            view_rows = expression(raw)
        view_rows = connection.to_pyarrow(view_rows)
        if list(view.join_keys) != [dataset.entity]:
            former_view = expression(ibis.memtable(former_rows))
            former_keys = connection.to_pyarrow(
                former_view.select(view.join_keys).distinct()
            )
    former_keys = former_keys.group_by(view.join_keys).aggregate([])
    return values_at(view, view_rows, until, key_values(view, former_keys))


def values_at(
    view: FeatureView,
    rows: pa.Table,
    until: datetime,
    former_keys: Collection[KeyValues] = (),
) -> ViewValues:
    """Return the values at a moment from rows of a view that are dated before and after it."""
    is_due = pc.less_equal(rows["event_timestamp"], until)
    order = [("event_timestamp", "ascending"), ("created", "ascending")]
    due_rows = rows.filter(is_due).sort_by(order)
    keys = due_rows.select(view.join_keys).to_pandas(types_mapper=pd.ArrowDtype)
    is_older = keys.duplicated(keep="last")
    newest = due_rows.filter(pa.array(~is_older))
    later = rows.filter(pc.invert(is_due)).group_by(view.join_keys)
    next_times = later.aggregate([("event_timestamp", "min")])
    return ViewValues(
        view=view,
        rows=newest,
        deleted=sorted(set(former_keys) - set(key_values(view, newest))),
        next_rows=next_times.rename_columns([*view.join_keys, "event_timestamp"]),
    )


def key_of(row: Row, columns: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[name] for name in columns)


def key_rows(
    schema: pa.Schema, names: Sequence[str], keys: Iterable[tuple[Any, ...]]
) -> pa.Table:
    """Return keys as rows of the columns `names`, in the types of a schema."""
    rows = [dict(zip(names, key, strict=True)) for key in keys]
    return pa.Table.from_pylist(rows, schema).select(names)


def raw_rows(
    raw: Table,
    columns: Sequence[str],
    keys: Iterable[tuple[Any, ...]],
    replaced: pa.Table | None = None,
) -> pa.Table:
    """Return the rows of a raw table that have one of some keys in its `columns`.

    Rows that have all values of a row of `replaced` are left out.
    """
    key_table = ibis.memtable(key_rows(raw.schema, columns, keys))
    with row_connection() as connection:
        rows = open_raw(connection, raw).semi_join(key_table, columns)
        if replaced is not None:
            rows = rows.anti_join(ibis.memtable(replaced), replaced.column_names)
        return connection.to_pyarrow(rows).select(raw.schema.names).cast(raw.schema)

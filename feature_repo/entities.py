"""Feature values of single entities, computed from their raw rows by the views' expressions."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import reduce
from typing import Any

import duckdb
import ibis
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView

from core.storage import Table
from feature_repo.definition import Dataset
from feature_repo.engines import connected
from feature_repo.features import open_raw
from feature_repo.online_writer import KeyValues, key_values

Row = dict[str, Any]
"""A raw row."""
SOON = timedelta(hours=1)
"""How far ahead values are looked for that change by themselves."""
VALUE_ERRORS = (duckdb.DataError, duckdb.InvalidInputException, pa.ArrowInvalid)
"""What an expression raises at a value that it cannot take."""


@dataclass(frozen=True)
class ViewValues:
    """Values of some entities in one view.

    Attributes:
        view: Feast's view.
        rows: The newest row of each entity: join keys, event time, features.
        deleted: Keys of entities that have no row.
        upcoming: Join keys and event times of the rows that follow within `SOON`.

    """

    view: FeatureView
    rows: pa.Table
    deleted: Sequence[KeyValues] = ()
    upcoming: pa.Table | None = None


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
        former_rows: Raw rows that are, or were, theirs. An entity of such a row that has no row in
            the view is deleted.
        until: Aware UTC; rows of the view after it do not count yet.

    Raises:
        One of VALUE_ERRORS: The expression cannot take a value, such as an amount beyond its
            decimals.

    """
    expression = dataset.views[view.name]
    with connected(threads=1) as connection:
        view_rows = connection.to_pyarrow(expression(ibis.memtable(rows)))
        if list(view.join_keys) == [dataset.entity]:
            former_keys = set(key_values(view, former_rows))
        else:
            keys = expression(ibis.memtable(former_rows)).select(view.join_keys).distinct()
            former_keys = set(key_values(view, connection.to_pyarrow(keys)))
    times = view_rows["event_timestamp"]
    is_due = pc.less_equal(times, until)
    is_soon = pc.less_equal(times, until + SOON)
    newest = newest_of_key(view_rows.filter(is_due), view.join_keys)
    upcoming = view_rows.filter(pc.and_not(is_soon, is_due))
    return ViewValues(
        view=view,
        rows=newest,
        deleted=sorted(former_keys - set(key_values(view, newest))),
        upcoming=upcoming.select([*view.join_keys, "event_timestamp"]),
    )


def newest_of_key(rows: pa.Table, key: Sequence[str]) -> pa.Table:
    """Return the newest row of each key, by event_timestamp, then created."""
    order = [("event_timestamp", "ascending"), ("created", "ascending")]
    return last_of_key(rows.sort_by(order), key)


def last_of_key(rows: pa.Table, key: Sequence[str]) -> pa.Table:
    """Return the last of the rows that share a key; rows without a key all stay."""
    has_key = reduce(pc.and_, (pc.is_valid(rows[name]) for name in key))
    numbered = rows.append_column("_position", pa.array(np.arange(rows.num_rows)))
    last = numbered.filter(has_key).group_by(list(key)).aggregate([("_position", "max")])
    keyless = numbered.filter(pc.invert(has_key))["_position"]
    positions = pa.chunked_array([*last["_position_max"].chunks, *keyless.chunks], pa.int64())
    return rows.take(positions.sort())


def key_of(row: Row, columns: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[name] for name in columns)


def key_rows(schema: pa.Schema, names: Sequence[str], keys: Iterable[tuple[Any, ...]]) -> pa.Table:
    """Return keys as rows of the columns `names`, in the types of a schema."""
    rows = [dict(zip(names, key, strict=True)) for key in keys]
    return pa.Table.from_pylist(rows, schema=pa.schema([schema.field(name) for name in names]))


def raw_rows(raw: Table, keys: Mapping[tuple[str, ...], Collection[tuple[Any, ...]]]) -> pa.Table:
    """Return rows of a raw table that have one of some keys.

    Args:
        raw: The raw table.
        keys: Columns, and values of these columns. A row with the values of any entry is returned.

    """
    with connected(threads=1) as connection:
        rows = open_raw(raw, connection=connection)
        parts = [rows.limit(0)]
        for columns, values in keys.items():
            key_table = ibis.memtable(key_rows(raw.schema, columns, values))
            parts.append(rows.semi_join(key_table, columns))
        union = ibis.union(*parts, distinct=True)
        return connection.to_pyarrow(union).select(raw.schema.names).cast(raw.schema)

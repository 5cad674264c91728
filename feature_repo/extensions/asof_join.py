"""The ASOF join: the newest row of a feature view at or before each row of a frame.

Feast's own join pairs every earlier feature row with every entity row and keeps the newest pair,
which is quadratic in rows per entity.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import ibis
import ibis.expr.types as ir

UTC_TIME = "timestamp('UTC')"
EARLIEST = ibis.literal(datetime.min.replace(tzinfo=UTC))
LATEST = ibis.literal(datetime.max.replace(tzinfo=UTC))
MICROSECOND = timedelta(microseconds=1)
TIME = ibis.util.gen_name("time")
ORDER = ibis.util.gen_name("order")
"""Columns of the join; no column of a team has a name of 26 random letters."""


def dated_rows(
    rows: ir.Table, view: Any, names: Iterable[str], prefix: str = ""
) -> ir.Table:
    """Return keys and features of a view's rows, with TIME and ORDER.

    Args:
        rows: Rows with all columns of the view's source.
        view: Feast's view.
        names: Names of the features to return.
        prefix: Prefix for these names.

    """
    source = view.batch_source
    time = rows[source.timestamp_field].cast(UTC_TIME)
    created: Any = EARLIEST
    if source.created_timestamp_column:
        created_time = rows[source.created_timestamp_column].cast(UTC_TIME)
        created = ibis.coalesce(created_time, EARLIEST)
    features = {}
    for name in names:
        value = rows[name]
        if value.type().is_timestamp():  # Feast stores whole seconds online
            value = value.truncate("s").cast(value.type())
        features[prefix + name] = value
    # Equal event times are told apart inside the join: doing it before costs a sort.
    order = ibis.struct({"time": time, "created": created})
    keys = {name: rows[name] for name in view.join_keys}
    return rows.select({**keys, TIME: time, ORDER: order, **features})


def asof_join(
    entities: ir.Table,
    event_time: str,
    rows: ir.Table,
    view: Any,
) -> ir.Table:
    """Give each entity row the newest row of a view at or before it.

    Among rows of the same event time, the row that was created last counts. Features are null where
    the view has no row, or one older than its time to live.

    Args:
        entities: Rows with keys and a time; their other columns stay.
        event_time: Name of the column with the time of an entity row.
        rows: Rows that `dated_rows` returned.
        view: Feast's view.

    """
    keys = view.join_keys
    moment = entities[event_time].cast(UTC_TIME)
    order = ibis.struct({"time": moment, "created": LATEST})
    left = entities.mutate({ORDER: order})
    joined = left.asof_join(rows, left[ORDER] >= rows[ORDER], keys)
    names = rows.drop(*keys, TIME, ORDER).columns
    values = {name: joined[name] for name in names}
    values = living(values, joined[TIME], joined[event_time], view)
    entity_columns = {name: joined[name] for name in entities.columns}
    return joined.select(entity_columns | values)


def living(
    values: dict[str, ir.Value], time: ir.Value, moment: ir.Value, view: Any
) -> dict[str, ir.Value]:
    """Return values, null where a moment is null or past the view's time to live."""
    is_alive = moment.notnull()  # databases put a null after or before all times
    if view.ttl:
        lifetime = ibis.interval(microseconds=view.ttl // MICROSECOND)
        is_alive = time + lifetime >= moment
    return {name: is_alive.ifelse(value, None) for name, value in values.items()}

"""Rows to score that bring request data: of a table, or the label's rows without a known label."""

import logging
from datetime import UTC, datetime

import ibis
import pyarrow as pa
import pyarrow.compute as pc

from core.errors import NoRequestError
from core.settings import Settings
from core.spec import ModelSpec
from feature_repo.labels import label_rows, label_source
from feature_repo.published.service import ARROW, service_of
from feature_repo.team_tables import in_types, open_table
from training.data.frame import TIME_TYPE, in_population, with_features
from training.data.snapshots import DAY, TICK

log = logging.getLogger(__name__)
PLACE = ibis.util.gen_name("row")
"""Column with the position of a row among those that are scored; no column of a team has this name."""


def table_rows(source: str) -> pa.Table:
    """Return the rows of a team's table.

    Raises:
        DataError: There is no such table.

    """
    connection = ibis.duckdb.connect()
    try:
        return open_table(connection, source).to_pyarrow()
    finally:
        connection.disconnect()


def unlabelled_rows(settings: Settings, spec: ModelSpec, as_of: datetime) -> pa.Table:
    """Return the label's rows of the day before `as_of`, and of its own day, without a known label.

    A label is known once its horizon and lateness are over.
    """
    source = label_source(settings, spec)
    midnight = as_of.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    span = [as_of - DAY, midnight + DAY - TICK]
    known_until = as_of - source.label.horizon - source.label.lateness
    with source.opened(as_of, None) as raw:
        rows = label_rows(raw, source.label, span, own_rows=True)
        is_unknown = rows.label.isnull() | (rows.event_timestamp > known_until)
        return rows.filter(is_unknown).drop("label").to_pyarrow()


def request_frame(
    settings: Settings, spec: ModelSpec, rows: pa.Table, as_of: datetime, place: str
) -> pa.Table:
    """Join features to rows that bring request data, as /predict would at `as_of`.

    Args:
        settings: Settings of the installation.
        spec: The model.
        rows: Keys, request data, and event_timestamp if rows have a time.
        as_of: Aware UTC. Features are those of this moment, and of an earlier row those of its time.
        place: Where the rows come from, for people.

    Returns:
        A frame without `label`, with the columns of `outcome_key`.

    Raises:
        NoRequestError: There is no row.
        DataError: Columns are missing, or have other types; or values of many rows do not fit.

    """
    if not rows.num_rows:
        raise NoRequestError(
            f"{spec.name}: {place}: expected rows to score, found none"
        )
    if "event_timestamp" not in rows.column_names:
        moments = pa.repeat(pa.scalar(as_of, TIME_TYPE), rows.num_rows)
        rows = rows.append_column("event_timestamp", moments)
    rows = _typed(settings, spec, rows, place)
    times = rows["event_timestamp"]
    position = rows.schema.get_field_index("event_timestamp")
    now = pa.scalar(as_of, TIME_TYPE)
    moments = pc.if_else(pc.less(times, now), times, now)
    questions = rows.set_column(position, "event_timestamp", moments)
    questions = questions.append_column(PLACE, pa.array(range(rows.num_rows)))
    without_audit = spec.model_copy(update={"audit": {}})
    frame = with_features(settings, without_audit, questions, {PLACE: "int64"})
    frame = in_population(spec, frame)
    left_out = rows.num_rows - frame.num_rows
    if left_out:
        text = f"{left_out:,} of {rows.num_rows:,} rows are not in the population"
        if not frame.num_rows:
            raise NoRequestError(f"{spec.name}: {place}: {text}")
        log.warning("%s: %s: %s, and get no score", spec.name, place, text)
    scored_rows = rows.take(frame[PLACE])
    position = frame.schema.get_field_index("event_timestamp")
    times = scored_rows["event_timestamp"]
    frame = frame.set_column(position, "event_timestamp", times)
    for name in spec.outcome_key or ():
        frame = frame.append_column(name, scored_rows[name])
    return frame.drop_columns(PLACE)


def _typed(settings: Settings, spec: ModelSpec, rows: pa.Table, place: str) -> pa.Table:
    """Return the rows with the types of keys, request data and features, without those at fault.

    Raises:
        DataError: See `request_frame`; the message names all columns.

    """
    service = service_of(settings, spec)
    types = {**spec.entity_key, **(spec.outcome_key or {}), **service.request_data}
    if not spec.feature_service:
        types |= spec.features
    arrow_types = {name: ARROW[kind] for name, kind in types.items()}
    arrow_types["event_timestamp"] = TIME_TYPE
    return in_types(
        rows,
        arrow_types,
        identities=spec.entity_key,
        required=arrow_types.keys() - spec.features.keys(),
        place=f"{spec.name}: {place}",
    )

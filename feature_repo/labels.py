"""Labels: of a dataset, or of a table that a team keeps."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import partial

import ibis
import ibis.expr.types as ir
import pyarrow as pa

from core.connectors.addresses import shown_address
from core.errors import DataError
from core.settings import Settings
from core.spec import ModelSpec
from core.spec.tables import LabelTable
from feature_repo.datasets import load_dataset
from feature_repo.definition import TIMESTAMP, Label
from feature_repo.engine import LabelSource, feature_engine
from feature_repo.published.service import ARROW
from feature_repo.team_tables import UTC_MICROSECONDS, in_types, open_table


def label_source(settings: Settings, spec: ModelSpec) -> LabelSource:
    """Return where the labels of a model come from.

    Raises:
        DataError: The dataset of the spec, or its label, is not there.

    """
    if isinstance(spec.label, LabelTable):
        return table_labels(spec, spec.label)
    dataset = load_dataset(str(spec.dataset))
    if spec.label not in dataset.labels:
        names = ", ".join(dataset.labels) or "none"
        expected = f"expected one of {dataset.name}: {names}"
        raise DataError(f"{spec.name}.toml: label: {expected}; found {spec.label}")
    return feature_engine().dataset_labels(settings, dataset, spec.label)


def table_labels(spec: ModelSpec, table: LabelTable) -> LabelSource:
    """Return the source of the labels of a table.

    It has no versions: a row counts from the time on at which its label became known.
    """
    return LabelSource(
        name=shown_address(table.source),
        remedy="expected a table with labels that were known by then",
        label=Label(
            expression=lambda rows: rows,
            horizon=timedelta(days=table.horizon_days),
            lateness=timedelta(days=table.lateness_days),
        ),
        entity=next(iter(spec.entity_key)),
        event_time="event_timestamp",
        opened=partial(_opened_table, spec, table),
    )


@contextmanager
def _opened_table(
    spec: ModelSpec,
    table: LabelTable,
    as_of: datetime,
    _version: int | None,
) -> Iterator[ir.Table]:
    """Open keys, event_timestamp, label and the table's other columns, of known labels.

    Raises:
        DataError: The table cannot be read, or lacks a column.

    """
    connection = ibis.duckdb.connect()
    try:
        yield known_labels(spec, table, open_table(connection, table.source), as_of)
    finally:
        connection.disconnect()


def known_labels(
    spec: ModelSpec, table: LabelTable, rows: ir.Table, as_of: datetime
) -> ir.Table:
    """Return the rows whose label is known at `as_of`, with the names and types of the spec.

    Args:
        spec: The model.
        table: Its `[label]`.
        rows: Rows of the table.
        as_of: Aware UTC.

    Raises:
        DataError: A column is missing, or of another type.

    """
    keys = {key: table.entity.get(key, key) for key in spec.entity_key}
    used_names = [*keys.values(), table.event_time]
    used_names += [name for name in (table.name, table.known_at) if name]
    missing_columns = [name for name in used_names if name not in rows.columns]
    if missing_columns:
        names = ", ".join(missing_columns)
        problem = f"expected the columns {names} of {shown_address(table.source)}"
        raise DataError(
            f"{spec.name}.toml: label: {problem}, found {', '.join(rows.columns)}; name, event_time, "
            "known_at and entity of [label] name a column that is called otherwise"
        )
    if table.name:
        rows = rows.filter(rows[table.name].notnull())
    times = [name for name in (table.event_time, table.known_at) if name]
    key_types = {name: ARROW[spec.entity_key[key]] for key, name in keys.items()}
    place = f"{spec.name}: {shown_address(table.source)}"
    rows = _in_types(rows, key_types, times, place)
    if table.known_at:
        event_time = _in_utc(rows[table.event_time])
        known_at = _in_utc(rows[table.known_at])
        wait = timedelta(days=table.horizon_days + table.lateness_days)
        last_moment = event_time + ibis.interval(seconds=int(wait.total_seconds()))
        is_known = known_at <= ibis.literal(as_of)
        rows = rows.filter(is_known & (known_at <= last_moment))
    columns = {key: rows[name].cast(spec.entity_key[key]) for key, name in keys.items()}
    columns["event_timestamp"] = _in_utc(rows[table.event_time])
    columns["label"] = rows[table.name] if table.name else ibis.null("int64")
    for name in rows.columns:
        if name not in used_names:
            columns.setdefault(name, rows[name])
    return rows.select(columns)


def _in_utc(times: ir.Value) -> ir.Value:
    """Return times in UTC; a time without a zone is UTC, as Feast reads it."""
    return times.cast(UTC_MICROSECONDS)


def _in_types(
    rows: ir.Table,
    key_types: Mapping[str, pa.DataType],
    times: Sequence[str],
    place: str,
) -> ir.Table:
    """Return the rows whose keys and times are some, judged as by an ingest.

    Columns of which a type holds all values are not read.

    Args:
        rows: Rows of a label table.
        key_types: Type of each key, by the table's column.
        times: Columns with times.
        place: The table's name, for people.

    Raises:
        DataError: See `in_types`.

    """
    unsure_types = {}
    for name, kind in key_types.items():
        column_type = rows[name].type()
        is_sure = column_type.is_string()
        if kind == pa.int64():
            is_sure = column_type.is_signed_integer()
        if not is_sure:
            unsure_types[name] = kind
    for name in times:
        column_type = rows[name].type()
        if not (column_type.is_timestamp() or column_type.is_date()):
            unsure_types[name] = TIMESTAMP
    if not unsure_types:
        return rows
    judged_rows = in_types(
        rows.to_pyarrow(),
        unsure_types,
        identities=key_types,
        required=(),
        place=place,
    )
    return ibis.memtable(judged_rows)


def label_rows(
    raw: ir.Table,
    label: Label,
    snapshots: Sequence[datetime],
    *,
    own_rows: bool = False,
) -> ir.Table:
    """Compute a label at snapshots.

    Args:
        raw: Raw rows of the label's source.
        label: Label to compute.
        snapshots: Times of the snapshots, aware UTC.
        own_rows: Take the label's own rows from the first of `snapshots` to the last.

    Returns:
        Join keys, event_timestamp and label at every snapshot, sorted by time and keys.

    Raises:
        DataError: The label's expression lacks one of these columns.

    """
    if own_rows:
        rows = label.expression(raw)
    else:
        times = pa.array(snapshots, TIMESTAMP)
        moments = pa.table({"event_timestamp": times})
        rows = label.expression(raw, ibis.memtable(moments))
    missing_columns = {"event_timestamp", "label"} - set(rows.columns)
    if missing_columns:
        expected = f"expected columns {', '.join(sorted(missing_columns))}"
        raise DataError(f"a label's rows: {expected}, found {', '.join(rows.columns)}")
    if own_rows:
        is_within = rows.event_timestamp.between(min(snapshots), max(snapshots))
        rows = rows.filter(is_within)
    rows = rows.mutate(event_timestamp=rows.event_timestamp.cast(UTC_MICROSECONDS))
    keys = rows.drop("event_timestamp", "label").columns
    return rows.order_by("event_timestamp", *keys)

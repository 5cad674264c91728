"""Where a dataset's rows come from: files or any address Ibis can connect to, or the shipped demo.

The demo's file is replayed: its dates are moved by a whole number of weeks so that the last 120
days still lie ahead of the day Gyre first started, and only what is due is delivered.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from math import ceil
from typing import TYPE_CHECKING

import ibis
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stack.errors import DataError
from stack.settings import PROJECT, Settings

if TYPE_CHECKING:
    from pathlib import Path

    from feature_repo.definition import Dataset

DEMO = {"orders": PROJECT / "data" / "cdnow_orders.parquet"}
AHEAD = timedelta(days=120)
LONGEST = 300


def pull(settings: Settings, dataset: Dataset, as_of: datetime) -> pa.Table:
    """Every row the source holds at `as_of`, in the source's own order and types.

    Raises:
        DataError: the source cannot be read, naming it.

    """
    address = settings.sources.get(dataset.name)
    if address is None and dataset.name not in DEMO:
        variable = f"GYRE_SOURCES__{dataset.name.upper()}"
        raise DataError(f"{dataset.name}: no source; set {variable} to a file or address#table")
    try:
        return (
            _demo(settings, dataset, as_of) if address is None else _typed(_read(address), dataset)
        )
    except DataError:
        raise
    except Exception as exc:  # every reader below fails in its own way
        line = " ".join(str(exc).split())[:LONGEST]  # DuckDB shows its SQL and a caret below it
        raise DataError(f"{dataset.name}: source {_without_secrets(address)}: {line}") from exc


def _read(address: str) -> pa.Table:
    if "://" in address:
        url, _, table = address.partition("#")
        return ibis.connect(url).table(table).to_pyarrow()
    connection = ibis.duckdb.connect()
    connection.raw_sql("SET TimeZone = 'UTC'")
    read = connection.read_csv if address.endswith((".csv", ".csv.gz")) else connection.read_parquet
    return read(address).to_pyarrow()


def _typed(rows: pa.Table, dataset: Dataset) -> pa.Table:
    """Whole numbers, days and times in the dataset's types, where nothing is lost or guessed.

    Anything else keeps its type, and the suite stops the batch: text that holds numbers is a
    retyped column, and a time without an offset may be any zone's.
    """
    kind = pa.types
    for position, field in enumerate(rows.schema):
        found = field.type
        clear = kind.is_integer(found) or kind.is_date(found) or getattr(found, "tz", None)
        if clear and field.name in dataset.schema.names:
            wanted = dataset.schema.field(field.name).type
            with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
                rows = rows.set_column(position, field.name, rows[field.name].cast(wanted))
    return rows


def date_demo(
    settings: Settings, dataset: Dataset, start: date, seen_on: date | None = None
) -> timedelta:
    """Fix what this installation's demo is moved by, as an installation on the day `start` has it.

    seen_on: the real day on which it is to look as it does on `start`; `start` itself if absent.
    The days of the week move with it then: nothing that is computed from the orders knows them.
    """
    times = pq.read_table(DEMO[dataset.name], columns=[dataset.event_time])[0]
    shift = demo_shift(start, pc.max(times).as_py()) - (start - (seen_on or start))
    path = _shift_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps({"start": start.isoformat(), "shift_days": shift.days}))
    partial.replace(path)
    return shift


def demo_shift(start: date, newest: datetime) -> timedelta:
    """Whole weeks, so that the file's newest row lies at least 120 days after `start`."""
    return timedelta(weeks=ceil((start + AHEAD - newest.date()) / timedelta(weeks=1)))


def _demo(settings: Settings, dataset: Dataset, as_of: datetime) -> pa.Table:
    path = _shift_file(settings)
    if path.exists():
        shift = timedelta(days=json.loads(path.read_text())["shift_days"])
    else:
        shift = date_demo(settings, dataset, settings.demo_start or datetime.now(tz=UTC).date())
    rows = pq.read_table(DEMO[dataset.name])
    moved = pc.add(rows[dataset.event_time], pa.scalar(shift))
    position = rows.schema.get_field_index(dataset.event_time)
    rows = rows.set_column(position, dataset.event_time, moved)
    return rows.filter(pc.less_equal(moved, pa.scalar(as_of, pa.timestamp("us", "UTC"))))


def _shift_file(settings: Settings) -> Path:
    return settings.data / "demo.json"


def _without_secrets(address: str | None) -> str:
    return (address or "shipped file").rpartition("@")[2]

"""Where a dataset's rows come from: files or any address Ibis can connect to, or the shipped demo.

The demo's file is replayed: its dates are moved by a whole number of weeks so that the last 120
days still lie ahead of the day Gyre first started, and only what is due is delivered.
"""

from __future__ import annotations

import gzip
import json
import os
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from glob import glob
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ibis
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stack.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import ibis.expr.types as ir

    from feature_repo.definition import Dataset
    from stack.settings import Settings

AHEAD = timedelta(days=120)
LONGEST = 300
UNDATED = datetime(1971, 1, 1, tzinfo=UTC)
"""Earlier times are lost dates and unset clocks, mostly the epoch itself: as good as none."""
CLEAR_TIME = r"^\d{4}-\d\d-\d\d([T ][\d:.]+(Z|[+-][\d:]+))?$"
"""A whole day, or a time with its offset from UTC."""

FORMATS = {".parquet": "read_parquet", ".csv": "read_csv", ".csv.gz": "read_csv"}


def pull(
    settings: Settings,
    dataset: Dataset,
    as_of: datetime,
    since: datetime | None = None,
    *,
    keyed: Sequence[Any] = (),
) -> pa.Table:
    """Rows the source holds at `as_of`, in the source's own order and types.

    since: only those with a later event time, or with none (or one before 1971, which stands for
    none); the database itself leaves out others.
    keyed: only those that have one of these values in the first column of the key.

    Raises:
        DataError: the source cannot be read, naming it.

    """
    address = settings.sources.get(dataset.name)
    if address is None and dataset.shipped is None:
        variable = f"GYRE_SOURCES__{dataset.name.upper()}"
        line = f"{variable}=… (a file, or address#table) to {settings.home}/gyre.env"
        raise DataError(f"{dataset.name}: no source; add the line {line}")
    try:
        if address is None:
            return _demo(settings, dataset, as_of, since, keyed)
        return _typed(_read(address, dataset, since, keyed), dataset)
    except DataError:
        raise
    except Exception as exc:  # every reader below fails in its own way
        line = " ".join(str(exc).split())[:LONGEST]  # DuckDB shows its SQL and a caret below it
        raise DataError(f"{dataset.name}: source {place(settings, dataset)}: {line}") from exc


def place(settings: Settings, dataset: Dataset) -> str:
    """Where the rows come from, without user and password."""
    return settings.sources.get(dataset.name, "shipped file").rpartition("@")[2]


def _read(address: str, dataset: Dataset, since: datetime | None, keyed: Sequence[Any]) -> pa.Table:
    files, before, time = list[str](), None, dataset.event_time
    if "://" in address:
        url, _, table = address.partition("#")
        connection = ibis.connect(url)
        rows = connection.table(table)
    else:
        connection = ibis.duckdb.connect()
        connection.raw_sql("SET TimeZone = 'UTC'")
        files, ending = _files(address)
        before = _state(files)
        rows = getattr(connection, FORMATS[ending])(files)
        if FORMATS[ending] == "read_csv":
            _stop_if_cut(files)
            if _is_clear(rows.schema().get(time)):
                _stop_if_guessed(connection.read_csv(files, types={time: "string"})[time], address)
    try:
        rows = _later(rows, time, since)
        if keyed:
            rows = rows.filter(rows[dataset.key[0]].isin(keyed))
        found = rows.to_pyarrow()
    finally:
        connection.disconnect()
    if files and _state(files) != before:  # half a row, or half a number
        raise DataError(
            f"{address} was written while it was read; run it again, or have whoever writes it "
            "put whole files there: written elsewhere, then renamed"
        )
    return found


def _state(files: list[str]) -> list[tuple[int, int, int]]:
    found = (Path(path).stat() for path in files if Path(path).exists())
    return [(each.st_ino, each.st_size, each.st_mtime_ns) for each in found]


def _files(address: str) -> tuple[list[str], str]:
    """What DuckDB is to read, and the ending that says how. All files of a folder are of a kind."""
    endings = {ending for ending in FORMATS if address.endswith(ending)} or {".parquet"}
    if not Path(address).is_dir():
        matching = sorted(glob(address, recursive=True))  # noqa: PTH207  (absolute ones too)
        return matching or [address], endings.pop()
    files = sorted(str(path) for path in Path(address).rglob("*") if path.is_file())
    files = [path for path in files if path.endswith(tuple(FORMATS))]
    endings = {ending for ending in FORMATS for path in files if path.endswith(ending)}
    if len({FORMATS[ending] for ending in endings}) != 1:
        found = ", ".join(sorted(endings)) or "none"
        raise DataError(f"{address}: expected parquet files or CSV files, found {found}")
    return files, endings.pop()


def _stop_if_cut(files: list[str]) -> None:
    """DuckDB reads what there is of a file cut short, half a number as a number.

    Raises:
        DataError: a CSV file does not end with the end of a line.

    """
    for path in files:
        if _last_byte(path) not in {b"\n", b"\r"}:
            raise DataError(
                f"{path}: the last line has no end: was the file cut short? "
                "If it is whole, end its last line"
            )


def _last_byte(path: str) -> bytes:
    """Return the last byte of the text; none if there is none or its compression is cut short."""
    last = b""
    with gzip.open(path) if path.endswith(".gz") else Path(path).open("rb") as file:
        if not path.endswith(".gz"):
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
        try:
            while part := file.read(2**20):
                last = part[-1:]
        except EOFError:
            return b""
    return last


def _is_clear(kind: Any) -> bool:
    """Whether a type says which instant is meant: days are those of UTC."""
    return kind is not None and (kind.is_date() or bool(getattr(kind, "timezone", None)))


def _stop_if_guessed(times: ir.Column, address: str) -> None:
    """DuckDB reads times without an offset as UTC beside others, and 03/04 as a day it chooses.

    Raises:
        DataError: not every time, as it stands in the file, is a whole day or has its offset.

    """
    unclear = times.as_table().filter(times.notnull() & ~times.re_search(CLEAR_TIME)).to_pyarrow()
    if unclear.num_rows:
        raise DataError(
            f"{address}: {times.get_name()}: {unclear.num_rows} of the times are neither whole "
            f"days (2026-11-20) nor carry their offset from UTC, such as {unclear[0][0]}"
        )


def _later(rows: ir.Table, time: str, since: datetime | None) -> ir.Table:
    kind = rows.schema().get(time)
    if since is None or kind is None:
        return rows
    column = rows[time]
    if kind.is_date():
        undated = column < UNDATED.date()
        return rows.filter(column.isnull() | undated | (column >= since.date()))
    if kind.is_timestamp() and kind.timezone:
        return rows.filter(column.isnull() | (column < UNDATED) | (column > since))
    return rows  # the suite has the word


def _typed(rows: pa.Table, dataset: Dataset) -> pa.Table:
    """Whole numbers, days and times in the dataset's types, where nothing is lost or guessed.

    Anything else keeps its type, and the suite stops the batch: text that holds numbers is a
    retyped column, and a time without an offset may be any zone's. The order of columns is no
    matter.
    """
    kind = pa.types
    for position, field in enumerate(rows.schema):
        found = field.type
        number = kind.is_integer(found) or kind.is_decimal(found)
        clear = number or kind.is_date(found) or getattr(found, "tz", None)
        if clear and field.name in dataset.schema.names:
            wanted = dataset.schema.field(field.name).type
            with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
                rows = rows.set_column(position, field.name, rows[field.name].cast(wanted))
    names = dataset.schema.names
    return rows.select(names) if sorted(rows.column_names) == sorted(names) else rows


def date_demo(
    settings: Settings, dataset: Dataset, start: date, seen_on: date | None = None
) -> timedelta:
    """Fix what this installation's demo is moved by, as an installation on the day `start` has it.

    Datasets of shipped files share it: the first to ask decides.

    seen_on: the real day on which it is to look as it does on `start`; `start` itself if absent.
    The days of the week move with it then: nothing that is computed from the orders knows them.
    """
    times = pq.read_table(dataset.shipped, columns=[dataset.event_time])[0]
    shift = demo_shift(start, pc.max(times).as_py()) - (start - (seen_on or start))
    path = shift_file(settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps({"start": start.isoformat(), "shift_days": shift.days}))
    partial.replace(path)
    return shift


def demo_shift(start: date, newest: datetime) -> timedelta:
    """Whole weeks, so that the file's newest row lies at least 120 days after `start`."""
    return timedelta(weeks=ceil((start + AHEAD - newest.date()) / timedelta(weeks=1)))


def _demo(
    settings: Settings,
    dataset: Dataset,
    as_of: datetime,
    since: datetime | None,
    keyed: Sequence[Any],
) -> pa.Table:
    path = shift_file(settings)
    if path.exists():
        shift = timedelta(days=json.loads(path.read_text())["shift_days"])
    else:
        shift = date_demo(settings, dataset, settings.demo_start or datetime.now(tz=UTC).date())
    rows = pq.read_table(dataset.shipped)
    moved = pc.add(rows[dataset.event_time], pa.scalar(shift))
    position = rows.schema.get_field_index(dataset.event_time)
    rows = rows.set_column(position, dataset.event_time, moved)
    due = pc.less_equal(moved, pa.scalar(as_of, moved.type))
    if since is not None:
        due = pc.and_(due, pc.greater(moved, pa.scalar(since, moved.type)))
    if keyed:
        due = pc.and_(due, pc.is_in(rows[dataset.key[0]], pa.array(keyed)))
    return rows.filter(due)


def shift_file(settings: Settings) -> Path:
    """Where an installation keeps by how many days its demo is moved; absent before its first."""
    return settings.data / "demo.json"

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
from itertools import groupby
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ibis
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stack.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import ibis.expr.datatypes as dt
    import ibis.expr.types as ir

    from feature_repo.definition import Dataset
    from stack.settings import Settings

AHEAD = timedelta(days=120)
LONGEST = 500  # DuckDB shows its SQL and a caret below an error
UNDATED = datetime(1971, 1, 1, tzinfo=UTC)
"""Earlier times are lost dates and unset clocks, mostly the epoch itself: as good as none."""
CLEAR_TIME = r"^\d{4}-\d\d-\d\d([T ][\d:.]+(Z|[+-][\d:]+))?$"
"""A whole day, or a time with its offset from UTC."""

CSV = (".csv", ".csv.gz")
FILE = "_gyre_file"
"""The column in which DuckDB names the file that a row of a CSV is of."""


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

        def choose(rows: ir.Table) -> pa.Table:
            rows = _later(rows, dataset.event_time, since)
            rows = rows.filter(rows[dataset.key[0]].isin(keyed)) if keyed else rows
            return _typed(rows.to_pyarrow(), dataset)

        return _read(address, dataset, choose)
    except DataError:
        raise
    except Exception as exc:  # every reader below fails in its own way
        line = " ".join(str(exc).removeprefix("Invalid Input Error: ").split())[:LONGEST]
        raise DataError(f"{dataset.name}: source {place(settings, dataset)}: {line}") from exc


def place(settings: Settings, dataset: Dataset) -> str:
    """Where the rows come from, without user and password."""
    return settings.sources.get(dataset.name, "shipped file").rpartition("@")[2]


def _read(address: str, dataset: Dataset, choose: Callable[[ir.Table], pa.Table]) -> pa.Table:
    url, _, table = address.partition("#")
    connection = ibis.connect(url) if "://" in address else ibis.duckdb.connect()
    try:
        if "://" in address:
            return choose(connection.table(table))
        return _read_files(connection, address, dataset, choose)
    finally:
        connection.disconnect()


def _read_files(
    connection: Any, address: str, dataset: Dataset, choose: Callable[[ir.Table], pa.Table]
) -> pa.Table:
    """Rows in the order of the files, each of which is held against the dataset.

    DuckDB would cast all files to the types of the first: only those of equal types are read
    together.
    """
    connection.raw_sql("SET TimeZone = 'UTC'")
    files = _files(address)
    before = _state(files)
    columns = _columns(connection, files)
    groups = [list(paths) for _, paths in groupby(files, columns.__getitem__)]
    found = [_read_group(connection, paths, dataset, choose) for paths in groups]
    if _state(files) != before:  # half a row, or half a number
        raise DataError(
            f"{address} was written while it was read; run it again, or have whoever writes it "
            "put whole files there: written elsewhere, then renamed"
        )
    return pa.concat_tables(found)


def _read_group(
    connection: Any, paths: list[str], dataset: Dataset, choose: Callable[[ir.Table], pa.Table]
) -> pa.Table:
    is_csv = paths[0].endswith(CSV)
    rows = _read_csv(connection, paths, dataset) if is_csv else connection.read_parquet(paths)
    found = choose(rows)
    wrong = dataset.differences(found)
    if not wrong:
        return found
    if not (found.num_rows or rows.count().execute()):  # what is empty may be of any type
        return dataset.schema.empty_table()
    for path in paths if len(paths) > 1 else ():  # the value that was not cast is in one of them
        _read_group(connection, [path], dataset, choose)
    raise DataError(f"{dataset.name}: nothing was changed: {paths[0]}: {wrong}")


def _read_csv(connection: Any, paths: list[str], dataset: Dataset) -> ir.Table:
    """Texts in the dataset's types. DuckDB stops at one that is none: file, column and text."""
    rows = connection.read_csv(paths, all_varchar=True, header=True, filename=FILE)
    columns = {name: rows[name] for name in rows.columns if name != FILE}
    for name, kind in ibis.Schema.from_pyarrow(dataset.schema).items():
        if name in columns and not kind.is_string():
            text, (form, words) = columns[name], _form(kind)
            value = ibis.ifelse(text.re_search(form), text.try_cast(kind), ibis.null(kind))
            said = rows[FILE] + f": column {name}: expected {words}, found " + text
            stop = ibis.ifelse(text.notnull(), _stop(said), ibis.null("string"))
            columns[name] = value.coalesce(stop.cast(kind))
    return rows.select(**columns)


@ibis.udf.scalar.builtin(name="error")  # type: ignore[untyped-decorator]
def _stop(message: str) -> str:
    raise NotImplementedError(message)  # DuckDB's own function is called


def _form(kind: dt.DataType) -> tuple[str, str]:
    """What a text of a type looks like, where DuckDB would round it or guess, and in words."""
    if kind.is_integer():
        return r"^\s*[+-]?\d+\s*$", f"a whole number ({kind})"
    if kind.is_boolean():
        return r"(?i)^(true|false)$", "true or false"
    if kind.is_timestamp():
        return CLEAR_TIME, "a day (2026-11-20) or a time with its offset (2026-11-20T10:30:00Z)"
    return (r"^[\d-]+$", "a day (2026-11-20)") if kind.is_date() else ("", f"a {kind}")


def _state(files: list[str]) -> list[tuple[int, int, int]]:
    found = (Path(path).stat() for path in files if Path(path).exists())
    return [(each.st_ino, each.st_size, each.st_mtime_ns) for each in found]


def _files(address: str) -> list[str]:
    """What DuckDB is to read. All files of a folder are of a kind."""
    if not Path(address).is_dir():
        return sorted(glob(address, recursive=True)) or [address]  # noqa: PTH207  (absolute too)
    files = sorted(str(path) for path in Path(address).rglob("*") if path.is_file())
    files = [path for path in files if path.endswith((".parquet", *CSV))]
    if len({path.endswith(CSV) for path in files}) != 1:
        found = ", ".join(sorted({Path(path).suffix for path in files})) or "none"
        raise DataError(f"{address}: expected parquet files or CSV files, found {found}")
    return files


def _columns(connection: Any, files: list[str]) -> dict[str, Any]:
    """What says the columns of each file: a parquet's names and types, a CSV's first line."""
    if files[0].endswith(CSV):
        return {path: _first_line(path) for path in files}
    columns = "list((name, duckdb_type) ORDER BY column_id)"
    query = f"SELECT file_name, {columns} FROM parquet_schema(?) GROUP BY file_name"  # noqa: S608
    return dict(connection.con.execute(query, [files]).fetchall())


def _first_line(path: str) -> bytes:
    """Stop at a file cut short: DuckDB reads what there is of it, half a number as a number."""
    last = b""
    zipped = path.endswith(".gz")
    with (
        gzip.open(path) if zipped else Path(path).open("rb") as file,
        suppress(EOFError),  # the compression is cut short
    ):
        first = file.readline()
        file.seek(0 if zipped else max(file.seek(0, os.SEEK_END) - 1, 0))
        while part := file.read(2**20):
            last = part[-1:]
        if last in {b"\n", b"\r"}:
            return first
    raise DataError(
        f"{path}: the last line has no end: was the file cut short? "
        "If it is whole, end its last line"
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

    Anything else keeps its type, and stops the batch: text that holds numbers is a retyped column,
    and a time without an offset may be any zone's. The order of columns is no matter.
    """
    kind = pa.types
    names = dataset.schema.names
    for position, name in enumerate(rows.column_names):
        if name not in names:
            continue
        column = rows[name]
        found = column.type
        wanted = dataset.schema.field(name).type
        number = kind.is_integer(found) or kind.is_decimal(found)
        longer = kind.is_float32(found) and kind.is_float64(wanted)
        alike = ibis.dtype(found) == ibis.dtype(wanted)
        if number or longer or alike or kind.is_date(found) or getattr(found, "tz", None):
            with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
                cast = column.cast(wanted)
                if kind.is_floating(wanted) or cast.cast(found) == column:
                    rows = rows.set_column(position, name, cast)
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

"""Where a dataset's rows come from: files or any address Ibis can connect to, or the shipped demo.

The demo's dates are moved by whole weeks, so that its last 120 days lie ahead of the day on which
Gyre first started; only what is due is delivered.
"""

import json
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from glob import glob
from math import ceil
from pathlib import Path

import ibis
import ibis.expr.types as ir
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import csv
from upath import UPath

from core.errors import DataError
from core.files import read_file, replace_file
from core.settings import Settings
from feature_repo.definition import Dataset
from feature_repo.engines import connected
from feature_repo.forgotten import forgotten

AHEAD = timedelta(days=120)
LONGEST = 500  # DuckDB shows its SQL and a caret below an error
UNDATED = datetime(1971, 1, 1, tzinfo=UTC)
"""Earlier times are lost dates and unset clocks, mostly the epoch itself: as good as none."""
CSV = (".csv", ".csv.gz")
WHOLE_DAY = r"^(\d{4}-\d\d-\d\d)$"
TYPES = (pa.int64(), pa.float64(), pa.bool_(), pa.timestamp("us", "UTC"), pa.string())
"""What a column of a dataset can be."""
TIME_WORDS = "a day (2026-11-20) or a time with its offset (2026-11-20T10:30:00Z)"


def pull(
    settings: Settings, dataset: Dataset, as_of: datetime, since: datetime | None = None
) -> pa.Table:
    """Rows the source holds at `as_of`, in the source's own order and the dataset's types.

    Without those of entities that were forgotten.

    since: only those with a later event time, or with none (or one before 1971, which stands for
    none); the database itself leaves out others.

    Raises:
        DataError: the source cannot be read, or has other columns, naming it.

    """
    address = settings.sources.get(dataset.name)
    if address is None and dataset.shipped is None:
        variable = f"GYRE_SOURCES__{dataset.name.upper()}"
        line = f"{variable}=… (a file, or address#table) to {settings.home}/gyre.env"
        raise DataError(f"{dataset.name}: no source; add the line {line}")
    try:
        if address is None:
            rows = _demo(settings, dataset, as_of, since)
        elif "://" in address:
            rows = _read_database(address, dataset.event_time, since)
            rows = _in_schema(rows, dataset, address.partition("#")[2])
        else:
            rows = pa.concat_tables(_read_file(path, dataset, since) for path in _files(address))
    except DataError as exc:
        raise DataError(f"{dataset.name}: nothing was changed: {exc}") from exc
    except Exception as exc:  # every reader fails in its own way
        line = " ".join(str(exc).split())[:LONGEST]
        raise DataError(f"{dataset.name}: source {place(settings, dataset)}: {line}") from exc
    return forgotten(settings).others(rows)


def read(address: str) -> pa.Table:
    """Rows of a source that no dataset describes; a DataError says why it cannot be read."""
    try:
        if "://" in address:
            return _read_database(address)
        return pa.concat_tables(map(_read_unknown, _files(address)), promote_options="permissive")
    except Exception as exc:  # every reader fails in its own way
        line = " ".join(str(exc).split())[:LONGEST]
        raise DataError(f"source {address.rpartition('@')[2]}: {line}") from exc


def place(settings: Settings, dataset: Dataset) -> str:
    """Where the rows come from, without user and password."""
    return settings.sources.get(dataset.name, "shipped file").rpartition("@")[2]


def _read_database(address: str, time: str = "", since: datetime | None = None) -> pa.Table:
    url, _, table = address.partition("#")
    connection = ibis.connect(url)
    try:
        return _later(connection.table(table), time, since).to_pyarrow()
    finally:
        connection.disconnect()


def _files(address: str) -> list[str]:
    if not Path(address).is_dir():
        return sorted(glob(address, recursive=True)) or [address]  # noqa: PTH207  (absolute too)
    files = sorted(str(path) for path in Path(address).rglob("*") if path.is_file())
    if found := [path for path in files if path.endswith((".parquet", *CSV))]:
        return found
    raise DataError(f"{address}: expected parquet files or CSV files, found none")


def _read_file(path: str, dataset: Dataset, since: datetime | None) -> pa.Table:
    """Read each file alone: DuckDB would cast all of them to the types of the first."""
    with connected() as connection:
        is_csv = path.endswith(CSV)
        rows = _read_csv(path, dataset) if is_csv else connection.read_parquet(path)
        later = connection.to_pyarrow(_later(rows, dataset.event_time, since))
    return _in_schema(later, dataset, path)


def _read_csv(path: str, dataset: Dataset) -> ir.Table:
    """Texts in the dataset's types: what is no value of the column's type is refused."""
    content = pa.input_stream(path).read()
    if not content.endswith((b"\n", b"\r")):  # half a number would be a number
        raise DataError(
            f"{path}: the last line has no end: is it still written, or was it cut short? "
            "If it is whole, end its last line"
        )
    texts = dict.fromkeys(dataset.schema.names, pa.string())
    options = csv.ConvertOptions(column_types=texts, null_values=[""], strings_can_be_null=True)
    rows = csv.read_csv(pa.BufferReader(content), convert_options=options)
    for name in {*rows.column_names} & {*texts}:
        kind, text = dataset.schema.field(name).type, rows[name]
        if pa.types.is_timestamp(kind):
            text = pc.replace_substring_regex(text, WHOLE_DAY, r"\1T00:00:00Z")
        try:
            column = text.cast(kind)
        except pa.ArrowInvalid as exc:
            words = TIME_WORDS if pa.types.is_timestamp(kind) else kind
            raise DataError(f"{path}: column {name}: expected {words}: {exc}") from exc
        rows = rows.set_column(rows.column_names.index(name), name, column)
    return ibis.memtable(rows)


def _read_unknown(path: str) -> pa.Table:
    if not path.endswith(CSV):
        with connected() as connection:
            return connection.to_pyarrow(connection.read_parquet(path))
    content = pa.input_stream(path).read()
    whole = csv.ReadOptions(block_size=min(len(content) + 1, 1 << 30))  # types are of one block
    options = csv.ConvertOptions(null_values=[""], strings_can_be_null=True)
    rows = csv.read_csv(pa.BufferReader(content), whole, convert_options=options)
    return rows.cast(pa.schema({f.name: type_of(f.type) or pa.string() for f in rows.schema}))


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
    return rows


def _in_schema(rows: pa.Table, dataset: Dataset, where: str) -> pa.Table:
    """Numbers, days and times in the dataset's types, where nothing is lost or guessed.

    All else is refused: text that holds numbers is a retyped column, and a time without an offset
    may be any zone's.
    """
    for field in dataset.schema:
        if field.name in rows.column_names and _is_castable(rows[field.name].type, field.type):
            position = rows.column_names.index(field.name)
            with suppress(pa.ArrowInvalid):  # a value that does not fit
                rows = rows.set_column(position, field.name, rows[field.name].cast(field.type))
    if wrong := dataset.differences(rows):
        raise DataError(f"{where}: {wrong}")
    return rows.select(dataset.schema.names)


def type_of(found: pa.DataType) -> pa.DataType | None:
    """Return which of TYPES a dataset can give to a column that has type `found` at the source."""
    is_fraction = getattr(found, "scale", 0) > 0
    types = (kind for kind in TYPES if not (is_fraction and pa.types.is_integer(kind)))
    return next((kind for kind in types if _is_castable(found, kind)), None)


def _is_castable(found: pa.DataType, wanted: pa.DataType) -> bool:
    kind = pa.types
    if kind.is_timestamp(wanted):
        return kind.is_date(found) or getattr(found, "tz", None) is not None
    whole = kind.is_integer(found) or kind.is_decimal(found)
    if kind.is_integer(wanted):
        return bool(whole)
    if kind.is_floating(wanted):
        return bool(whole or kind.is_floating(found))
    return bool(ibis.dtype(found) == ibis.dtype(wanted))


def _demo(
    settings: Settings, dataset: Dataset, as_of: datetime, since: datetime | None
) -> pa.Table:
    """Move the shipped rows; the first dataset to ask fixes by how much, for all."""
    rows = pq.read_table(dataset.shipped)
    time, path = dataset.event_time, shift_file(settings)
    if not path.exists():
        start = settings.demo_start or datetime.now(tz=UTC).date()
        shift = demo_shift(start, pc.max(rows[time]).as_py())
        replace_file(path, json.dumps({"start": start.isoformat(), "shift_days": shift.days}))
    shift = timedelta(days=json.loads(read_file(path))["shift_days"])
    moved = pc.add(rows[time], pa.scalar(shift))
    rows = rows.set_column(rows.schema.get_field_index(time), time, moved)
    due = pc.field(time) <= as_of
    return rows.filter(due if since is None else due & (pc.field(time) > since))


def demo_shift(start: date, newest: datetime) -> timedelta:
    """Whole weeks, so that the file's newest row lies at least 120 days after `start`."""
    return timedelta(weeks=ceil((start + AHEAD - newest.date()) / timedelta(weeks=1)))


def shift_file(settings: Settings) -> UPath:
    """Where an installation keeps by how many days its demo is moved; absent before its first."""
    return settings.data / "demo.json"

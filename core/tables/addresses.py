"""Delta tables by their address: names, files and rows of one that no `Table` describes."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError
from deltalake.fs import DeltaStorageHandler
from pyarrow.fs import PyFileSystem
from upath import UPath

from core.errors import DataError
from core.files import local_copies, location
from core.settings import Settings
from core.tables.query import S3, quoted, short_text


def table_names(settings: Settings) -> list[str]:
    """Return the names of all tables of the data, such as `raw/orders`."""
    logs = settings.data.glob("**/_delta_log")
    return sorted(log.parent.relative_to(settings.data).as_posix() for log in logs)


def files_at(address: str, cache: Path) -> list[str]:
    """Return the parquet files of the newest version of the table at `address`, on this disk.

    Args:
        address: a folder, or `s3://…`.
        cache: folder of the copies of what is on S3.

    Raises:
        DataError: there is no table, or it cannot be reached.

    """
    return copies_of(location(address), names_at(address)[0], cache)


def names_at(address: str) -> tuple[list[str], pa.Schema]:
    """Return the files of the newest version of the table at `address`, and their columns.

    Raises:
        DataError: See `files_at`.

    """
    try:
        table = DeltaTable(address, storage_options=S3)
        return file_names(table), columns_of_files(table)
    except (DeltaError, OSError) as exc:
        raise DataError(f"table {address}: {short_text(exc)}") from exc


def files_below(address: str) -> PyFileSystem:
    """Reach files below an address, `s3://…` or a folder; Spark sends what is returned to executors.

    There their own environment says how S3 is reached: no credentials travel.
    """
    return PyFileSystem(DeltaStorageHandler(address, S3))


def rows_at(
    folder: str, event_time: str | None = None, since: datetime | None = None
) -> pa.RecordBatchReader:
    """Read the newest version of any tool's Delta table on this disk, by batches.

    Args:
        folder: Of the table.
        event_time: Column of times; only rows later than `since` are read.
        since: See `event_time`.

    Raises:
        DataError: There is no table, or it cannot be read.

    """
    if "%" in folder:  # deltalake decodes it, and reads another folder
        raise DataError("a Delta table below a folder with % cannot be read: rename it")
    condition = None
    if event_time:
        name = quoted(event_time)
        condition = f"{name} > '{since}' OR {name} IS NULL"
    try:
        table = DeltaTable(folder)
        rows = pa.RecordBatchReader.from_stream(table.scan(predicate=condition))
    except (DeltaError, OSError) as exc:
        raise DataError(short_text(exc)) from exc
    return rows.cast(pa.schema(table.schema().to_arrow()))


def file_names(table: DeltaTable, within: str | None = None) -> list[str]:
    """Files of a table, below its folder."""
    # Of a folder it is quoted; what comes behind it is as on disk.
    uri = table.table_uri
    folder = urlsplit(uri).path if uri.startswith("file:") else uri
    files = table.file_uris(file_pruning_predicate=within)
    return [file.removeprefix(folder).lstrip("/") for file in files]


def columns_of_files(table: DeltaTable) -> pa.Schema:
    """Return the columns of a table's files: those of partitions are not in them."""
    schema = pa.schema(table.schema().to_arrow())
    partitions = table.metadata().partition_columns
    return pa.schema([field for field in schema if field.name not in partitions])


def copies_of(folder: UPath, names: Sequence[str], cache: Path) -> list[str]:
    folder = folder.absolute()
    return local_copies([folder / name for name in names], cache)

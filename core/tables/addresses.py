"""Delta tables by their address: names, files and rows, without a `Table` and its schema."""

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.fs import DeltaStorageHandler
from pyarrow.fs import PyFileSystem
from upath import UPath

from core.files import local_copies, location
from core.settings import Settings
from core.tables.query import S3, table_errors


def table_names(settings: Settings) -> list[str]:
    """Return the names of all tables of the data, such as `raw/orders`."""
    logs = settings.data.glob("**/_delta_log")
    return sorted(log.parent.relative_to(settings.data).as_posix() for log in logs)


def files_at(address: str, cache: Path) -> list[str]:
    """Return the parquet files of the newest version of the table at `address`, on this disk.

    Args:
        address: A folder, or `s3://…`.
        cache: Folder of copies of files on S3.

    Raises:
        DataError: There is no table, or it cannot be reached.

    """
    return copies_of(location(address), names_at(address)[0], cache)


def names_at(address: str) -> tuple[list[str], pa.Schema]:
    """Return the files of the newest version of the table at `address`, and their columns.

    Raises:
        DataError: See `files_at`.

    """
    with table_errors(address):
        table = DeltaTable(address, storage_options=S3)
        return file_names(table), columns_of_files(table)


def files_below(address: str) -> PyFileSystem:
    """Return a file system of the files below an address, `s3://…` or a folder.

    Spark sends it to executors, whose own environment has the keys of S3: no credentials travel.
    """
    return PyFileSystem(DeltaStorageHandler(address, S3))


def file_names(table: DeltaTable, within: str | None = None) -> list[str]:
    """Return the paths of a table's files below its folder.

    Args:
        table: An open version of the table.
        within: SQL on columns; files that surely hold no such row are left out.

    """
    # The address of a folder is quoted; the names behind it are as on disk.
    uri = table.table_uri
    folder = urlsplit(uri).path if uri.startswith("file:") else uri
    files = table.file_uris(file_pruning_predicate=within)
    return [file.removeprefix(folder).lstrip("/") for file in files]


def columns_of_files(table: DeltaTable) -> pa.Schema:
    """Return the columns of a table's files, which lack the columns of partitions."""
    schema = pa.schema(table.schema().to_arrow())
    partitions = table.metadata().partition_columns
    return pa.schema([field for field in schema if field.name not in partitions])


def copies_of(folder: UPath, names: Sequence[str], cache: Path) -> list[str]:
    """Return the paths of a table's files on this disk; files on S3 are copied into `cache`."""
    folder = folder.absolute()
    return local_copies([folder / name for name in names], cache)

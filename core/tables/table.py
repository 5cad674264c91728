"""Delta tables below `GYRE_HOME/data/` or `GYRE_DATA_URL`: all events and results.

A version number names exact rows; every version of the last week stays readable. Concurrent merges
conflict, so every write holds a lock: a table has one writer at a time.

Delta flushes nothing to disk: written rows survive a killed process, not a power cut.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import (
    CommitProperties,
    DeltaTable,
    Schema,
    Transaction,
    write_deltalake,
)
from deltalake.exceptions import DeltaError
from sqlglot import exp

from core.errors import DataError
from core.files import reached
from core.locks import one_writer
from core.settings import Settings
from core.tables.addresses import columns_of_files, copies_of, file_names
from core.tables.commits import PERIOD, AddedFile, removed_file
from core.tables.query import S3, query_table, quoted, short_text, table_errors

RETENTION = {
    "delta.deletedFileRetentionDuration": "interval 7 days",
    "delta.logRetentionDuration": "interval 7 days",
}
"""Properties of a table. Readers at work need its old files, and so do features, which are computed
from the changes since a version."""
SHORT_RETENTION = RETENTION | {"delta.deletedFileRetentionDuration": "interval 1 days"}
"""Properties of a table in which every ingest replaces files of many rows."""
SMALL_BYTES = 1024 * 1024
"""Files below this size are compacted as they come; `gyre maintain` makes larger files of them."""
COMPACTED_BYTES = 32 * 1024 * 1024
"""Size of a compacted file: small, as a merge copies every file of which it changes a row."""
MEMORY_LIMIT = "250MB"
"""Memory in which DuckDB looks for keys; beyond it, DuckDB spills to disk."""
WRITE_BATCH_ROWS = 8_192
"""Rows of a batch: Delta reads about a hundred batches ahead of its writing."""
REPEAT_SPAN = timedelta(minutes=5)
"""Longest time between two rows of one key: a request that a proxy repeats has two rows."""


class Table:
    """The Delta table `name`, such as `raw/orders`, created with `schema` on first write.

    Methods that write raise DataError if another process holds the lock for a minute, or Delta
    refuses.
    """

    def __init__(self, settings: Settings, name: str, schema: pa.Schema) -> None:
        self._settings = settings
        self.name = name
        self.schema = schema
        self.path = settings.data / name
        self.address = str(self.path)
        self._newest: DeltaTable | None = None

    @property
    def version(self) -> int:
        """The newest version; -1 before the first write."""
        return int(self._open().version()) if self.exists else -1

    @property
    def exists(self) -> bool:
        if self._newest is not None:
            return True
        with table_errors(self.name):
            return bool(DeltaTable.is_deltatable(self.address, S3))

    @property
    def identity(self) -> str:
        """Id of the table; a later table at its place has another."""
        return str(self._open().metadata().id)

    def files(self, within: str | None = None) -> list[str]:
        """Return paths on this disk of the newest version's files, which DuckDB reads.

        within: SQL on columns; files that surely hold no such row are left out.
        """
        return self.copies(self.names(within=within))

    def noted(self, names: Sequence[str], version: int | None) -> dict[str, int] | None:
        """Return numbers that `commit` noted, as of a version (None: the newest).

        None if one of them was never noted, or the version is no longer readable.
        """
        if not self.exists:
            return None
        try:
            table = self._open(version)
        except DeltaError:
            return None
        notes = {name: table.transaction_version(name) for name in names}
        return None if None in notes.values() else notes

    def changed_files(
        self, since: int, version: int
    ) -> tuple[list[str], list[str]] | None:
        """Return names of the files that were added and removed between two versions.

        None if a version or a removed file is no longer readable.
        """
        try:
            old_names = set(self.names(since))
            new_names = set(self.names(version))
        except DeltaError:
            return None
        removed_names = sorted(old_names - new_names)
        with reached(self.name):
            if not all((self.path / name).exists() for name in removed_names):
                return None
        return sorted(new_names - old_names), removed_names

    def read(
        self,
        version: int | None = None,
        columns: Sequence[str] | None = None,
        where: pc.Expression | None = None,
    ) -> pa.Table:
        """Return rows of a version (default: the newest); no rows if there is no table.

        Args:
            version: Number of the version.
            columns: Columns to read; by default all.
            where: Condition of the rows to read; only files that may hold such rows are opened.

        Raises:
            DataError: There is no such version, or some of its files were vacuumed.

        """
        fields = [self.schema.field(name) for name in columns or self.schema.names]
        schema = pa.schema(fields)
        if not self.exists:
            return schema.empty_table()
        try:
            dataset = self._open(version).to_pyarrow_dataset()
            names = [name for name in schema.names if name in dataset.schema.names]
            return _in_schema(_rows_of(dataset, names, where), schema)
        except (DeltaError, OSError) as exc:
            version_name = "newest version" if version is None else f"version {version}"
            raise DataError(
                f"table {self.name}: its {version_name} cannot be read, "
                f"vacuumed or never here: {short_text(exc)}"
            ) from exc

    def newest(self, column: str) -> datetime | None:
        """Return the largest time in `column`, at least to the millisecond."""
        if not self.exists:
            return None
        statistics = pa.table(self._open().get_add_actions(flatten=True))
        name = f"max.{column}"
        # Delta's log has it for the first 32 columns, if not all values of a file are null.
        if name in statistics.column_names and not statistics[name].null_count:
            times = statistics[name]
        else:
            times = self.read(columns=[column])[column]
        newest: datetime | None = pc.max(times).as_py()
        return newest

    def merge(
        self,
        rows: pa.Table | ds.Dataset,
        key: Sequence[str],
        content: Sequence[str],
    ) -> dict[str, int]:
        """Insert rows with a new key, and replace rows of a known key whose `content` differs.

        It is one commit. Repeating it changes nothing.

        Args:
            rows: At most one row of each key. Columns that they lack are null, and columns that
                the table lacks are left out. A dataset is read by batches.
            key: Columns that identify a row.
            content: Columns whose difference makes a row new.

        Returns:
            Numbers of rows: `inserted` and `replaced`.

        """
        dataset = rows if isinstance(rows, ds.Dataset) else ds.dataset(rows)
        row_count = dataset.count_rows()
        reader = _reader_in_schema(dataset, self.schema)
        with self.writing():
            if not row_count:
                return {"inserted": 0, "replaced": 0}
            # An append is three times faster.
            if not self.exists or not self._holds_any(dataset, key):
                self._append(reader)
                return {"inserted": row_count, "replaced": 0}
            differs = " OR ".join(
                f"(old.{name} IS DISTINCT FROM new.{name})"
                for name in map(quoted, content)
            )
            same_key = " AND ".join(
                f"old.{name} = new.{name}" for name in map(quoted, key)
            )
            merger = self._open().merge(
                reader, same_key, source_alias="new", target_alias="old"
            )
            # Its `…_all` do not double a backtick.
            columns = {
                f"old.{name}": f"new.{name}" for name in map(quoted, self.schema.names)
            }
            merger = merger.when_matched_update(columns, predicate=differs)
            metrics: dict[str, Any] = merger.when_not_matched_insert(columns).execute()
        return {
            "inserted": metrics["num_target_rows_inserted"],
            "replaced": metrics["num_target_rows_updated"],
        }

    def remove(self, rows: pa.Table, key: Sequence[str]) -> None:
        """Delete the rows that have the key of one of `rows`. Repeating it changes nothing."""
        is_same = [
            f"(old.{name} IS NOT DISTINCT FROM new.{name})" for name in map(quoted, key)
        ]
        if rows.num_rows:
            with self.writing():
                merger = self._open().merge(
                    rows.select(key), " AND ".join(is_same), "new", "old"
                )
                merger.when_matched_delete().execute()

    def insert(self, rows: pa.Table, key: str, time: str) -> int:
        """Append rows whose key is not in the table; return their number. It may be repeated.

        time: Column of times. Two rows of a key lie at most REPEAT_SPAN apart: only keys of about
            the times of `rows` are read.
        """
        rows = rows.cast(self.schema)
        if not rows.num_rows:
            return 0
        span = pc.min_max(rows[time]).as_py()
        is_late_enough = pc.field(time) >= span["min"] - REPEAT_SPAN
        is_early_enough = pc.field(time) <= span["max"] + REPEAT_SPAN
        with self.writing():
            stored = self.read(columns=[key], where=is_late_enough & is_early_enough)
            is_stored = pc.is_in(rows[key], stored[key].combine_chunks())
            rows = rows.filter(pc.invert(is_stored))
            if rows.num_rows:
                self._append(rows)
        return int(rows.num_rows)

    def replace(self, rows: pa.Table, partition: Sequence[str]) -> None:
        """Replace the rows of a partition by `rows`, which all belong to it, in one commit.

        partition: Columns by which the table is partitioned, all texts.
        """
        same = " AND ".join(
            exp.column(name, quoted=True).eq(rows[name][0].as_py()).sql()
            for name in partition
        )
        with self.writing():
            write_deltalake(
                self.address,
                rows.cast(self.schema),
                mode="overwrite",
                partition_by=list(partition),
                predicate=same if self.exists else None,
                configuration=RETENTION,
                storage_options=S3,
            )

    def commit(
        self,
        files: Sequence[AddedFile],
        columns: pa.Schema,
        within: str | None,
        notes: Mapping[str, int],
    ) -> None:
        """Replace files of the table by files that lie in its folder, in one commit.

        They are written within `writing`, as `purge` removes files that no commit has named.
        Readers see all old files or all new files. If the table has another `schema`, all its old
        files have to go.

        Args:
            files: Files that no commit has named before.
            columns: Columns of the files; the table has PERIOD beside them.
            within: SQL on PERIOD; only files of such periods go. None: all files go.
            notes: Numbers that `noted` returns from now on, such as the version of the raw rows.

        """
        schema = Schema.from_arrow(columns.append(pa.field(PERIOD, pa.int64())))
        with self.writing():
            if not self.exists:
                DeltaTable.create(
                    self.address,
                    schema,
                    partition_by=[PERIOD],
                    configuration=SHORT_RETENTION,
                    storage_options=S3,
                )
            removed_names = [] if within is None else self.names(within=within)
            self._open().create_write_transaction(
                [*map(removed_file, removed_names), *files],
                mode="overwrite" if within is None else "append",
                schema=schema,
                partition_by=[PERIOD],
                commit_properties=CommitProperties(
                    app_transactions=[
                        Transaction(name, note) for name, note in notes.items()
                    ]
                ),
            )

    def take_in(self, folder: Path, names: Sequence[str]) -> None:
        """Move files below `folder` into the table's folder, within `writing`.

        No reader sees them before `commit`. This host keeps copies of files that go to S3.
        """
        place = Path(self.address)
        if self._settings.data_url:
            sources = [str(folder / name) for name in names]
            targets = [(self.path / name).path for name in names]
            with reached(self.name):
                self.path.fs.put(sources, targets)
            place = self._settings.cache / self.path.path
        shutil.copytree(folder, place, copy_function=shutil.move, dirs_exist_ok=True)

    def compact(self) -> None:
        """Rewrite the small files together; rows and readers of older versions see no change."""
        with self.writing():
            self._open().optimize.compact(target_size=SMALL_BYTES)

    def clean_up(self, column: str | None, oldest: datetime) -> tuple[int, int]:
        """Delete rows whose time in `column` lies before `oldest`, compact, and remove old files.

        Old files are files that no version of the last week needs, and files of killed writers.

        Returns:
            The numbers of rows and files that were removed.

        """
        row_count = 0
        with self.writing():
            table = self._open()
            if column:
                moment = oldest.astimezone(UTC).isoformat()
                metrics = table.delete(f"{quoted(column)} < '{moment}'")
                row_count = metrics["num_deleted_rows"]
            table.optimize.compact(target_size=COMPACTED_BYTES)
            # Some of the files that it names were removed before.
            files = [
                name for name in table.vacuum(full=True) if (self.path / name).exists()
            ]
            table.vacuum(dry_run=False, full=True)
            table.create_checkpoint()  # the log before a checkpoint can go
            table.cleanup_metadata()
        return row_count, len(files)

    def matching(self, where: str, column: str) -> list[Any]:
        """Return the values of `column` in the rows for which an SQL condition holds."""
        query = f"SELECT {quoted(column)} AS value FROM here WHERE {where}"  # noqa: S608  (ours)
        rows = query_table(self._settings, self.name, query)
        return [row["value"] for row in rows]

    def erase(self, where: str, column: str | None = None) -> None:
        """Delete rows for which an SQL condition holds, or only their values of `column`.

        Until `purge`, older versions keep them, and the log keeps the condition.
        """
        with self.writing():
            if column:
                self._open().update({quoted(column): "NULL"}, predicate=where)
            else:
                self._open().delete(where)

    def purge(self) -> None:
        """Remove older versions: their files and log entries. Readers of them fail.

        Later changes stay readable (`changed_files`).
        """
        with self.writing():
            now = self._open()
            newest = now.version()
            now.create_checkpoint()
            now.vacuum(0, dry_run=False, enforce_retention_duration=False, full=True)
            last = self._open()
            last.create_checkpoint()
            for entry in (self.path / "_delta_log").glob("0*"):
                oldest = last.version() if entry.suffix == ".json" else newest
                if int(entry.name.partition(".")[0]) < oldest:
                    entry.unlink()
        if self._settings.data_url:
            shutil.rmtree(self._settings.cache / self.path.path, ignore_errors=True)

    def _append(self, rows: pa.Table | pa.RecordBatchReader) -> None:
        write_deltalake(
            self.address,
            rows,
            mode="append",
            schema_mode="merge",
            configuration=RETENTION,
            storage_options=S3,
            target_file_size=COMPACTED_BYTES,
        )

    def names(self, version: int | None = None, within: str | None = None) -> list[str]:
        """Return paths of a version's files below the table's folder."""
        return file_names(self._open(version), within) if self.exists else []

    def stored_schema(self) -> pa.Schema:
        """Return the columns of the newest version's files, which lack the columns of partitions."""
        return columns_of_files(self._open())

    def copies(self, names: Sequence[str]) -> list[str]:
        """Return paths of the table's files on this disk; files on S3 are copied."""
        return copies_of(self.path, names, self._settings.cache)

    def _holds_any(self, rows: ds.Dataset, key: Sequence[str]) -> bool:
        """Whether the table has a row with the key of one of `rows`."""
        files = self.files()
        if not files:
            return False
        config: dict[str, Any] = {
            "memory_limit": MEMORY_LIMIT,
            "temp_directory": str(self._settings.cache / f"{self.name}.spill"),
        }
        columns = ", ".join(map(quoted, key))
        with duckdb.connect(config=config) as connection:
            new_keys = connection.from_arrow(rows).project(columns)
            stored_rows = connection.read_parquet(files)
            same_rows = stored_rows.join(new_keys, columns, how="semi").limit(1)
            return same_rows.fetchone() is not None

    def _open(self, version: int | None = None) -> DeltaTable:
        """Open a version (default: the newest). An open newest version reads only new commits.

        Raises:
            DataError: The table cannot be reached.

        """
        try:
            if version is not None:
                return DeltaTable(self.address, version, S3)
            if self._newest is None:
                self._newest = DeltaTable(self.address, storage_options=S3)
            else:
                self._newest.update_incremental()
        except OSError as exc:
            raise DataError(f"table {self.name}: {short_text(exc)}") from exc
        return self._newest

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the lock of writing the table and removing its files; a thread may ask again.

        Raises:
            DataError: Another held the lock for a minute, or Delta refused.

        """
        with one_writer(self._settings, self.name), table_errors(self.name):
            yield


def _rows_of(
    dataset: ds.Dataset, names: list[str], where: pc.Expression | None
) -> pa.Table:
    try:
        # Four files ahead, as usual, took 750 MB to find no row in 10M; two take no longer.
        return dataset.to_table(names, where, fragment_readahead=2)
    except (
        pa.ArrowNotImplementedError
    ):  # delta-rs deletes rows from a file: string views
        fragments = dataset.get_fragments(where)
        tables = [fragment.to_table(dataset.schema) for fragment in fragments]
        return pa.concat_tables(tables).filter(where).select(names)


def _in_schema(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return `rows` with the columns of `schema`; columns that they lack are null."""
    return pa.concat_tables(
        [schema.empty_table(), rows], promote_options="permissive"
    ).cast(schema)


def _reader_in_schema(rows: ds.Dataset, schema: pa.Schema) -> pa.RecordBatchReader:
    """Read rows by batches, with the columns of `schema`; columns that they lack are null."""
    names = [name for name in schema.names if name in rows.schema.names]

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in rows.to_batches(columns=names, batch_size=WRITE_BATCH_ROWS):
            table = _in_schema(pa.Table.from_batches([batch]), schema)
            yield from table.to_batches()

    return pa.RecordBatchReader.from_batches(schema, batches())

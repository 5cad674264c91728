"""Delta tables: everything that happened, below `GYRE_HOME/data/`.

A version number names exactly what a reader saw; every version of the last week stays readable.
One writer per table at a time: concurrent merges conflict, so every write holds a file lock.

Delta flushes nothing to disk: what was written survives a killed process, not a power cut.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError
from filelock import FileLock, Timeout

from core.errors import DataError

LOCK_SECONDS = 60
RETENTION = {
    "delta.deletedFileRetentionDuration": "interval 7 days",
    "delta.logRetentionDuration": "interval 7 days",
}
"""Table properties. For readers at work, and for features, which are computed from what changed
since a version."""
SMALL_BYTES = 1024 * 1024
"""Files below this size are compacted as they come; `gyre maintain` makes larger ones of them."""
COMPACTED_BYTES = 32 * 1024 * 1024
"""Small, as a merge copies every file that it changes a row of."""
LONGEST = 200
"""Characters of Delta's own words in a message of ours."""
NEAR = timedelta(seconds=30)
"""Between rows of one key: a proxy repeats a request once a replica has not answered for 5 s."""


class Table:
    """One Delta table at `path`, created with `schema` on first write.

    What writes raises DataError if another process held the lock for a minute, or Delta refused.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path = path
        self.schema = schema

    @property
    def version(self) -> int:
        """The newest version; -1 before the first write."""
        return int(self._open().version()) if self.exists else -1

    @property
    def exists(self) -> bool:
        return bool(DeltaTable.is_deltatable(str(self.path)))

    @property
    def identity(self) -> str:
        """What tells this table from one made anew at its place."""
        return str(self._open().metadata().id)

    def files(self, version: int | None = None, within: str | None = None) -> list[str]:
        """Parquet files of a version (default: the newest); DuckDB and Spark read these.

        within: SQL on columns; files that surely hold no such row are left out.
        """
        if not self.exists:
            return []
        table = self._open(version)
        folder = urlsplit(table.table_uri).path  # quoted, what comes behind it is as on disk
        files = table.file_uris(file_pruning_predicate=within)
        return [f"{self.path.absolute()}/{file.removeprefix(folder)}" for file in files]

    def changed_files(self, since: int, version: int) -> tuple[list[str], list[str]] | None:
        """Files that came and files that went between two versions; None if no longer known."""
        try:
            before, after = set(self.files(since)), set(self.files(version))
        except DeltaError:
            return None
        went = sorted(before - after)
        return (sorted(after - before), went) if all(map(os.path.exists, went)) else None

    def read(
        self,
        version: int | None = None,
        columns: Sequence[str] | None = None,
        where: pc.Expression | None = None,
    ) -> pa.Table:
        """Rows of a version (default: the newest); none of a table that does not exist.

        columns, where: only these are read, of files that may hold such rows.

        Raises:
            DataError: the version is not there, or files of it are gone (vacuumed).

        """
        schema = pa.schema([self.schema.field(name) for name in columns or self.schema.names])
        if not self.exists:
            return schema.empty_table()
        try:
            dataset = self._open(version).to_pyarrow_dataset()
            stored = [name for name in schema.names if name in dataset.schema.names]
            # Four files ahead, as is usual, took 750 MB to find no row in 10M; two take no longer.
            return _in_schema(dataset.to_table(stored, where, fragment_readahead=2), schema)
        except (DeltaError, OSError) as exc:
            which = "newest version" if version is None else f"version {version}"
            wrong = f"its {which} cannot be read, vacuumed or never here: {_short(exc)}"
            raise DataError(f"table {self.path.name}: {wrong}") from exc

    def newest(self, column: str) -> datetime | None:
        """Return the largest time in `column`, to the millisecond: the files know it."""
        if not self.exists:
            return None
        times = pa.table(self._open().get_add_actions(flatten=True))[f"max.{column}"]
        newest: datetime | None = pc.max(times).as_py()
        return newest

    def merge(
        self, rows: pa.Table, key: Sequence[str], content: Sequence[str], arrival: str | None = None
    ) -> dict[str, int]:
        """Insert rows with a new key; replace those of a known key whose `content` differs.

        arrival: a column of times; a row never replaces one that arrived after it.
        Returns how many rows were inserted and how many replaced. Repeating it changes nothing.
        """
        rows = _in_schema(rows, self.schema)
        with self._writing():
            if self.exists and not rows.num_rows:
                return {"inserted": 0, "replaced": 0}
            if not self.exists or not self._holds_any(rows, key):  # an append is three times faster
                self._append(rows)
                return {"inserted": rows.num_rows, "replaced": 0}
            differs = " OR ".join(f"(old.{name} IS DISTINCT FROM new.{name})" for name in content)
            if arrival:
                differs = f"({differs}) AND new.{arrival} >= old.{arrival}"
            same_key = " AND ".join(f"old.{name} = new.{name}" for name in key)
            merger = self._open().merge(rows, same_key, source_alias="new", target_alias="old")
            merger = merger.when_matched_update_all(predicate=differs)
            metrics: dict[str, Any] = merger.when_not_matched_insert_all().execute()
        inserted, replaced = metrics["num_target_rows_inserted"], metrics["num_target_rows_updated"]
        return {"inserted": inserted, "replaced": replaced}

    def insert(self, rows: pa.Table, key: str, beside: str | None = None) -> int:
        """Append rows whose key the table does not hold; return how many. Again changes nothing.

        beside: a column of times, which of one key are about the same: only keys of about the
        times of `rows` are read.
        """
        rows = rows.cast(self.schema)
        with self._writing():
            if self.exists and rows.num_rows:
                near = _within_span(rows, beside, NEAR) if beside else None
                stored = self._open().to_pyarrow_dataset().to_table(columns=[key], filter=near)
                known = pc.is_in(rows[key], stored[key].combine_chunks())
                rows = rows.filter(pc.invert(known))
            if rows.num_rows:
                self._append(rows)
        return int(rows.num_rows)

    def replace(self, rows: pa.Table, partition: Sequence[str]) -> None:
        """Put `rows`, all of one partition, in place of what that partition holds, in one commit.

        partition: the columns that the table is partitioned by, all text.
        """
        same = " AND ".join(f"{name} = '{rows[name][0]}'" for name in partition)
        with self._writing():
            write_deltalake(
                str(self.path),
                rows.cast(self.schema),
                mode="overwrite",
                partition_by=list(partition),
                predicate=same if self.exists else None,
                configuration=RETENTION,
            )

    def compact(self) -> None:
        """Rewrite the small files together; rows and readers of older versions see no change."""
        with self._writing():
            self._open().optimize.compact(target_size=SMALL_BYTES)

    def clean_up(self, column: str | None, oldest: datetime) -> tuple[int, int]:
        """Delete rows whose time in `column` lies before `oldest`, compact, and remove files.

        Those that no version of the last week needs, and those of killed writers. Returns how many
        rows and files went.
        """
        rows = 0
        with self._writing():
            table = self._open()
            if column:
                past = pc.field(column) < oldest
                rows = int(table.to_pyarrow_dataset().count_rows(filter=past))
            if rows:
                table.delete(f"{column} < '{oldest.astimezone(UTC).isoformat()}'")
            table.optimize.compact(target_size=COMPACTED_BYTES)
            # Of those that it names some went before.
            files = [name for name in table.vacuum(full=True) if (self.path / name).exists()]
            table.vacuum(dry_run=False, full=True)
            table.create_checkpoint()  # the log before a checkpoint can go
            table.cleanup_metadata()
        return rows, len(files)

    def _append(self, rows: pa.Table) -> None:
        write_deltalake(
            str(self.path), rows, mode="append", schema_mode="merge", configuration=RETENTION
        )

    def _holds_any(self, rows: pa.Table, key: Sequence[str]) -> bool:
        """Whether the table has a row with the key of one of `rows`."""
        is_text = pa.types.is_string(rows.schema.field(key[0]).type)
        # The files know the span of their rows: most are not read. Of texts in another type.
        near = None if is_text else _within_span(rows, key[0])
        known = self._open().to_pyarrow_dataset().to_table(columns=list(key), filter=near)
        known = known.cast(pa.schema([self.schema.field(name) for name in key]))
        return bool(rows.select(key).join(known, list(key), join_type="left semi").num_rows)

    def _open(self, version: int | None = None) -> DeltaTable:
        return DeltaTable(str(self.path), version=version)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the table's lock; turn what Delta refuses into one line of ours."""
        with one_writer(self.path):
            try:
                yield
            except DeltaError as exc:
                raise DataError(f"table {self.path.name}: {_short(exc)}") from exc


@contextmanager
def one_writer(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, which a thread may take again, or raise DataError after a minute."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{path}.lock", timeout=LOCK_SECONDS, is_singleton=True):
            yield
    except Timeout as exc:
        raise DataError(f"{path.name}: another writer held it for {LOCK_SECONDS} s") from exc


def _in_schema(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """`rows` with the columns of `schema`; those they lack are null."""
    return pa.concat_tables([schema.empty_table(), rows], promote_options="permissive").cast(schema)


def _within_span(rows: pa.Table, column: str, margin: timedelta | None = None) -> pc.Expression:
    """Rows of the table whose `column` lies in the span of `rows`, or beside it by `margin`."""
    low, high = pc.min_max(rows[column]).as_py().values()
    if margin:
        low, high = low - margin, high + margin
    return (pc.field(column) >= low) & (pc.field(column) <= high)


def _short(exc: Exception) -> str:
    return " ".join(str(exc).split())[:LONGEST]

"""Delta tables: everything that happened, below `GYRE_HOME/data/`.

A version number names exactly what a reader saw. One writer per table at a time: concurrent merges
conflict, so every write holds a file lock.

Delta itself flushes nothing to disk: a write does so once it has committed (`make_durable`).
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable, PostCommitHookProperties, write_deltalake
from deltalake.exceptions import DeltaError
from filelock import FileLock, Timeout

from stack.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

LOCK_SECONDS = 60
# Delta's own would throw away the log of versions that lineage names: stack/maintenance.py does it.
KEEP_LOG = PostCommitHookProperties(cleanup_expired_logs=False)
SMALL_BYTES = 1024 * 1024
"""Files below this size are compacted as they come; `gyre maintain` makes larger ones of them."""
LONGEST = 200
"""Characters of Delta's own words in a message of ours."""
COARSE = timedelta(seconds=1)
"""Times of files lag behind the clock by milliseconds; times that Delta knows of a file's rows are
cut to milliseconds."""


class Table:
    """One Delta table at `path`, created with `schema` on first write."""

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

    def files(self, version: int | None = None, within: str | None = None) -> list[str]:
        """Parquet files of a version (default: the newest); DuckDB and Spark read these.

        within: SQL on columns; files that surely hold no such row are left out.
        """
        if not self.exists:
            return []
        found = self._open(version)
        place = urlsplit(found.table_uri).path  # quoted, what comes behind it is as on disk
        files = found.file_uris(file_pruning_predicate=within)
        return [f"{self.path.absolute()}/{each.removeprefix(place)}" for each in files]

    def all_files(self) -> list[str]:
        """Parquet files of every version that was not vacuumed."""
        return [str(path) for path in sorted(self.path.absolute().glob("*.parquet"))]

    @property
    def identity(self) -> str:
        """What tells this table from one made anew at its place."""
        return str(self._open().metadata().id)

    def changed_files(self, since: int, version: int) -> tuple[list[str], list[str]] | None:
        """Files that came and files that went between two versions; None if no longer known."""
        try:
            before, after = set(self.files(since)), set(self.files(version))
        except DeltaError:
            return None
        came, went = sorted(after - before), sorted(before - after)
        return (came, went) if all(map(os.path.exists, went)) else None

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
            found = self._open(version).to_pyarrow_dataset()
            there = [name for name in schema.names if name in found.schema.names]
            # A column that came later is null in what was written before.
            # Four files ahead, as is usual, took 750 MB to find no row in 10M; two take no longer.
            rows = found.to_table(there, where, fragment_readahead=2)
            both = [schema.empty_table(), rows]
            return pa.concat_tables(both, promote_options="permissive").cast(schema)
        except (DeltaError, OSError) as exc:
            reason = " ".join(str(exc).split())[:LONGEST]
            which = "newest version" if version is None else f"version {version}"
            raise DataError(
                f"table {self.path.name}: its {which} cannot be read, vacuumed or never here: "
                f"{reason}"
            ) from exc

    def newest(self, column: str, version: int | None = None) -> datetime | None:
        """Return the largest time in `column`, to the millisecond: the files know it.

        Raises:
            DataError: the version (default: the newest) is no longer there.

        """
        if not self.exists:
            return None
        try:
            found = pa.table(self._open(version).get_add_actions(flatten=True))[f"max.{column}"]
        except DeltaError as exc:
            raise DataError(f"table {self.path.name}: version {version} is gone: {exc}") from exc
        newest: datetime | None = pc.max(found).as_py()
        return newest

    def merge(
        self, rows: pa.Table, key: Sequence[str], content: Sequence[str], arrival: str | None = None
    ) -> dict[str, int]:
        """Insert rows with a new key; replace those of a known key whose `content` differs.

        arrival: a column of times; a row never replaces one that arrived after it.
        Returns how many rows were inserted and how many replaced. Repeating it changes nothing.

        Raises:
            DataError: another process held the table's lock for a minute, or Delta refused.

        """
        rows = pa.concat_tables([self.schema.empty_table(), rows], promote_options="permissive")
        rows = rows.cast(self.schema)
        with one_writer(self.path), _durable(self.path), _data_errors(self.path):
            if self.exists and not rows.num_rows:
                return {"inserted": 0, "replaced": 0}
            if not self.exists or not self._holds_any(rows, key):  # an append is three times faster
                write_deltalake(
                    str(self.path), rows, mode="append", post_commithook_properties=KEEP_LOG
                )
                return {"inserted": rows.num_rows, "replaced": 0}
            differs = " OR ".join(f"(old.{name} IS DISTINCT FROM new.{name})" for name in content)
            if arrival:
                differs = f"({differs}) AND new.{arrival} >= old.{arrival}"
            done: dict[str, Any] = (
                self._open()
                .merge(
                    rows,
                    predicate=" AND ".join(f"old.{name} = new.{name}" for name in key),
                    source_alias="new",
                    target_alias="old",
                    post_commithook_properties=KEEP_LOG,
                )
                .when_matched_update_all(predicate=differs)
                .when_not_matched_insert_all()
                .execute()
            )
        return {
            "inserted": done["num_target_rows_inserted"],
            "replaced": done["num_target_rows_updated"],
        }

    def insert(self, rows: pa.Table, key: str, beside: str | None = None) -> int:
        """Append rows whose key the table does not hold; return how many. Again changes nothing.

        beside: a column of times, which of one key are always the same: only the keys at the
        times of `rows` are read, not the whole table's.
        """
        rows = rows.cast(self.schema)
        with one_writer(self.path), _durable(self.path):
            if self.exists and rows.num_rows:
                near = _near(rows, beside) if beside else None
                known = self._open().to_pyarrow_dataset().to_table(columns=[key], filter=near)[key]
                rows = rows.filter(pc.invert(pc.is_in(rows[key], known.combine_chunks())))
            if rows.num_rows:
                write_deltalake(
                    str(self.path), rows, mode="append", schema_mode="merge",
                    post_commithook_properties=KEEP_LOG,
                )  # fmt: skip
        return int(rows.num_rows)

    def replace(self, rows: pa.Table, partition: Sequence[str]) -> None:
        """Put `rows`, all of one partition, in place of what that partition holds, in one commit.

        partition: the columns that the table is partitioned by, all text.

        Raises:
            DataError: another process held the table's lock for a minute.

        """
        rows = rows.cast(self.schema)
        same = " AND ".join(f"{name} = '{rows[name][0]}'" for name in partition)
        with one_writer(self.path), _durable(self.path):
            write_deltalake(
                str(self.path), rows, mode="overwrite", partition_by=list(partition),
                predicate=same if self.exists else None,
            )  # fmt: skip

    def compact(self) -> None:
        """Rewrite the small files together; rows and readers of older versions see no change.

        Raises:
            DataError: another process held the table's lock for a minute, or Delta refused.

        """
        with one_writer(self.path), _durable(self.path), _data_errors(self.path):
            self._open().optimize.compact(
                target_size=SMALL_BYTES, post_commithook_properties=KEEP_LOG
            )

    def _holds_any(self, rows: pa.Table, key: Sequence[str]) -> bool:
        """Whether the table has a row with the key of one of `rows`."""
        near, span = None, pc.min_max(rows[key[0]])
        if not pa.types.is_string(span["min"].type):  # Delta's statistics have another type of it
            # The files know the span of their rows: most are not read.
            near = (pc.field(key[0]) >= span["min"]) & (pc.field(key[0]) <= span["max"])
        known = self._open().to_pyarrow_dataset().to_table(columns=list(key), filter=near)
        known = known.cast(pa.schema([self.schema.field(name) for name in key]))
        found = rows.select(key).join(known, list(key), join_type="left semi")
        return bool(found.num_rows)

    def _open(self, version: int | None = None) -> DeltaTable:
        return DeltaTable(str(self.path), version=version)


def make_durable(path: Path, since: datetime) -> None:
    """Flush to disk the files and folders of a table that were changed since a moment.

    Whoever removes a file that a table has taken calls it first, with the moment the file began:
    that covers the commit of another process too, one that was killed before it flushed. Flushed
    file by file (2 ms after a write of 180 ms, measured), not by `os.sync`, which is as quick but
    waits for what others have to write, and never says that the disk refused.
    """
    from_then = (since - COARSE).timestamp()
    above = [str(path.parent), str(path.parent.parent)]  # where a new table has its name
    inside = (os.path.join(at, name) for at, _, names in os.walk(path) for name in (*names, ""))  # noqa: PTH118
    for each in (*inside, *above):
        with suppress(FileNotFoundError):  # vacuumed meanwhile
            if os.stat(each).st_mtime >= from_then:  # noqa: PTH116
                _flush(each)


@contextmanager
def _data_errors(path: Path) -> Iterator[None]:
    """Turn what Delta refuses into one line of ours."""
    try:
        yield
    except DeltaError as exc:
        raise DataError(f"table {path.name}: {' '.join(str(exc).split())[:LONGEST]}") from exc


@contextmanager
def _durable(path: Path) -> Iterator[None]:
    """What is written to `path` within is on disk at its end."""
    began = datetime.now(UTC)
    yield
    make_durable(path, began)


def _flush(path: str) -> None:
    """Flush a file, or a folder's entries."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _near(rows: pa.Table, column: str) -> pc.Expression:
    span, field = pc.min_max(rows[column]).as_py(), pc.field(column)
    return (field >= span["min"] - COARSE) & (field <= span["max"] + COARSE)


@contextmanager
def one_writer(path: Path) -> Iterator[None]:
    """Hold the lock of `path`, which a thread may take again, or raise DataError after a minute."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{path}.lock", timeout=LOCK_SECONDS, is_singleton=True):
            yield
    except Timeout as exc:
        raise DataError(f"{path.name}: another writer held it for {LOCK_SECONDS} s") from exc

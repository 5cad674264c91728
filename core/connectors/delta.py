"""Delta tables of any tool, on this disk or in a bucket."""

import json
import re
from typing import NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, DeltaProtocolError

from core.connectors.formats import READ_ROWS, Later
from core.errors import DataError
from core.files import location
from core.tables.query import S3, quoted, short_text

LOG_FILE = re.compile(r"(\d{20})\.json")
MOST_COMMITS = 1_000
"""Number of the newest commits that are read; files of older ones have the time of their writing."""


class Commit(NamedTuple):
    """The commit that added a file.

    Attributes:
        version: Version of the table that the file came with.
        brings_rows: Whether it brought rows; a compaction only writes them again.

    """

    version: int
    brings_rows: bool


def open_delta(address: str, later: Later | None) -> pa.RecordBatchReader:
    """Open the newest version of a table, whose files come in the order of their commits.

    Rows of a table with deletion vectors or mapped columns come in any order, as only deltalake's
    own engine reads these.

    Args:
        address: Folder of the table, on this disk or in a bucket.
        later: Rows that are asked for; other files are not read.

    Raises:
        DataError: There is no table, or it cannot be read.

    """
    try:
        table = _open(address)
        schema = pa.schema(table.schema().to_arrow())
        dataset = _ordered_dataset(table, schema, commits_of(address))
        if dataset:
            condition = _condition(schema, later) if later else None
            scanner = dataset.scanner(filter=condition, batch_size=READ_ROWS)
            rows = scanner.to_reader()
        else:
            predicate = _predicate(schema, later) if later else None
            rows = pa.RecordBatchReader.from_stream(table.scan(predicate=predicate))
    except (DeltaError, OSError) as exc:
        raise DataError(short_text(exc)) from exc
    return rows.cast(schema)


def is_in_order(address: str) -> bool:
    """Whether a table tells which row came later: no file holds rows of several commits.

    Raises:
        DataError: There is no table, or it cannot be read.

    """
    try:
        table = _open(address)
        schema = pa.schema(table.schema().to_arrow())
        commits = commits_of(address)
        if not _ordered_dataset(table, schema, commits):
            return False
    except (DeltaError, OSError) as exc:
        raise DataError(short_text(exc)) from exc
    times = _times_of_files(table)
    return all(commits[path].brings_rows for path in times if path in commits)


def _open(address: str) -> DeltaTable:
    if "%" in address:  # deltalake decodes it, and reads another folder
        raise DataError(
            f"{address}: deltalake reads no folder with % in its name: rename it"
        )
    return DeltaTable(address, storage_options=S3)


def commits_of(address: str) -> dict[str, Commit]:
    """Return the newest commits of a table, by the path of each file that they added."""
    log = location(address) / "_delta_log"
    names = [file.name for file in log.iterdir() if LOG_FILE.fullmatch(file.name)]
    commits = {}
    for name in sorted(names)[-MOST_COMMITS:]:
        for line in (log / name).read_text(encoding="utf-8").splitlines():
            added = json.loads(line).get("add")
            if added:
                version = int(name.removesuffix(".json"))
                brings_rows = added.get("dataChange", True)
                commits[unquote(added["path"])] = Commit(version, brings_rows)
    return commits


def _times_of_files(table: DeltaTable) -> dict[str, int]:
    """Return when each file of the table was written, in ms since 1970, by its path."""
    actions = pa.table(table.get_add_actions(flatten=True))
    paths = map(unquote, actions["path"].to_pylist())
    return dict(zip(paths, actions["modification_time"].to_pylist(), strict=True))


def _ordered_dataset(
    table: DeltaTable, schema: pa.Schema, commits: dict[str, Commit]
) -> ds.Dataset | None:
    """Return the files of a table in the order of their commits; None: Arrow cannot read them."""
    configuration = table.metadata().configuration
    if configuration.get("delta.columnMapping.mode", "none") != "none":
        return None
    try:
        dataset = table.to_pyarrow_dataset(schema=schema)
    except DeltaProtocolError:
        return None
    times = _times_of_files(table)
    fragments = [*dataset.get_fragments()]

    def place(fragment: ds.Fragment) -> tuple[int, int, str]:
        path = unquote(fragment.path)
        commit = commits.get(path)
        return commit.version if commit else -1, times.get(path, 0), path

    if not fragments:
        return dataset
    ordered = sorted(fragments, key=place)
    return ds.FileSystemDataset(
        ordered, dataset.schema, dataset.format, dataset.filesystem
    )


def _condition(schema: pa.Schema, later: Later) -> ds.Expression | None:
    if later.column not in schema.names:
        return None
    kind = schema.field(later.column).type
    if not pa.types.is_timestamp(kind):
        return None
    time = ds.field(later.column)
    limit = pa.scalar(later.limit(has_zone=kind.tz is not None))
    return (time > limit.cast(kind, safe=False)) | time.is_null()


def _predicate(schema: pa.Schema, later: Later) -> str | None:
    if later.column not in schema.names:
        return None
    name = quoted(later.column)
    has_zone = getattr(schema.field(later.column).type, "tz", None) is not None
    limit = later.limit(has_zone=has_zone)
    return f"{name} > '{limit}' OR {name} IS NULL"

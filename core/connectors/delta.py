"""Delta tables of any tool, on this disk or in a bucket."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError, DeltaProtocolError

from core.connectors.formats import READ_ROWS, Later, TableFile
from core.errors import DataError
from core.files import location
from core.tables.query import S3, quoted, short_text

LOG_FILE = re.compile(r"(\d{20})\.json")
MOST_COMMITS = 1_000
"""Number of the newest commits that are read."""
COPIES = ("RESTORE", "CLONE")
"""Operations whose files hold rows of older commits, or of another table's."""


class Commit(NamedTuple):
    """The commit that added a file.

    Attributes:
        version: Version of the table that the file came with.
        brings_rows: Whether it brought all rows of the file; a compaction, and a change of other
            rows of a file, write older rows again.

    """

    version: int
    brings_rows: bool


UNKNOWN = Commit(version=-1, brings_rows=False)
"""The commit of a file that the log names no more: it may have been that of a compaction."""


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
        dataset = _dataset(table, schema)
        if dataset:
            ordered_files = _ordered_files(table, dataset, commits_of(table, address))
            fragments = [fragment for _, fragment in ordered_files]
            condition = _condition(schema, later) if later else None
            files = _with_fragments(dataset, fragments)
            scanner = files.scanner(filter=condition, batch_size=READ_ROWS)
            rows = scanner.to_reader()
        else:
            predicate = _predicate(schema, later) if later else None
            rows = pa.RecordBatchReader.from_stream(table.scan(predicate=predicate))
    except (DeltaError, OSError) as exc:
        raise DataError(short_text(exc)) from exc
    return rows.cast(schema)


def delta_files(address: str) -> list[TableFile] | None:
    """Return the files of the newest version of a table in the order in which they are read.

    Args:
        address: See `open_delta`.

    Returns:
        The files; None: Arrow cannot read them, and their rows come in any order.

    Raises:
        DataError: There is no table, or it cannot be read.

    """
    try:
        table = _open(address)
        dataset = _dataset(table, pa.schema(table.schema().to_arrow()))
        if not dataset:
            return None
        ordered_files = _ordered_files(table, dataset, commits_of(table, address))
    except (DeltaError, OSError) as exc:
        raise DataError(short_text(exc)) from exc
    return [
        TableFile(
            commit=commit.version,
            is_of_commit=commit.brings_rows,
            read=partial(_rows_of_file, dataset, fragment),
        )
        for commit, fragment in ordered_files
    ]


def _open(address: str) -> DeltaTable:
    if "%" in address:  # deltalake decodes it, and reads another folder
        raise DataError(
            f"{address}: deltalake reads no folder with % in its name: rename it"
        )
    return DeltaTable(address, storage_options=S3)


def commits_of(table: DeltaTable, address: str) -> dict[str, Commit]:
    """Return the newest commits of a table, by the path of each file that they added.

    Args:
        table: The table.
        address: Its folder.

    """
    log = location(address) / "_delta_log"
    names = [file.name for file in log.iterdir() if LOG_FILE.fullmatch(file.name)]
    known_versions = {int(name.removesuffix(".json")) for name in names}
    newest = table.version()
    oldest = newest + 1
    # Files of a commit before a gap may be older or later than those of the gap.
    while oldest - 1 in known_versions and newest - oldest < MOST_COMMITS - 1:
        oldest -= 1
    commits: dict[str, Commit] = {}
    for version in range(oldest, newest + 1):
        lines = (log / f"{version:020}.json").read_text(encoding="utf-8").splitlines()
        actions = [json.loads(line) for line in lines if line.strip()]
        brings_rows = _brings_rows(actions)
        for action in actions:
            added = action.get("add")
            if added:
                path = unquote(added["path"])
                is_new = path not in commits and added.get("dataChange", True)
                commits[path] = Commit(version, brings_rows and is_new)
    return commits


def _brings_rows(actions: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the files that a commit adds hold no rows of before.

    An UPDATE, DELETE or MERGE of a row removes its file, and adds one with all its other rows. An
    overwrite without a condition removes files, too, and adds new rows alone.
    """
    information: Mapping[str, Any] = {}
    has_removed = False
    for action in actions:
        information = action.get("commitInfo") or information
        has_removed = has_removed or bool(action.get("remove"))
    operation = str(information.get("operation")).upper()
    parameters = information.get("operationParameters") or {}
    has_condition = parameters.get("predicate") not in (None, "", "[]")
    is_overwrite = parameters.get("mode") == "Overwrite" and not has_condition
    is_overwrite = is_overwrite or "REPLACE TABLE" in operation
    return operation not in COPIES and (is_overwrite or not has_removed)


def _times_of_files(table: DeltaTable) -> dict[str, int]:
    """Return when each file of the table was written, in ms since 1970, by its path."""
    actions = pa.table(table.get_add_actions(flatten=True))
    paths = map(unquote, actions["path"].to_pylist())
    return dict(zip(paths, actions["modification_time"].to_pylist(), strict=True))


def _dataset(table: DeltaTable, schema: pa.Schema) -> ds.Dataset | None:
    """Return the files of a table; None: Arrow cannot read them."""
    configuration = table.metadata().configuration
    if configuration.get("delta.columnMapping.mode", "none") != "none":
        return None
    try:
        return table.to_pyarrow_dataset(schema=schema)
    except DeltaProtocolError:
        return None


def _ordered_files(
    table: DeltaTable, dataset: ds.Dataset, commits: Mapping[str, Commit]
) -> list[tuple[Commit, ds.Fragment]]:
    """Return the files of a table with their commits, in the order of these."""
    times = _times_of_files(table)

    def place(file: tuple[Commit, ds.Fragment]) -> tuple[int, int, str]:
        commit, fragment = file
        path = unquote(fragment.path)
        return commit.version, times.get(path, 0), path

    files = [
        (commits.get(unquote(fragment.path), UNKNOWN), fragment)
        for fragment in dataset.get_fragments()
    ]
    return sorted(files, key=place)


def _with_fragments(
    dataset: ds.Dataset, fragments: Sequence[ds.Fragment]
) -> ds.Dataset:
    """Return some files of a dataset."""
    if not fragments:  # a dataset without files is of another class
        return dataset
    return ds.FileSystemDataset(
        [*fragments], dataset.schema, dataset.format, dataset.filesystem
    )


def _rows_of_file(
    dataset: ds.Dataset, fragment: ds.Fragment, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    file = _with_fragments(dataset, [fragment])
    yield from file.to_batches(columns=[*columns], batch_size=READ_ROWS)


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

"""What Spark's executors run: they read and write the parquet files of Delta tables.

All of this travels to the executors by value. There it needs PySpark, PyArrow and deltalake and
nothing of Gyre, so it imports nothing of Gyre. Each worker's own environment says how S3 is reached
(`AWS_*`): no credentials are part of a job. Delta's log is the business of the driver.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from operator import itemgetter
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake.fs import DeltaStorageHandler
from pyarrow.fs import PyFileSystem
from pyspark.sql.pandas.types import from_arrow_schema

BATCH_ROWS = 131_072
"""Rows of an Arrow batch and of a row group: what an executor's Python holds at a time."""
ADDED_FILE = """path string, size long, period long, rows long,
    earliest timestamp, latest timestamp"""
"""What `write_frame` returns of a file: the arguments of `core.storage.added_file`."""


def filesystem(address: str, storage_options: Mapping[str, str]) -> PyFileSystem:
    """Reach files below an address; what is returned travels to executors without credentials.

    Args:
        address: `s3://…`, or a folder that every executor sees.
        storage_options: deltalake's, such as retries, never credentials: Spark shows them.

    """
    return PyFileSystem(DeltaStorageHandler(address, dict(storage_options)))


def frame_of_files(
    session: Any, folder: PyFileSystem, files: Sequence[str], schema: pa.Schema
) -> Any:
    """Return the rows of some files as Spark's DataFrame; executors read each by a task of its own.

    Args:
        session: Spark's session.
        folder: Of a Delta table: see `filesystem`.
        files: Paths of its parquet files.
        schema: The columns to read; those that a file lacks are null.

    """

    def read(path: str) -> Iterator[pa.RecordBatch]:
        file = ds.dataset(path, schema, format="parquet", filesystem=folder)
        yield from file.to_batches(batch_size=BATCH_ROWS, batch_readahead=2)

    return _use_files(session, files, len(files), read, from_arrow_schema(schema))


def write_frame(frame: Any, folder: PyFileSystem) -> list[dict[str, Any]]:
    """Write a DataFrame's rows as files of a Delta table; executors do it. Nothing is committed.

    Args:
        frame: Rows with the columns `event_timestamp` and `period`, an integer; the files lack the
            latter.
        folder: Of the table: see `filesystem`.

    Returns:
        The arguments of `core.storage.added_file` of each file. Files of a task that was lost and
        done again are not among them.

    """
    # Without the hint, each task writes a file of its own into each period.
    frame = frame.hint("rebalance", "period").sortWithinPartitions("period")

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for period, parts in groupby(_parts(batches), key=itemgetter(0)):
            rows = (part_rows for _, part_rows in parts)
            file = _write_file(folder, period, rows)
            yield pa.RecordBatch.from_pylist([file])

    added_files = frame.mapInArrow(write, ADDED_FILE).toArrow()
    return list(added_files.to_pylist())


def write_rows(
    frame: Any,
    folder: PyFileSystem,
    file_rows: int = BATCH_ROWS,
    encode: Callable[[pa.Table], pa.Table] = lambda rows: rows,
) -> list[dict[str, Any]]:
    """Write a DataFrame's rows as parquet files; executors do it.

    Args:
        frame: Any rows.
        folder: See `filesystem`.
        file_rows: Most rows of a file.
        encode: Makes of rows what is written, as many rows.

    Returns:
        Of each file its `path` and how many `rows` it has, in the order of rows.

    """

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for start in range(0, batch.num_rows, file_rows):
                rows = pa.Table.from_batches([batch.slice(start, file_rows)])
                path = save_rows(encode(rows), folder)
                yield pa.RecordBatch.from_pylist([{"path": path, "rows": len(rows)}])

    files = frame.mapInArrow(write, "path string, rows long").toArrow()
    return list(files.to_pylist())


def save_rows(rows: pa.Table, folder: PyFileSystem) -> str:
    """Write rows of this process as a file; return its path."""
    path = f"{uuid4()}.parquet"
    with folder.open_output_stream(path) as stream:
        pq.write_table(rows, stream)
    return path


def read_rows(folder: PyFileSystem, path: str) -> pa.Table:
    """Read a file that `write_rows` wrote, in this process."""
    with folder.open_input_file(path) as file:
        return pq.read_table(file)


def for_each_file(
    session: Any,
    folder: PyFileSystem,
    paths: Sequence[str],
    use: Callable[[pa.Table], str],
) -> list[str]:
    """Have executors read files that `write_rows` wrote; return what `use` returns for each."""

    def use_rows(path: str) -> Iterator[pa.RecordBatch]:
        yield pa.RecordBatch.from_pydict({"text": [use(read_rows(folder, path))]})

    task_count = min(len(paths), session.sparkContext.defaultParallelism)
    texts = _use_files(session, paths, task_count, use_rows, "text string").toArrow()
    return list(texts["text"].to_pylist())


def _use_files(
    session: Any,
    paths: Sequence[str],
    task_count: int,
    use: Callable[[str], Iterator[pa.RecordBatch]],
    columns: Any,
) -> Any:
    """Return a DataFrame of what executors make of each file."""

    def use_files(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch["id"].to_pylist():
                yield from use(paths[number])

    # Without files, too, Spark wants one partition.
    numbers = session.range(0, len(paths), numPartitions=max(task_count, 1))
    return numbers.mapInArrow(use_files, columns)


def _parts(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Cut batches so that each part has rows of one period."""
    for batch in batches:
        for period in pc.unique(batch["period"]).to_pylist():
            rows = batch.filter(pc.equal(batch["period"], period))
            yield period, rows.drop_columns(["period"])


def _write_file(
    folder: PyFileSystem, period: int, parts: Iterator[pa.RecordBatch]
) -> dict[str, Any]:
    """Write the rows of one period as they come; return the fields of `ADDED_FILE`."""
    path = f"period={period}/{uuid4()}.parquet"
    row_count = 0
    spans = []
    first_part = next(parts)
    with folder.open_output_stream(path) as stream:
        with pq.ParquetWriter(stream, first_part.schema) as writer:
            for part in chain([first_part], parts):
                writer.write_batch(part)
                row_count += part.num_rows
                spans.append(pc.min_max(part["event_timestamp"]).as_py())
        size = int(stream.tell())
    return {
        "path": path,
        "size": size,
        "period": period,
        "rows": row_count,
        "earliest": min(span["min"] for span in spans),
        "latest": max(span["max"] for span in spans),
    }

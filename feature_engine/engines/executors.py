"""Functions that Spark's executors run: they read and write the parquet files of Delta tables.

This module travels to the executors by value. There it needs PySpark, PyArrow and deltalake alone,
so it imports nothing of Gyre. Each worker's own environment has the access to S3 (`AWS_*`): no
credentials are part of a job. The driver alone reads and writes Delta's log.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby
from operator import itemgetter
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow.fs import PyFileSystem
from pyspark.sql.pandas.types import from_arrow_schema

BATCH_ROWS = 131_072
"""Rows that an executor's Python holds at a time. An Arrow batch, a row group, and a file of rows on
their way have at most so many."""
ADDED_FILE = """path string, size long, period long, rows long,
    earliest timestamp, latest timestamp"""
"""Fields of a file that `write_frame` wrote: arguments of `core.tables.commits.added_file`."""


def frame_of_files(
    session: Any, folder: PyFileSystem, files: Sequence[str], schema: pa.Schema
) -> Any:
    """Return the rows of files as Spark's DataFrame; executors read each file in a task of its own.

    Args:
        session: Spark's session.
        folder: Folder of a Delta table: see `core.tables.addresses.files_below`.
        files: Paths of parquet files in the folder.
        schema: The columns to read; columns that a file lacks are null.

    """

    def read(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch["id"].to_pylist():
                file = ds.dataset(
                    files[number], schema, format="parquet", filesystem=folder
                )
                yield from file.to_batches(batch_size=BATCH_ROWS, batch_readahead=2)

    # Without files, too, Spark wants one partition.
    numbers = session.range(0, len(files), numPartitions=max(len(files), 1))
    return numbers.mapInArrow(read, from_arrow_schema(schema))


def write_frame(frame: Any, folder: PyFileSystem) -> list[dict[str, Any]]:
    """Write a DataFrame's rows as files of a Delta table; executors do it. Nothing is committed.

    Args:
        frame: Rows with `event_timestamp`, and with `period`, an integer that the files lack.
        folder: Folder of the table: see `core.tables.addresses.files_below`.

    Returns:
        Fields of ADDED_FILE for each file, without the files of a task that was lost and run again.

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


def write_rows(frame: Any, folder: PyFileSystem) -> list[str]:
    """Write a DataFrame's rows as parquet files; executors do it.

    Args:
        frame: Any rows.
        folder: Folder for the files: see `core.tables.addresses.files_below`.

    Returns:
        Paths of the files, in the order of the rows.

    """

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            path = save_rows(batch, folder)
            yield pa.RecordBatch.from_pydict({"path": [path]})

    paths = frame.mapInArrow(write, "path string").toArrow()["path"]
    return list(paths.to_pylist())


def save_rows(rows: pa.RecordBatch, folder: PyFileSystem) -> str:
    """Write rows of this process to a file; return the path of the file."""
    path = f"{uuid4()}.parquet"
    with folder.open_output_stream(path) as stream:
        pq.write_table(pa.Table.from_batches([rows]), stream)
    return path


def read_rows(path: str, folder: PyFileSystem) -> pa.Table:
    """Read a file that `write_rows` wrote, in this process."""
    with folder.open_input_file(path) as file:
        return pq.read_table(file)


def use_rows(frame: Any, use: Callable[[pa.Table], str]) -> list[str]:
    """Have executors use a DataFrame's rows, some at a time.

    Args:
        frame: Any rows.
        use: Uses rows and returns a problem, or an empty text; a task stops at a problem.

    Returns:
        The problems.

    """

    def use_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        problem = ""
        for batch in batches:
            problem = problem or use(pa.Table.from_batches([batch]))
        yield pa.RecordBatch.from_pydict({"problem": [problem]})

    problems = frame.mapInArrow(use_batches, "problem string").toArrow()["problem"]
    return [problem for problem in problems.to_pylist() if problem]


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

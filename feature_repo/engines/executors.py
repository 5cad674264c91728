"""What Spark's executors run: they read and write the parquet files of Delta tables.

All of this travels to the executors by value. There it needs PySpark, PyArrow and deltalake and
nothing of Gyre, so it imports nothing of Gyre. Each worker's own environment says how S3 is reached
(`AWS_*`): no credentials are part of a job. Delta's log is the business of the driver.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake.fs import DeltaStorageHandler
from pyarrow.fs import PyFileSystem
from pyspark import cloudpickle
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_schema

BATCH_ROWS = 131_072
"""Rows of an Arrow batch and of a row group: what an executor's Python holds at a time."""
SOURCE = "delta_files"
ADDED_FILE = """path string, size long, partition long, rows long,
    earliest timestamp, latest timestamp"""
"""Columns of what `written_files` yields: the fields of `core.storage.AddedFile`."""


class DeltaFiles(DataSource):  # type: ignore[misc]
    """Spark's data source of parquet files of one Delta table.

    The schema may name a part of the columns; others are not read. Those that a file lacks are
    null. Its options are those of `frame_of_files`, as JSON.
    """

    @classmethod
    def name(cls) -> str:
        return SOURCE

    def reader(self, schema: Any) -> DataSourceReader:
        return _Reader(
            files=json.loads(self.options["files"]),
            address=self.options["address"],
            storage_options=json.loads(self.options["storage_options"]),
            schema=to_arrow_schema(schema),
        )


class _Reader(DataSourceReader):  # type: ignore[misc]
    """Reads each file by a task of its own."""

    def __init__(
        self,
        files: list[str],
        address: str,
        storage_options: Mapping[str, str],
        schema: pa.Schema,
    ) -> None:
        self._files = files
        self._address = address
        self._storage_options = storage_options
        self._schema = schema

    def partitions(self) -> list[InputPartition]:
        return [InputPartition(path) for path in self._files]

    def read(self, partition: InputPartition | None) -> Iterator[pa.RecordBatch]:
        if partition is None:  # Spark's one partition where there are no files
            return
        filesystem = _filesystem(self._address, self._storage_options)
        file = ds.dataset(
            partition.value, self._schema, format="parquet", filesystem=filesystem
        )
        yield from file.to_batches(batch_size=BATCH_ROWS, batch_readahead=2)


def register(session: Any) -> None:
    """Have a Spark session know the data source, and send this module by value."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    session.dataSource.register(DeltaFiles)


def frame_of_files(
    session: Any,
    address: str,
    files: Iterable[str],
    schema: pa.Schema,
    storage_options: Mapping[str, str],
) -> Any:
    """Return the rows of some files of a Delta table as Spark's DataFrame; executors read them.

    Args:
        session: A session that `register` was called with.
        address: Of the table: `s3://…`, or a folder that every executor sees.
        files: Their paths below the address.
        schema: The columns to read.
        storage_options: deltalake's, such as retries, never credentials: Spark shows them.

    """
    reader = session.read.format(SOURCE).schema(from_arrow_schema(schema))
    options = {
        "address": address,
        "files": json.dumps([*files]),
        "storage_options": json.dumps(dict(storage_options)),
    }
    return reader.options(**options).load()


def write_frame(
    frame: Any, address: str, storage_options: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Write a DataFrame's rows as files of a Delta table; executors do it. Nothing is committed.

    Args:
        frame: Rows with the columns `event_timestamp` and `period`, an integer; the files lack the
            latter.
        address: See `frame_of_files`.
        storage_options: See `frame_of_files`.

    Returns:
        The fields of `core.storage.AddedFile` of each file. Files of a task that was lost and done
        again are not among them.

    """
    # Without the hint, each task writes a file of its own into each period.
    frame = frame.hint("rebalance", "period").sortWithinPartitions("period")

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return written_files(batches, address, storage_options)

    added_files = frame.mapInArrow(write, ADDED_FILE).toArrow()
    return list(added_files.to_pylist())


def write_rows(
    frame: Any,
    address: str,
    storage_options: Mapping[str, str],
    file_rows: int = BATCH_ROWS,
    encode: Callable[[pa.Table], pa.Table] = lambda rows: rows,
) -> list[dict[str, Any]]:
    """Write a DataFrame's rows as parquet files below an address; executors do it.

    Args:
        frame: Any rows.
        address: See `frame_of_files`.
        storage_options: See `frame_of_files`.
        file_rows: Most rows of a file.
        encode: Makes of rows what is written, as many rows.

    Returns:
        Of each file its `path` below the address and how many `rows` it has, in the order of rows.

    """

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        filesystem = _filesystem(address, storage_options)
        for batch in batches:
            for start in range(0, batch.num_rows, file_rows):
                rows = pa.Table.from_batches([batch.slice(start, file_rows)])
                path = f"{uuid4()}.parquet"
                with filesystem.open_output_stream(path) as stream:
                    pq.write_table(encode(rows), stream)
                yield pa.RecordBatch.from_pylist([{"path": path, "rows": len(rows)}])

    files = frame.mapInArrow(write, "path string, rows long").toArrow()
    return list(files.to_pylist())


def save_rows(
    rows: pa.Table, address: str, storage_options: Mapping[str, str]
) -> list[str]:
    """Write rows of this process as files for `frame_of_files`; return their paths."""
    filesystem = _filesystem(address, storage_options)
    paths = []
    for start in range(0, rows.num_rows, BATCH_ROWS):
        path = f"{uuid4()}.parquet"
        with filesystem.open_output_stream(path) as stream:
            pq.write_table(rows.slice(start, BATCH_ROWS), stream)
        paths.append(path)
    return paths


def read_rows(address: str, path: str, storage_options: Mapping[str, str]) -> pa.Table:
    """Read a file that `write_rows` wrote, in this process."""
    with _filesystem(address, storage_options).open_input_file(path) as file:
        return pq.read_table(file)


def for_each_file(
    session: Any,
    address: str,
    paths: Sequence[str],
    storage_options: Mapping[str, str],
    use: Callable[[pa.Table], str],
) -> list[str]:
    """Have executors read files that `write_rows` wrote; return what `use` returns for each."""

    def use_files(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for number in batch["id"].to_pylist():
                rows = read_rows(address, paths[number], storage_options)
                yield pa.RecordBatch.from_pydict({"text": [use(rows)]})

    task_count = min(len(paths), session.sparkContext.defaultParallelism)
    numbers = session.range(0, len(paths), numPartitions=task_count)
    texts = numbers.mapInArrow(use_files, "text string").toArrow()
    return list(texts["text"].to_pylist())


def written_files(
    batches: Iterable[pa.RecordBatch], address: str, storage_options: Mapping[str, str]
) -> Iterator[pa.RecordBatch]:
    """Write rows to a file for each period, and yield a row of `ADDED_FILE` for each file.

    Args:
        batches: Rows sorted by the column `period`.
        address: See `frame_of_files`.
        storage_options: See `frame_of_files`.

    """
    filesystem = _filesystem(address, storage_options)
    for period, parts in groupby(_parts(batches), key=itemgetter(0)):
        rows = (part_rows for _, part_rows in parts)
        added_file = _write_file(filesystem, period, rows)
        yield pa.RecordBatch.from_pylist([added_file])


def _parts(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Cut batches so that each part has rows of one period."""
    for batch in batches:
        for period in pc.unique(batch["period"]).to_pylist():
            rows = batch.filter(pc.equal(batch["period"], period))
            yield period, rows.drop_columns(["period"])


def _write_file(
    filesystem: PyFileSystem, period: int, parts: Iterable[pa.RecordBatch]
) -> dict[str, Any]:
    """Write the rows of one period as they come; return the fields of `ADDED_FILE`."""
    path = f"period={period}/{uuid4()}.parquet"
    row_counts = []
    spans = []

    def described_parts() -> Iterator[pa.RecordBatch]:
        for part in parts:
            row_counts.append(part.num_rows)
            spans.append(pc.min_max(part["event_timestamp"]).as_py())
            yield part

    size = _write_batches(filesystem, path, described_parts())
    return {
        "path": path,
        "size": size,
        "partition": period,
        "rows": sum(row_counts),
        "earliest": min(span["min"] for span in spans),
        "latest": max(span["max"] for span in spans),
    }


def _write_batches(
    filesystem: PyFileSystem, path: str, batches: Iterator[pa.RecordBatch]
) -> int:
    """Write batches, one at least, as they come to a file; return its size in bytes."""
    first_batch = next(batches)
    with filesystem.open_output_stream(path) as stream:
        with pq.ParquetWriter(stream, first_batch.schema) as writer:
            writer.write_batch(first_batch)
            for batch in batches:
                writer.write_batch(batch)
        return int(stream.tell())


def _filesystem(address: str, storage_options: Mapping[str, str]) -> PyFileSystem:
    return PyFileSystem(DeltaStorageHandler(address, dict(storage_options)))

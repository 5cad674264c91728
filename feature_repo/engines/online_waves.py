"""Online values written by Spark's executors, a wave of rows at a time.

First the executors encode all rows into files; the feature lock is free meanwhile. Then each wave is
a job of a second or two under the lock, in which they write the rows of some files to Redis.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import ibis.expr.types as ir
import pyarrow as pa
from pyspark import cloudpickle

from core.errors import FeaturesUnavailableError
from core.table_query import S3
from feature_repo import online_writer
from feature_repo.engines import executors
from feature_repo.engines.job_errors import one_line_errors

FILE_ROWS = 25_000
"""Most rows of a file: an executor's part of a wave."""
WAVE_ROWS = 100_000
"""Most rows of a wave: the event consumer waits for its end."""
PAUSE_SECONDS = 0.1
"""After a wave, so that the event consumer gets the lock, which it asks for every 5 ms."""


def write_waves(
    connection: Any,
    view: str,
    rows: ir.Table,
    encode: Callable[[pa.Table], pa.Table],
    write: Callable[[pa.Table], str],
    lock: Callable[[], AbstractContextManager[None]],
) -> None:
    """Have the executors write rows online.

    The files go in the end; those of a killed refresh go with the next one of the view.

    Args:
        connection: Of Spark, see `engine_connection`.
        view: Name of the view.
        rows: A row of each key.
        encode: `encode_rows` of `online_writer`, for some of the rows.
        write: `write_encoded_rows`, for what `encode` returns.
        lock: Gives the feature lock.

    Raises:
        FeaturesUnavailableError: An executor cannot write to Redis.

    """
    cloudpickle.register_pickle_by_value(online_writer)
    with connection.scratch_folder(f"online-{view}") as address, one_line_errors():
        folder = executors.filesystem(address, S3)
        frame = connection.frame(rows)
        files = executors.write_rows(frame, folder, FILE_ROWS, encode)
        for paths in _waves(files):
            with lock():
                replies = executors.for_each_file(
                    frame.sparkSession, folder, paths, use=write
                )
            problems = [reply for reply in replies if reply]
            if problems:
                raise FeaturesUnavailableError(
                    f"Redis, from a worker of Spark: {problems[0]}"
                )
            time.sleep(PAUSE_SECONDS)


def _waves(files: Iterable[dict[str, Any]]) -> Iterator[list[str]]:
    """Put files together to waves; yield the paths of each."""
    paths: list[str] = []
    row_count = 0
    for file in files:
        if row_count + file["rows"] > WAVE_ROWS:
            yield paths
            paths = []
            row_count = 0
        paths.append(file["path"])
        row_count += file["rows"]
    if paths:
        yield paths

"""Online values written by Spark's executors, a wave of rows at a time.

First the executors encode all rows into files; the feature lock is free meanwhile. Then each wave is
a job of a second or two under the lock, in which they write the rows of some files to Redis.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ibis.expr.types as ir
import pyarrow as pa
from pyspark import cloudpickle
from redis.exceptions import RedisError

from core.errors import FeaturesUnavailableError
from core.storage import S3
from feature_repo import online_writer
from feature_repo.engines import executors
from feature_repo.engines.job_errors import one_line_errors

WAVE_ROWS = 100_000
"""Most rows of a wave: the event consumer waits for its end."""
PAUSE_SECONDS = 0.1
"""Between two waves, so that the event consumer gets the lock, which it asks for every 5 ms."""
Encode = Callable[[pa.Table], pa.Table]
Write = Callable[[pa.Table], None]


@contextmanager
def online_waves(
    connection: Any, view: str, rows: ir.Table, encode: Encode, write: Write
) -> Iterator[Iterator[Callable[[], None]]]:
    """Have the executors encode the rows of a view; yield functions that write them.

    The files go in the end; those of a killed refresh go with the next one of the view.

    Args:
        connection: Of Spark, see `engine_connection`.
        view: Name of the view.
        rows: A row of each key.
        encode: Runs on the executors, as `write` does: makes of some rows what `write` takes.
        write: Writes encoded rows to Redis.

    Yields:
        A function for each wave. It raises FeaturesUnavailableError where an executor cannot write
        to Redis.

    """
    cloudpickle.register_pickle_by_value(online_writer)
    with connection.scratch_folder(f"online/{view}") as folder:
        frame = connection.frame(rows)
        with one_line_errors():
            pieces = executors.write_pieces(frame, folder, S3, encode)
        yield _waves(frame.sparkSession, folder, pieces, write)


def _waves(
    session: Any, folder: str, pieces: Iterable[dict[str, Any]], write: Write
) -> Iterator[Callable[[], None]]:
    """Put files together to waves."""
    paths: list[str] = []
    row_count = 0
    for piece in pieces:
        if row_count + piece["rows"] > WAVE_ROWS:
            yield partial(_write_wave, session, folder, paths, write)
            time.sleep(PAUSE_SECONDS)
            paths = []
            row_count = 0
        paths.append(piece["path"])
        row_count += piece["rows"]
    if paths:
        yield partial(_write_wave, session, folder, paths, write)


def _write_wave(session: Any, folder: str, paths: list[str], write: Write) -> None:
    """Have the executors write the rows of some files.

    Raises:
        FeaturesUnavailableError: An executor cannot write to Redis.

    """

    def problem(rows: pa.Table) -> str:
        try:
            write(rows)
        except RedisError as exc:
            return f"{exc}"
        return ""

    with one_line_errors():
        texts = executors.use_pieces(session, folder, paths, S3, problem)
    problems = [text for text in texts if text]
    if problems:
        raise FeaturesUnavailableError(f"Redis, from a worker of Spark: {problems[0]}")

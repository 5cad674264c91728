"""The log against a full disk, torn lines, other threads and the exchange of files."""

from __future__ import annotations

import resource
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from monitoring.collect import is_closed
from serving.metrics import LOG_FAILURES
from serving.prediction_log import FILE_SECONDS, AppendLog
from tests.serving.conftest import read_rows

if TYPE_CHECKING:
    from pathlib import Path


def rows_in(
    folder: Path, kind: str = "predictions"
) -> tuple[list[dict[str, Any]], int]:
    rows = []
    torn = 0
    for path in sorted(folder.glob(f"{kind}-*.jsonl")):
        rows_of_file, torn_of_file = read_rows(path)
        rows += rows_of_file
        torn += torn_of_file
    return rows, torn


@pytest.fixture
def log(tmp_path: Path) -> AppendLog:
    log = AppendLog(tmp_path / "log", "predictions")
    log.open()
    return log


def test_a_file_that_takes_no_more_bytes_costs_the_row_and_tears_no_other(
    log: AppendLog, tmp_path: Path
) -> None:
    """The kernel's own limit on the size of a file stands for the full disk."""
    failures = LOG_FAILURES.labels("predictions")._value
    failures_before = failures.get()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        assert log.write([{"n": 1}])
        resource.setrlimit(resource.RLIMIT_FSIZE, (12, limits[1]))
        assert not log.write([{"n": 2}])  # takes a part
        assert not log.write([{"n": 3}])  # takes nothing
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert log.problem
    assert failures.get() - failures_before == 2
    assert log.write([{"n": 4}])
    assert log.problem is None
    log.close()
    assert rows_in(tmp_path / "log") == ([{"n": 1}, {"n": 4}], 1)


def test_a_folder_that_cannot_be_written_is_a_failure_and_no_error(
    tmp_path: Path,
) -> None:
    (tmp_path / "log").write_text("a file stands where the folder should")
    log = AppendLog(tmp_path / "log", "predictions")
    log.open()
    assert not log.write([{"n": 1}])
    assert log.problem
    (tmp_path / "log").unlink()
    log.flush()
    assert log.write([{"n": 2}])
    log.close()


def test_a_file_that_has_rows_is_ended_by_its_age_and_only_the_open_one_is_locked(
    log: AppendLog, tmp_path: Path
) -> None:
    folder = tmp_path / "log"
    time.sleep(FILE_SECONDS)
    log.flush()
    (file,) = folder.iterdir()  # empty: it goes on
    assert log.write([{"n": 1}])
    assert not is_closed(file)
    log.flush()
    assert is_closed(file)
    assert log.write([{"n": 2}])
    assert read_rows(file) == ([{"n": 1}], 0)
    (newer,) = {*folder.iterdir()} - {file}
    assert not is_closed(newer)
    log.close()
    assert is_closed(newer)
    assert read_rows(newer) == ([{"n": 2}], 0)


def test_while_a_large_batch_is_written_other_rows_are_written_too(
    log: AppendLog, tmp_path: Path
) -> None:
    """The event loop writes rows while a thread writes a batch: it must not wait for the thread."""
    batch = [{"batch": n} for n in range(200_000)]
    writer = threading.Thread(target=log.write, args=[batch])
    writer.start()
    single_rows = []
    while writer.is_alive():
        row = {"n": len(single_rows)}
        assert log.write([row])
        single_rows.append(row)
    log.close()
    rows, torn = rows_in(tmp_path / "log")
    assert torn == 0
    assert [row for row in rows if "batch" in row] == batch
    assert [row for row in rows if "n" in row] == single_rows
    between = rows[rows.index(batch[0]) : rows.index(batch[-1])]
    assert any("n" in row for row in between)


def test_rows_of_many_threads_are_on_file_once_while_files_are_exchanged(
    tmp_path: Path,
) -> None:
    """A row never goes into a file that is closed, or into another log's file of its number."""
    logs = [AppendLog(tmp_path, kind) for kind in ("predictions", "feedback")]

    def row(log: AppendLog, writer: int, n: int) -> dict[str, Any]:
        return {"row": f"{log.kind} {writer} {n:03}"}

    def write(log: AppendLog, writer: int) -> None:
        for n in range(500):
            assert log.write([row(log, writer, n)])

    for log in logs:
        log.open()
    with ThreadPoolExecutor() as threads:
        work = [threads.submit(write, log, n) for log in logs for n in range(3)]
        while not all(future.done() for future in work):
            for log in logs:
                log.open()
    for future in work:
        future.result()
    for log in logs:
        log.close()
        rows, torn = rows_in(tmp_path, log.kind)
        assert torn == 0
        expected = [row(log, writer, n) for writer in range(3) for n in range(500)]
        assert sorted(rows, key=lambda row: row["row"]) == expected
    assert all(is_closed(path) for path in tmp_path.iterdir())

"""The log against a full disk, torn lines and rotation."""

from __future__ import annotations

import resource
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from monitoring.collect import is_closed
from serving.metrics import LOG_FAILURES
from serving.prediction_log import AppendLog
from tests.serving.conftest import read_rows

if TYPE_CHECKING:
    from pathlib import Path

NOW = datetime(2026, 11, 20, tzinfo=UTC)


def rows_in(
    folder: Path, kind: str = "predictions"
) -> tuple[list[dict[str, Any]], int]:
    found = [read_rows(path) for path in sorted(folder.glob(f"{kind}-*.jsonl"))]
    return [row for rows, _ in found for row in rows], sum(torn for _, torn in found)


def test_a_file_that_takes_no_more_bytes_costs_the_row_and_tears_no_other(
    tmp_path: Path,
) -> None:
    """The kernel's own limit on the size of a file stands for the full disk."""
    failures = LOG_FAILURES.labels("predictions")._value
    before_it = failures.get()
    log = AppendLog(tmp_path, "predictions")
    log.open()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        assert log.write([{"n": 1}])
        resource.setrlimit(resource.RLIMIT_FSIZE, (12, before[1]))
        assert not log.write([{"n": 2}])  # takes a part
        assert not log.write([{"n": 3}])  # takes nothing
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert log.problem
    assert failures.get() - before_it == 2
    assert log.write([{"n": 4}])
    assert log.problem is None
    log.close()
    assert rows_in(tmp_path) == ([{"n": 1}, {"n": 4}], 1)


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


def test_files_are_closed_at_their_size_and_only_the_open_one_is_locked(
    tmp_path: Path,
) -> None:
    log = AppendLog(tmp_path, "predictions", max_bytes=100)
    log.open()
    for n in range(30):
        assert log.write([{"n": n}])
    files = sorted(tmp_path.iterdir())
    assert len(files) > 2
    assert [is_closed(path) for path in files] == [False] * len(
        files
    )  # to disk is for `flush`
    log.flush()
    assert [is_closed(path) for path in files] == [True] * len(files[:-1]) + [False]
    assert log.write([{"n": 30}])
    log.open()
    log.close()
    assert all(is_closed(path) for path in tmp_path.iterdir())
    assert [row["n"] for row in rows_in(tmp_path)[0]] == list(range(31))

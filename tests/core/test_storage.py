"""A row is appended once, and what decides that is read no wider than needed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from core.errors import DataError
from core.locks import one_writer
from core.storage import AddedFile, Table
from tests.conftest import new_settings

SCHEMA_OF_DAYS = pa.schema({"day": pa.string(), "n": pa.int64()})

SCHEMA = pa.schema({"id": pa.string(), "received": pa.timestamp("us", tz="UTC")})
BEGAN, DAY = datetime(2026, 11, 20, tzinfo=UTC), timedelta(days=1)
TIME = pa.timestamp("us", tz="UTC")
MILLI = timedelta(milliseconds=1)


def rows(*at):
    return pa.table([[f"{each}" for each in at], list(at)], SCHEMA)


def test_a_row_again_is_known_by_its_time_to_the_microsecond(tmp_path):
    table = Table(new_settings(tmp_path), "table", SCHEMA)
    for micro in (0, 1, 499, 500, 501, 999, 1_001, 999_999):
        row = rows(BEGAN + timedelta(microseconds=micro))
        assert [table.insert(row, "id", beside="received") for _ in range(2)] == [1, 0]
    assert table.insert(rows(), "id", beside="received") == 0


def test_what_is_of_another_time_is_not_read(tmp_path):
    table = Table(new_settings(tmp_path), "table", SCHEMA)
    for day in range(3):
        table.insert(rows(BEGAN + day * DAY), "id", beside="received")
    for file in map(
        Path, table.files(within=f"received < '{(BEGAN + DAY).isoformat()}'")
    ):
        file.unlink()
    assert (
        table.insert(rows(BEGAN + DAY, BEGAN + 3 * DAY), "id", beside="received") == 1
    )


def test_files_are_found_whatever_the_folder_is_called(tmp_path):
    table = Table(
        new_settings(tmp_path / "my home, 100 % größer"), "table", SCHEMA_OF_DAYS
    )
    for day in ("a b", "1 %/2"):
        table.replace(pa.table({"day": [day], "n": [1]}, SCHEMA_OF_DAYS), ["day"])
    files = table.files(within="n = 1")
    assert len(files) == 2
    assert all(Path(file).is_absolute() and Path(file).is_file() for file in files)
    assert table.files(within="n = 2") == []


def written(folder, period, *times):
    """Write a file of a period, as an engine does."""
    path = folder / f"period={period}" / f"{uuid4()}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"event_timestamp": pa.array(times, TIME)}), path)
    return path


def written_file(table, time, period):
    """Write a file into the folder of a table, as a commit wants it described."""
    path = written(Path(str(table.path)), period, time)
    name = path.relative_to(str(table.path)).as_posix()
    return AddedFile(
        name, path.stat().st_size, period, rows=1, earliest=time, latest=time
    )


def test_files_of_a_period_are_replaced_in_one_commit_that_says_the_span_of_their_times(
    tmp_path,
):
    table = Table(new_settings(tmp_path), "view", pa.schema({"event_timestamp": TIME}))
    columns = pa.schema({"event_timestamp": TIME, "period": pa.int64()})
    micro = timedelta(microseconds=1)
    for period in (1, 2):
        written(
            tmp_path / "rows",
            period,
            BEGAN + period * DAY,
            BEGAN + period * DAY + micro,
        )
    files = table.take_in(tmp_path / "rows")
    table.commit(files, columns, "period", within=None, notes={"raw": 7})
    first_version = table.version
    assert table.read().num_rows == 4
    assert (
        BEGAN + 2 * DAY + micro
        <= table.newest("event_timestamp")
        <= BEGAN + 2 * DAY + MILLI
    )

    file = written_file(table, BEGAN + 3 * DAY, period=2)
    assert (
        table.read().num_rows == 4
    )  # a file that no commit names is no part of the table
    table.commit([file], columns, "period", within="period >= 2", notes={"raw": 8})
    assert table.version == first_version + 1
    times = table.read()["event_timestamp"].to_pylist()
    assert sorted(times) == [BEGAN + DAY, BEGAN + DAY + micro, BEGAN + 3 * DAY]
    assert table.noted(["raw"]) == {"raw": 8}
    near = pc.field("event_timestamp") >= BEGAN + 3 * DAY
    for old_file in table.files(within="period = 1"):
        Path(old_file).unlink()
    assert table.read(where=near).num_rows == 1  # files of other times are not opened


def test_a_purge_waits_for_who_writes_files_that_no_commit_names_yet(tmp_path):
    settings = new_settings(tmp_path)
    table = Table(settings, "view", pa.schema({"event_timestamp": TIME}))
    columns = pa.schema({"event_timestamp": TIME, "period": pa.int64()})
    table.commit([], columns, "period", within=None, notes={})
    with ThreadPoolExecutor() as threads:
        with table.writing():
            file = written_file(table, BEGAN, period=1)
            purge = threads.submit(Table(settings, "view", table.schema).purge)
            with pytest.raises(TimeoutError):
                purge.result(timeout=1)
            table.commit([file], columns, "period", within=None, notes={})
        purge.result()
    assert table.read()["event_timestamp"].to_pylist() == [BEGAN]


def test_where_no_file_can_be_there_is_no_lock_and_one_line_says_so(tmp_path):
    (tmp_path / "data").write_text("no folder")
    with pytest.raises(DataError, match=r"x\.lock: no lock: "):
        one_writer(new_settings(tmp_path), "x").__enter__()

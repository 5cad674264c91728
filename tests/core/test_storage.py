"""A row is appended once, and what decides that is read no wider than needed."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.storage import AddedFile, Table
from tests.conftest import new_settings

TIME = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema({"id": pa.string(), "received": TIME})
SCHEMA_OF_DAYS = pa.schema({"day": pa.string(), "n": pa.int64()})
VIEW_SCHEMA = pa.schema({"event_timestamp": TIME, "period": pa.int64()})
BEGAN = datetime(2026, 11, 20, tzinfo=UTC)
DAY = timedelta(days=1)
MICROSECOND = timedelta(microseconds=1)


def rows(*times):
    return pa.table([[f"{time}" for time in times], list(times)], SCHEMA)


def test_a_repeated_row_is_found_by_its_time_without_files_of_other_times(
    tmp_path,
):
    table = Table(new_settings(tmp_path), "table", SCHEMA)
    times = [BEGAN + micro * MICROSECOND for micro in (0, 1, 500, 999, 1_001, 999_999)]
    for time in (*times, BEGAN + DAY):
        counts = [table.insert(rows(time), "id", beside="received") for _ in range(2)]
        assert counts == [1, 0]
    assert table.insert(rows(), "id", beside="received") == 0
    for file in table.files(within=f"received < '{(BEGAN + DAY).isoformat()}'"):
        Path(file).unlink()
    new_rows = rows(BEGAN + DAY, BEGAN + 3 * DAY)
    assert table.insert(new_rows, "id", beside="received") == 1


def test_files_are_found_in_folders_with_any_name(tmp_path):
    settings = new_settings(tmp_path / "my home, 100 % größer")
    table = Table(settings, "table", SCHEMA_OF_DAYS)
    for day in ("a b", "1 %/2"):
        table.replace(pa.table({"day": [day], "n": [1]}, SCHEMA_OF_DAYS), ["day"])
    files = table.files(within="n = 1")
    assert len(files) == 2
    assert all(Path(file).is_absolute() and Path(file).is_file() for file in files)
    assert table.files(within="n = 2") == []


def add_file(table, time, period):
    """Write a file of a period, as an engine does; return it as a commit describes it."""
    name = f"period={period}/{uuid4()}.parquet"
    path = Path(str(table.path / name))
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"event_timestamp": pa.array([time], TIME)}), path)
    size = path.stat().st_size
    return AddedFile(name, size, period, rows=1, earliest=time, latest=time)


def test_a_purge_waits_for_writers_of_uncommitted_files(tmp_path):
    settings = new_settings(tmp_path)
    table = Table(settings, "view", pa.schema({"event_timestamp": TIME}))
    table.commit([], VIEW_SCHEMA, "period", within=None, notes={})
    with ThreadPoolExecutor() as threads:
        with table.writing():
            file = add_file(table, BEGAN, period=1)
            purge = threads.submit(Table(settings, "view", table.schema).purge)
            with pytest.raises(TimeoutError):
                purge.result(timeout=0.5)
            table.commit([file], VIEW_SCHEMA, "period", within=None, notes={})
        purge.result()
    assert table.read()["event_timestamp"].to_pylist() == [BEGAN]

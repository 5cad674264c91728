"""No row is lost or repeated, what decides that is read no wider than needed, and tables stay small."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from core.errors import DataError
from core.project import PROJECT
from core.tables.commits import added_file
from core.tables.query import quoted
from core.tables.table import RETENTION, Table
from tests.conftest import new_settings
from tests.support.feature_engine.stored_rows import BEGAN, SCHEMA, TIME, rows
from tests.support.stores.postgres import postgres_server
from tests.support.stores.s3 import s3_server
from tests.support.tools.names import NAMES

VIEW_SCHEMA = pa.schema({"event_timestamp": TIME})
DAY = 86_400_000_000
"""In microseconds."""
HARDEST = ('say "amt"', "tick`x", "it's", "ev.id")
COMMITS = 20
WRITER = """
import sys
from core.settings import load_settings
from core.tables.table import Table
from tests.support.feature_engine.stored_rows import SCHEMA, rows
first = int(sys.argv[1])
for n in range(first, first + 12):
    Table(load_settings(), "raw/t", SCHEMA).insert(rows(0, n), "id", "received")
"""


def test_a_repeated_row_is_found_by_its_time_without_files_of_other_times(tmp_path):
    table = Table(new_settings(tmp_path), "table", SCHEMA)
    for number in (0, 1, 500, 999, 1_001, 999_999, DAY):
        counts = [table.insert(rows(number), "id", "received") for _ in range(2)]
        assert counts == [1, 0]
    next_day = BEGAN + timedelta(days=1)
    for file in table.files(within=f"received < '{next_day.isoformat()}'"):
        Path(file).unlink()
    assert table.insert(rows(DAY, 3 * DAY), "id", "received") == 1


def test_files_are_found_in_folders_with_any_name(tmp_path):
    settings = new_settings(tmp_path / "my home, 100 % größer")
    schema = pa.schema({"day": pa.string(), "n": pa.int64()})
    table = Table(settings, "table", schema)
    for day in ("a b", "1 %/2"):
        table.replace(pa.table({"day": [day], "n": [1]}, schema), ["day"])
    files = table.files(within="n = 1")
    assert len(files) == 2
    assert all(Path(file).is_absolute() and Path(file).is_file() for file in files)
    assert table.files(within="n = 2") == []


def test_rows_are_merged_erased_and_cleaned_up_by_columns_of_any_name(tmp_path):
    keys = [f"{name}k" for name in NAMES]
    times = [f"{name}t" for name in HARDEST]
    columns = dict.fromkeys(NAMES, pa.string()) | dict.fromkeys(keys, pa.int64())
    columns |= dict.fromkeys(times, TIME)
    table = Table(new_settings(tmp_path), "table", pa.schema(columns))

    def merge(number, text, days=0):
        now = BEGAN + timedelta(days=days)
        row = dict.fromkeys(NAMES, text) | dict.fromkeys(keys, number)
        rows = pa.Table.from_pylist([row | dict.fromkeys(times, now)], table.schema)
        return table.merge(rows, keys, NAMES)

    new = {"inserted": 1, "replaced": 0}
    corrected = {"inserted": 0, "replaced": 1}
    assert merge(1, "a") == merge(2, "it's") == new
    for days in range(1, len(times) + 1):
        assert merge(1, f"{days}", days) == corrected
        assert merge(1, f"{days}", days) == {"inserted": 0, "replaced": 0}
    for name, time in zip(HARDEST, times, strict=True):
        assert table.newest(time) == BEGAN + timedelta(days=len(times))
        is_second = f"{quoted(f'{name}k')} = 2"
        assert table.matching(is_second, name) == ["it's"]
        table.erase(is_second, name)
        assert table.matching(is_second, name) == [None]
        assert table.clean_up(time, BEGAN)[0] == 0
    assert table.clean_up(times[0], BEGAN + timedelta(hours=1))[0] == 1
    rows = table.read(columns=NAMES).to_pylist()
    assert rows == [dict.fromkeys(NAMES, f"{len(times)}")]
    table.remove(table.read(), keys)
    assert table.read().num_rows == 0


@pytest.mark.parametrize("number", [10, 33, 400])
def test_the_newest_time_is_known_behind_any_number_of_columns(tmp_path, number):
    columns = {f"n{n}": pa.int64() for n in range(number)}
    schema = pa.schema(columns | {"id": pa.int64(), "received": TIME})
    table = Table(new_settings(tmp_path), "table", schema)
    assert table.newest("received") is None
    for row, time in enumerate([None, BEGAN, BEGAN - timedelta(days=1), None]):
        new_rows = pa.Table.from_pylist([{"id": row, "received": time}], schema)
        table.merge(new_rows, ["id"], ["n1"])
        assert table.newest("received") == (BEGAN if row else None)
    table.compact()
    assert table.newest("received") == BEGAN
    table.erase("id < 10")
    assert table.newest("received") is None


def add_file(table):
    """Write a file of a period, as an engine does; return it as a commit describes it."""
    name = f"period=1/{uuid4()}.parquet"
    path = Path(str(table.path / name))
    path.parent.mkdir(parents=True)
    pq.write_table(pa.table({"event_timestamp": pa.array([BEGAN], TIME)}), path)
    size = path.stat().st_size
    return added_file(name, size, 1, rows=1, earliest=BEGAN, latest=BEGAN)


def test_a_purge_waits_for_writers_of_uncommitted_files(tmp_path):
    settings = new_settings(tmp_path)
    table = Table(settings, "view", pa.schema({"event_timestamp": TIME}))
    table.commit([], VIEW_SCHEMA, within=None, notes={})
    with ThreadPoolExecutor() as threads:
        with table.writing():
            file = add_file(table)
            purge = threads.submit(Table(settings, "view", table.schema).purge)
            with pytest.raises(TimeoutError):
                purge.result(timeout=0.5)
            table.commit([file], VIEW_SCHEMA, within=None, notes={})
        purge.result()
    assert table.read()["event_timestamp"].to_pylist() == [BEGAN]


def keep_no_version(table):
    no_time = dict.fromkeys(RETENTION, "interval 0 days")
    DeltaTable(table.path).alter.set_table_properties(no_time)


@pytest.fixture
def worn(tmp_path):
    """A table whose commits each corrected a row."""
    table = Table(new_settings(tmp_path), "worn", SCHEMA)
    for number in range(COMMITS):
        table.merge(rows(number, 100, value=number), ["id"], ["value"])
    return table


def test_versions_of_the_last_week_stay_readable_and_files_of_older_ones_are_deleted(
    worn,
):
    versions = [worn.read(number).sort_by("id") for number in range(COMMITS)]
    worn.clean_up(None, BEGAN)
    for number, version in enumerate(versions):
        assert worn.read(number).sort_by("id").equals(version)
    keep_no_version(worn)
    _, deleted_count = worn.clean_up(None, BEGAN)
    assert deleted_count == COMMITS - 1  # each commit wrote the one file anew
    assert len([*worn.path.glob("*.parquet")]) == 1
    assert len([*worn.path.glob("_delta_log/*")]) <= 4
    assert worn.read().sort_by("id").equals(versions[-1])
    message = "version 5 cannot be read, vacuumed or never here"
    with pytest.raises(DataError, match=message):
        worn.read(5)


def test_a_clean_up_during_writes_loses_no_row(worn):
    keep_no_version(worn)
    numbers = range(2000, 2006)

    def write():
        for number in numbers:
            worn.insert(rows(number), "id", "received")

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        worn.clean_up(None, BEGAN)
        writer.join(0.05)
    expected = {f"r{number}" for number in (*range(COMMITS), 100, *numbers)}
    assert {*worn.read()["id"].to_pylist()} == expected


def start_writer(settings, first):
    variables = {
        "GYRE_HOME": str(settings.home),
        "GYRE_DATA_URL": settings.data_url,
        "GYRE_DATABASE_URL": settings.database_url,
    }
    command = [sys.executable, "-c", WRITER, str(first)]
    return subprocess.Popen(command, cwd=PROJECT, env=os.environ | variables)


@pytest.mark.nightly
def test_two_hosts_that_write_to_s3_at_once_neither_lose_nor_repeat_a_row(
    tmp_path, monkeypatch
):
    with (
        s3_server(tmp_path, monkeypatch),
        postgres_server(tmp_path / "postgres.log") as postgres,
    ):
        places = {"data_url": "s3://gyre/a", "database_url": postgres.address}
        first = new_settings(tmp_path / "first", **places)
        second = new_settings(tmp_path / "second", **places)
        writers = [start_writer(first, 100), start_writer(second, 200)]
        assert [writer.wait(600) for writer in writers] == [0, 0]
        ids = Table(first, "raw/t", SCHEMA).read()["id"].to_pylist()
        assert (
            sorted(ids) == rows(0, *range(100, 112), *range(200, 212))["id"].to_pylist()
        )

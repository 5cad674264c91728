"""A table that is written to all the time stays small and loses only expired rows."""

import threading
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from core.errors import DataError
from core.storage import RETENTION, Table
from tests.conftest import new_settings

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
TIME = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema({"id": pa.string(), "value": pa.int64(), "received": TIME})
COMMITS = 20


def rows(numbers, value=0):
    count = len(numbers)
    columns = [[f"r{n}" for n in numbers], [value] * count, [BEGAN] * count]
    return pa.table(columns, SCHEMA)


def keep_no_version(table):
    no_time = dict.fromkeys(RETENTION, "interval 0 days")
    DeltaTable(table.path).alter.set_table_properties(no_time)


@pytest.fixture
def worn(tmp_path):
    """A table whose commits each corrected a row."""
    table = Table(new_settings(tmp_path), "worn", SCHEMA)
    for number in range(COMMITS):
        table.merge(rows([number, 100], value=number), ["id"], ["value"])
    return table


def test_versions_of_the_last_week_stay_readable_and_files_of_older_ones_are_deleted(
    worn,
):
    versions = {number: worn.read(number).sort_by("id") for number in range(COMMITS)}
    worn.clean_up(None, BEGAN)
    for number, version in versions.items():
        assert worn.read(number).sort_by("id").equals(version)
    keep_no_version(worn)
    _, deleted_count = worn.clean_up(None, BEGAN)
    assert deleted_count == COMMITS - 1  # each commit wrote the one file anew
    assert len([*worn.path.glob("*.parquet")]) == 1
    assert len([*worn.path.glob("_delta_log/*")]) <= 4
    assert worn.read().sort_by("id").equals(versions[COMMITS - 1])
    with pytest.raises(
        DataError, match="version 5 cannot be read, vacuumed or never here"
    ):
        worn.read(5)


def test_a_clean_up_during_writes_loses_no_row(worn):
    keep_no_version(worn)
    numbers = range(2000, 2006)

    def write():
        for number in numbers:
            worn.insert(rows([number]), "id")

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        worn.clean_up(None, BEGAN)
        writer.join(0.05)
    expected = {f"r{number}" for number in (*range(COMMITS), 100, *numbers)}
    assert {*worn.read()["id"].to_pylist()} == expected

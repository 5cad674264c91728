"""A table that is written to all the time stays small and loses only expired rows."""

from __future__ import annotations

import re
import shutil
import threading
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from core.errors import DataError
from core.storage import RETENTION, Table
from tests.conftest import new_settings

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
TIME = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema({"id": pa.string(), "value": pa.int64(), "received": TIME})
COMMITS = 20


def rows(numbers, at=BEGAN, value=0):
    columns = [[f"r{n}" for n in numbers], [value] * len(numbers), [at] * len(numbers)]
    return pa.table(columns, SCHEMA)


def ids(table):
    return set(table.read()["id"].to_pylist())


def file_counts(table):
    """How many files of data and of the log there are."""
    log_files = [*(table.path / "_delta_log").iterdir()]
    return len([*table.path.glob("*.parquet")]), len(log_files)


def keep_no_version(table):
    no_time = dict.fromkeys(RETENTION, "interval 0 days")
    DeltaTable(table.path).alter.set_table_properties(no_time)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A table whose commits each corrected a row."""
    table = Table(new_settings(tmp_path_factory.mktemp("written")), "worn", SCHEMA)
    for number in range(COMMITS):
        table.merge(rows([number, 100], value=number), ["id"], ["value"])
    return table


@pytest.fixture
def worn(written, tmp_path):
    """The same table, of the test's own."""
    table = Table(new_settings(tmp_path), "worn", SCHEMA)
    shutil.copytree(written.path, table.path)
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
    data_count, log_count = file_counts(worn)
    assert data_count == 1
    assert log_count <= 4
    assert worn.read().sort_by("id").equals(versions[COMMITS - 1])
    with pytest.raises(
        DataError, match="version 5 cannot be read, vacuumed or never here"
    ):
        worn.read(5)


def test_only_expired_rows_are_deleted_and_the_others_are_found_by_a_text(tmp_path):
    table = Table(new_settings(tmp_path), "predictions", SCHEMA)
    for day in range(0, 10, 2):
        table.insert(rows([day, day + 1], BEGAN + day * DAY), "id", beside="received")
    assert table.clean_up("received", BEGAN + 4 * DAY)[0] == 4
    assert ids(table) == {f"r{number}" for number in range(4, 10)}
    assert table.clean_up("received", BEGAN + 4 * DAY)[0] == 0
    assert table.read(columns=["value"], where=pc.field("id") == "r5").num_rows == 1
    two_rows = pc.field("id").isin(["r1", "r7"])
    assert table.read(where=two_rows)["id"].to_pylist() == ["r7"]


def test_a_clean_up_meanwhile_loses_no_row_of_a_writer(worn):
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
    assert ids(worn) == {f"r{number}" for number in (*range(COMMITS), 100, *numbers)}


def test_what_is_purged_is_in_no_file_and_later_changes_are_known(worn):
    condition = "id = 'r7'"
    assert worn.matching(condition, "value") == [7]
    worn.erase(condition)
    version = worn.version
    worn.purge()
    assert worn.changed_files(version, worn.version) == ([], [])
    texts = []
    for path in worn.path.rglob("*"):
        if path.is_file():
            texts.append(path.read_text("latin-1"))
        if path.suffix == ".parquet":
            texts.append(str(pq.read_table(path).to_pylist()))
    assert not [text for text in texts if re.search(r"\br7\b", text)]
    assert worn.matching(condition, "value") == []
    assert worn.read().num_rows == COMMITS
    with pytest.raises(DataError, match="vacuumed or never here"):
        worn.read(3)
    worn.merge(rows([61]), ["id"], ["value"])
    new_files, old_files = worn.changed_files(version, worn.version)
    assert (len(new_files), old_files) == (1, [])

"""A table that is written to for a year stays small, and what lineage names stays readable."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from stack.errors import DataError
from stack.maintenance import Retention, keep_house, tables
from stack.settings import PROJECT
from stack.storage import KEEP_LOG, Table

BEGAN, DAY = datetime(2100, 1, 1, tzinfo=UTC), timedelta(days=1)
TIME = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema({"id": pa.string(), "value": pa.int64(), "received": TIME})
A_DAY, KEPT_DAYS = 4, 90


def rows(numbers, at, value=0):
    columns = [[f"r{n}" for n in numbers], [value] * len(numbers), [at] * len(numbers)]
    return pa.table(columns, SCHEMA)


def written(table, at):
    """Date what was committed since as if it had been at `at`."""
    for file in (table.path / "_delta_log").glob("*.json"):
        if file.stat().st_mtime < BEGAN.timestamp():
            os.utime(file, (at.timestamp(), at.timestamp()))


def house(table, at, named=(), retention=None, *, dry_run=False):
    freed = keep_house(table.path, at, named, retention, what="it", dry_run=dry_run)
    written(table, at)
    return freed


def files(table):
    """How many files of data and of the log there are."""
    log = len([*(table.path / "_delta_log").iterdir()])
    return len([*table.path.glob("*.parquet")]), log


def content(table, version=None):
    return table.read(version).sort_by("id")


def test_a_year_of_appends_stays_small_and_loses_no_row_but_those_past_their_time(tmp_path):
    table, sizes = Table(tmp_path / "predictions", SCHEMA), []
    for day in range(365):
        for run in range(A_DAY):
            at = BEGAN + day * DAY + run * timedelta(hours=6)
            new = rows([day * A_DAY + run], at)
            write_deltalake(table.path, new, mode="append", post_commithook_properties=KEEP_LOG)
            written(table, at)
        if day % 7 == 6:
            end = BEGAN + (day + 1) * DAY
            retention = Retention("received", end - KEPT_DAYS * DAY)
            house(table, end, retention=retention)
            sizes.append(files(table))
    assert table.version > 365 * A_DAY
    # The commits of a week, and what the week's housekeeping itself wrote.
    assert max(data for data, _ in sizes) <= 7 * A_DAY + 5
    assert max(log for _, log in sizes) <= 7 * A_DAY + 15
    assert max(sizes[-10:]) <= max(sizes[20:30])
    oldest = ((364 // 7) * 7 - KEPT_DAYS) * A_DAY
    assert set(table.read()["id"].to_pylist()) == {f"r{n}" for n in range(oldest, 365 * A_DAY)}


def test_a_year_of_merges_keeps_every_version_that_lineage_names_and_no_other(tmp_path):
    table, named, sizes = Table(tmp_path / "orders", SCHEMA), {}, []
    for day in range(365):
        at = BEGAN + day * DAY
        # One new, and one of a month ago corrected.
        changed = rows([day, max(0, day - 30)], at, day).slice(0, 2 if day else 1)
        table.merge(changed, ["id"], ["value"])
        written(table, at)
        if day % 30 == 3:
            named[table.version] = content(table)
        if day % 7 == 6:
            house(table, at, named)
            sizes.append(files(table))
            for version, then in named.items():
                assert content(table, version).equals(then)
    assert len(named) == 13
    assert max(data for data, _ in sizes) <= 2 * 8 + 3 * len(named)
    assert max(log for _, log in sizes) <= 8 + 15 + 2 * len(named)
    assert table.read().num_rows == 365
    assert len([v for v in range(300) if readable(table, v)]) == len([v for v in named if v < 300])


def readable(table, version):
    try:
        table.read(version)
    except DataError:
        return False
    return True


@pytest.fixture
def worn(tmp_path):
    """A table of sixty commits, three of them named."""
    table = Table(tmp_path / "worn", SCHEMA)
    for n in range(60):
        table.merge(rows([n, 100], BEGAN, n), ["id"], ["value"])
    return table, {version: content(table, version) for version in (0, 11, 37)}


def test_a_dry_run_changes_nothing_and_says_what_would_go(worn):
    table, named = worn
    before = sorted(table.path.rglob("*"))
    retention = Retention("received", BEGAN + DAY)
    said = keep_house(table.path, BEGAN + DAY, named, retention, what="it", dry_run=True)
    assert said.rows == 61
    assert (said.files > 50, said.bytes > 10_000) == (True, True)
    assert sorted(table.path.rglob("*")) == before
    done = keep_house(table.path, BEGAN + DAY, named, None, what="it", dry_run=False)
    assert (done.rows, done.files >= said.files) == (0, True)
    again = keep_house(table.path, BEGAN + DAY, named, None, what="it", dry_run=False)
    assert again.files <= 4  # the log of what it did itself


def test_killed_anywhere_it_goes_on_the_next_time(worn, tmp_path):
    table, named = worn
    newest, at = content(table), BEGAN + DAY
    code = (
        "import sys; from datetime import datetime; from pathlib import Path;"
        "from stack.maintenance import keep_house; print('go', flush=True);"
        "keep_house(Path(sys.argv[1]), datetime.fromisoformat(sys.argv[2]), {0, 11, 37}, None,"
        " what='it', dry_run=False); print('done')"
    )
    ended = set()
    for nth in range(8):
        copy = Table(tmp_path / f"copy{nth}", SCHEMA)
        shutil.copytree(table.path, copy.path)
        command = [sys.executable, "-c", code, str(copy.path), at.isoformat()]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=PROJECT) as child:
            assert child.stdout.readline() == b"go\n"
            time.sleep(0.015 * nth)
            child.kill()
            ended.add(child.stdout.read())
        copy.insert(rows([1000], BEGAN), "id")  # whoever writes next finds a table
        house(copy, at, named)
        assert content(copy).num_rows == newest.num_rows + 1
        for version, then in named.items():
            assert content(copy, version).equals(then)
        assert files(copy)[0] <= 2 * len(named) + 2
    assert b"" in ended


def test_it_stands_beside_writers_and_loses_none_of_their_rows(worn):
    table, named = worn
    stop, wrote = threading.Event(), []

    def write():
        while not stop.is_set():
            wrote.append(f"r{2000 + len(wrote)}")
            table.insert(rows([1999 + len(wrote)], BEGAN), "id")

    writer = threading.Thread(target=write)
    writer.start()
    while len(wrote) < 6:
        house(table, BEGAN + DAY, named)
        time.sleep(0.05)  # for the lock, who waits looks twenty times a second
    stop.set()
    writer.join()
    found = set(table.read()["id"].to_pylist())
    assert found == {f"r{n}" for n in (*range(60), 100)} | set(wrote)


def test_every_table_is_found_whatever_its_folder(tmp_path):
    for name in ("raw/orders", "predictions"):
        Table(tmp_path / name, SCHEMA).insert(rows([1], BEGAN), "id")
    assert tables(tmp_path) == [tmp_path / "predictions", tmp_path / "raw" / "orders"]
    assert tables(tmp_path / "none") == []

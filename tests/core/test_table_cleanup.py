"""A table that is written to all the time stays small and loses only rows past their time."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import threading
import time
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from core.errors import DataError
from core.settings import PROJECT
from core.storage import RETENTION, Table
from tests.conftest import new_settings
from tests.preloaded import commands_folder

BEGAN, DAY = datetime(2026, 1, 1, tzinfo=UTC), timedelta(days=1)
TIME = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema({"id": pa.string(), "value": pa.int64(), "received": TIME})


def rows(numbers, at=BEGAN, value=0):
    columns = [[f"r{n}" for n in numbers], [value] * len(numbers), [at] * len(numbers)]
    return pa.table(columns, SCHEMA)


def files(table):
    """How many files of data and of the log there are."""
    log = len([*(table.path / "_delta_log").iterdir()])
    return len([*table.path.glob("*.parquet")]), log


def no_version_is_kept(table):
    DeltaTable(table.path).alter.set_table_properties(
        dict.fromkeys(RETENTION, "interval 0 days")
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A table of sixty commits that corrected a row each."""
    table = Table(new_settings(tmp_path_factory.mktemp("written")), "worn", SCHEMA)
    for n in range(60):
        table.merge(rows([n, 100], value=n), ["id"], ["value"])
    return table


@pytest.fixture
def worn(written, tmp_path):
    """The same table, of the test's own."""
    table = Table(new_settings(tmp_path), "worn", SCHEMA)
    shutil.copytree(written.path, table.path)
    return table


def test_every_version_of_the_last_week_stays_readable(worn):
    versions = {n: worn.read(n).sort_by("id") for n in (*range(0, 60, 7), 59)}
    worn.clean_up(None, BEGAN)
    for n, version in versions.items():
        assert worn.read(n).sort_by("id").equals(version)


def test_files_and_log_of_older_versions_go_and_the_rows_stay(worn):
    newest = worn.read().sort_by("id")
    no_version_is_kept(worn)
    _, gone = worn.clean_up(None, BEGAN)
    assert gone == 59  # each commit wrote the one file anew
    data, log = files(worn)
    assert (data, log <= 4) == (1, True)
    assert worn.read().sort_by("id").equals(newest)
    with pytest.raises(
        DataError, match="version 5 cannot be read, vacuumed or never here"
    ):
        worn.read(5)


def test_rows_past_their_time_are_deleted_alone(tmp_path):
    table = Table(new_settings(tmp_path), "predictions", SCHEMA)
    for day in range(10):
        table.insert(rows([day], BEGAN + day * DAY), "id", beside="received")
    past = "received", BEGAN + 4 * DAY
    assert table.clean_up(*past)[0] == 4
    assert set(table.read()["id"].to_pylist()) == {f"r{day}" for day in range(4, 10)}
    assert table.clean_up(*past)[0] == 0


KILLED = """
import signal, sys
from datetime import UTC, datetime
from core.settings import load_settings
from core.storage import Table
table = Table(load_settings(home=sys.argv[1]), sys.argv[2], None)
signal.setitimer(signal.ITIMER_PROF, float(sys.argv[3]))  # SIGPROF ends it
table.clean_up(None, datetime.now(UTC))
"""


def test_killed_anywhere_it_goes_on_the_next_time(worn, tmp_path):
    newest = worn.read()
    no_version_is_kept(worn)
    ended = set()
    for nth in range(8):
        copy = Table(new_settings(tmp_path), f"copy{nth}", SCHEMA)
        shutil.copytree(worn.path, copy.path)
        cpu_seconds = 0.001 + 0.02 * nth
        command = [commands_folder() / "python", "-c", KILLED, tmp_path, copy.name]
        done = subprocess.run([*command, str(cpu_seconds)], cwd=PROJECT, check=False)
        ended.add(done.returncode)
        copy.insert(rows([1000]), "id")  # whoever writes next finds a table
        copy.clean_up(None, BEGAN)
        assert copy.read().num_rows == newest.num_rows + 1
        assert files(copy)[0] == 1
    killed = 128 + signal.SIGPROF
    assert killed in ended
    assert ended <= {0, killed}


def test_it_stands_beside_writers_and_loses_none_of_their_rows(worn):
    no_version_is_kept(worn)
    stop, wrote = threading.Event(), []

    def write():
        while not stop.is_set():
            wrote.append(f"r{2000 + len(wrote)}")
            worn.insert(rows([1999 + len(wrote)]), "id")

    writer = threading.Thread(target=write)
    writer.start()
    while len(wrote) < 6:
        worn.clean_up(None, BEGAN)
        time.sleep(0.05)  # for the lock, who waits looks twenty times a second
    stop.set()
    writer.join()
    found = set(worn.read()["id"].to_pylist())
    assert found == {f"r{n}" for n in (*range(60), 100)} | set(wrote)


def test_rows_are_found_by_a_text_after_others_were_deleted(tmp_path):
    table = Table(new_settings(tmp_path), "aged", SCHEMA)
    table.insert(pa.concat_tables([rows([1]), rows([2, 3], BEGAN + 9 * DAY)]), "id")
    assert table.clean_up("received", BEGAN + DAY)[0] == 1
    assert table.read(columns=["value"], where=pc.field("id") == "r2").num_rows == 1
    assert table.read(where=pc.field("id").isin(["r1", "r3"]))["id"].to_pylist() == [
        "r3"
    ]


def test_what_is_purged_is_in_no_file_and_later_changes_can_be_told(worn):
    mine = "id = 'r7'"
    assert worn.matching(mine, "value") == [7]
    worn.erase(mine)
    kept, held = (
        worn.version,
        list[str](),
    )  # as features stand, which are computed before
    worn.purge()
    assert worn.changed_files(kept, worn.version) == ([], [])
    for path in worn.path.rglob("*"):
        if path.is_file():
            held.append(path.read_text("latin-1"))
            if path.suffix == ".parquet":
                held.append(str(pq.read_table(path).to_pylist()))
    assert not [text for text in held if re.search(r"\br7\b", text)]
    assert worn.matching(mine, "value") == []
    assert worn.read().num_rows == 60
    with pytest.raises(DataError, match="vacuumed or never here"):
        worn.read(3)
    worn.merge(rows([61]), ["id"], ["value"])
    came, went = worn.changed_files(kept, worn.version)
    assert (len(came), went) == (1, [])

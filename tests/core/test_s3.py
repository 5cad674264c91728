"""Tables, feature files and reports on S3: what a folder promises holds there too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.errors import DataError
from core.settings import PROJECT
from core.storage import Table
from tests.conftest import at_most, new_settings
from tests.postgres import postgres_server
from tests.s3 import s3_server

SCHEMA = pa.schema(
    {"id": pa.string(), "n": pa.int64(), "at": pa.timestamp("us", tz="UTC")}
)
AT, DAY = datetime(2026, 11, 20, tzinfo=UTC), timedelta(days=1)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    folder = tmp_path_factory.mktemp("s3")
    with pytest.MonkeyPatch.context() as patch, s3_server(folder, patch) as server:
        yield server


def rows(*numbers, at=AT):
    return pa.table(
        [[f"r{n}" for n in numbers], [*numbers], [at] * len(numbers)], SCHEMA
    )


def hosts(folder, count=2, **more):
    url = f"s3://gyre/a/{folder.name}"
    return [
        new_settings(folder / f"host {n}", data_url=url, **more) for n in range(count)
    ]


def test_a_table_is_the_same_from_every_host(bucket, tmp_path):
    one, other = (Table(settings, "raw/t", SCHEMA) for settings in hosts(tmp_path))
    assert (one.exists, one.version, one.files()) == (False, -1, [])
    one.merge(rows(1, 2), ["id"], ["n"])
    assert other.merge(rows(2, 3), ["id"], ["n"]) == {"inserted": 1, "replaced": 0}
    assert one.insert(rows(3, 4, at=AT + DAY), "id") == 1
    assert sorted(one.read()["id"].to_pylist()) == ["r1", "r2", "r3", "r4"]
    assert other.newest("at") == AT + DAY
    since, files = one.version, one.files()
    one.compact()
    came, went = one.changed_files(since, one.version)
    assert sum(pq.read_table(file).num_rows for file in one.copies(came)) == 4
    assert sorted(one.copies(went)) == sorted(files)
    assert one.clean_up("at", AT + DAY)[0] == 3
    assert other.read()["id"].to_pylist() == ["r4"]


WRITER = """
import sys
import time
from core.settings import load_settings
from core.storage import Table
from tests.core.test_s3 import SCHEMA, rows
first = int(sys.argv[1])
for n in range(first, first + 12):
    Table(load_settings(), "raw/t", SCHEMA).insert(rows(0, n), "id")
"""


def started(settings, first):
    variables = {
        "GYRE_HOME": str(settings.home),
        "GYRE_DATA_URL": settings.data_url or "",
    }
    if settings.database_url:
        variables["GYRE_DATABASE_URL"] = settings.database_url
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(first)],
        cwd=PROJECT,
        env=os.environ | variables,
    )


@pytest.mark.nightly
def test_two_hosts_that_write_at_once_lose_nothing_and_double_nothing(bucket, tmp_path):
    with postgres_server(tmp_path / "postgres.log") as postgres:
        both = hosts(tmp_path, database_url=postgres.address)
        writers = [started(settings, 100 * n) for n, settings in enumerate(both, 1)]
        assert [writer.wait(600) for writer in writers] == [0, 0]
        found = sorted(Table(both[0], "raw/t", SCHEMA).read()["n"].to_pylist())
        assert found == [0, *range(100, 112), *range(200, 212)]


@pytest.mark.timed
def test_a_bucket_that_goes_away_leaves_the_old_rows_and_the_next_write_is_whole(
    bucket, tmp_path
):
    (settings,) = hosts(tmp_path, 1)
    table = Table(settings, "raw/t", SCHEMA)
    table.insert(rows(1), "id")
    bucket.send_signal(signal.SIGSTOP)
    began = time.monotonic()
    with ThreadPoolExecutor() as threads:
        write = threads.submit(table.merge, rows(1, 2), ["id"], ["n"])
        with pytest.raises(DataError, match="table raw/t: "):
            write.result()
    assert time.monotonic() - began < at_most(90)
    bucket.send_signal(signal.SIGCONT)
    assert table.read()["id"].to_pylist() == ["r1"]
    table.merge(rows(1, 2), ["id"], ["n"])
    assert sorted(table.read()["id"].to_pylist()) == ["r1", "r2"]

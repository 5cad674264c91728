"""Tables, feature files and reports on S3: what a folder promises holds there too."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.settings import PROJECT
from core.storage import Table
from tests.conftest import new_settings
from tests.postgres import postgres_server
from tests.s3 import s3_server

SCHEMA = pa.schema(
    {"id": pa.string(), "n": pa.int64(), "at": pa.timestamp("us", tz="UTC")}
)
AT = datetime(2026, 11, 20, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    with s3_server(tmp_path, monkeypatch):
        yield


def rows(*numbers, at=AT):
    return pa.table(
        [[f"r{n}" for n in numbers], [*numbers], [at] * len(numbers)], SCHEMA
    )


def hosts(folder, **more):
    url = f"s3://gyre/a/{folder.name}"
    return [new_settings(folder / f"host {n}", data_url=url, **more) for n in (1, 2)]


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
from core.settings import load_settings
from core.storage import Table
from tests.core.test_s3 import SCHEMA, rows
first = int(sys.argv[1])
for n in range(first, first + 12):
    Table(load_settings(), "raw/t", SCHEMA).insert(rows(0, n), "id")
"""


def start_writer(settings, first):
    variables = {
        "GYRE_HOME": str(settings.home),
        "GYRE_DATA_URL": settings.data_url,
        "GYRE_DATABASE_URL": settings.database_url,
    }
    command = [sys.executable, "-c", WRITER, str(first)]
    return subprocess.Popen(command, cwd=PROJECT, env=os.environ | variables)


@pytest.mark.nightly
def test_two_hosts_that_write_at_once_lose_nothing_and_double_nothing(bucket, tmp_path):
    with postgres_server(tmp_path / "postgres.log") as postgres:
        first, second = hosts(tmp_path, database_url=postgres.address)
        writers = [start_writer(first, 100), start_writer(second, 200)]
        assert [writer.wait(600) for writer in writers] == [0, 0]
        numbers = Table(first, "raw/t", SCHEMA).read()["n"].to_pylist()
        assert sorted(numbers) == [0, *range(100, 112), *range(200, 212)]

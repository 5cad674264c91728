"""Tables, feature files and reports on S3: what a folder promises holds there too."""

import os
import subprocess
import sys
from datetime import UTC, datetime

import pyarrow as pa
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


def rows(*numbers):
    columns = [[f"r{n}" for n in numbers], [*numbers], [AT] * len(numbers)]
    return pa.table(columns, SCHEMA)


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
def test_two_hosts_that_write_at_once_neither_lose_nor_repeat_a_row(
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
        numbers = Table(first, "raw/t", SCHEMA).read()["n"].to_pylist()
        assert sorted(numbers) == [0, *range(100, 112), *range(200, 212)]

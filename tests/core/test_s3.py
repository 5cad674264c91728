"""Tables, feature files and reports on S3: what a folder promises holds there too."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from core.storage import Table
from tests.conftest import new_settings
from tests.s3 import s3_server

SCHEMA = pa.schema({"id": pa.string(), "n": pa.int64(), "at": pa.timestamp("us", tz="UTC")})
AT, DAY = datetime(2026, 11, 20, tzinfo=UTC), timedelta(days=1)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    with s3_server(tmp_path, monkeypatch) as server:
        yield server


def rows(*numbers, at=AT):
    return pa.table([[f"r{n}" for n in numbers], [*numbers], [at] * len(numbers)], SCHEMA)


def hosts(folder, count=2):
    return [new_settings(folder / f"host {n}", data_url="s3://gyre/a/b") for n in range(count)]


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
    assert sum(pa.parquet.read_table(file).num_rows for file in came) == 4
    assert sorted(went) == sorted(files)
    assert one.clean_up("at", AT + DAY)[0] == 3
    assert other.read()["id"].to_pylist() == ["r4"]


WRITER = """
import sys
from core.settings import load_settings
from tests.core.test_s3 import SCHEMA, Table, rows
settings = load_settings(home=sys.argv[1], data_url="s3://gyre/a/b")
table = Table(settings, "raw/t", SCHEMA)
for n in range(int(sys.argv[2]), int(sys.argv[2]) + 12):
    table.insert(rows(0, n), "id")
"""

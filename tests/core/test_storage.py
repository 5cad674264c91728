"""A row is appended once, and what decides that is read no wider than needed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from core.storage import Table
from tests.conftest import new_settings

SCHEMA_OF_DAYS = pa.schema({"day": pa.string(), "n": pa.int64()})

SCHEMA = pa.schema({"id": pa.string(), "received": pa.timestamp("us", tz="UTC")})
BEGAN, DAY = datetime(2026, 11, 20, tzinfo=UTC), timedelta(days=1)


def rows(*at):
    return pa.table([[f"{each}" for each in at], list(at)], SCHEMA)


def test_a_row_again_is_known_by_its_time_to_the_microsecond(tmp_path):
    table = Table(new_settings(tmp_path), "table", SCHEMA)
    for micro in (0, 1, 499, 500, 501, 999, 1_001, 999_999):
        row = rows(BEGAN + timedelta(microseconds=micro))
        assert [table.insert(row, "id", beside="received") for _ in range(2)] == [1, 0]
    assert table.insert(rows(), "id", beside="received") == 0


def test_what_is_of_another_time_is_not_read(tmp_path):
    table = Table(new_settings(tmp_path), "table", SCHEMA)
    for day in range(3):
        table.insert(rows(BEGAN + day * DAY), "id", beside="received")
    for file in map(
        Path, table.files(within=f"received < '{(BEGAN + DAY).isoformat()}'")
    ):
        file.unlink()
    assert (
        table.insert(rows(BEGAN + DAY, BEGAN + 3 * DAY), "id", beside="received") == 1
    )


def test_files_are_found_whatever_the_folder_is_called(tmp_path):
    table = Table(
        new_settings(tmp_path / "my home, 100 % größer"), "table", SCHEMA_OF_DAYS
    )
    for day in ("a b", "1 %/2"):
        table.replace(pa.table({"day": [day], "n": [1]}, SCHEMA_OF_DAYS), ["day"])
    files = table.files(within="n = 1")
    assert len(files) == 2
    assert all(Path(file).is_absolute() and Path(file).is_file() for file in files)
    assert table.files(within="n = 2") == []

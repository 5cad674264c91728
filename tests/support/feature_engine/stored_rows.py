"""Rows of a table, each with its own microsecond."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa

TIME = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema({"id": pa.string(), "value": pa.int64(), "received": TIME})
BEGAN = datetime(2026, 11, 20, tzinfo=UTC)


def rows(*numbers, value=0):
    """A row of each number, which is also its microsecond."""
    columns = {
        "id": [f"r{number}" for number in numbers],
        "value": [value] * len(numbers),
        "received": [BEGAN + timedelta(microseconds=number) for number in numbers],
    }
    return pa.table(columns, SCHEMA)

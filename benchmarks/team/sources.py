"""How much of ten million rows an ingest reads: `python -m benchmarks.team.sources`.

MariaDB (Debian's package) and Iceberg on S3 (moto's server) hold 10,000,000 orders of 1,000 days,
10,000 a day. Rows are asked for as an ingest asks: those of the look-back of seven days, and one
more day. MariaDB's own counter says how many rows it read, and the server's log which files were sent.
`--rows` takes another number.
"""

import argparse
import os
import re
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from core.settings import Settings
from feature_engine.ingest.source import pull
from feature_repo.datasets import load_dataset
from tests.conftest import new_settings
from tests.support.stores.iceberg import use_catalog
from tests.support.stores.mariadb import MariaDB, mariadb_server
from tests.support.stores.s3 import s3_server, variables

DAYS = 1_000
ORDERS = load_dataset("orders")
END = datetime(2026, 11, 1, tzinfo=UTC)
DAY = timedelta(days=1)
SINCE = END - ORDERS.look_back - DAY
TABLE = """
USE gyre;
CREATE TABLE orders (order_id bigint PRIMARY KEY, customer_id bigint, order_ts datetime,
  number_of_cds bigint, dollar_value double, INDEX (order_ts));
INSERT INTO orders SELECT seq, seq % 500000, '{start:%F %T}' + INTERVAL FLOOR(seq / {daily}) DAY,
  1, 9.5 FROM seq_0_to_{last};
"""
READ = "SHOW GLOBAL STATUS LIKE 'Rows_read'"


def rows_since(settings: Settings) -> tuple[int, float]:
    """Read as an ingest does; return the number of rows, and seconds."""
    start = time.perf_counter()
    count = pull(settings, ORDERS, END, SINCE).read_all().num_rows
    return count, time.perf_counter() - start


def rows_read(server: MariaDB) -> int:
    return int(server.run(READ).stdout.split()[1])


def measure_mariadb(folder: Path, row_count: int) -> str:
    daily = row_count // DAYS
    with mariadb_server(folder / "mariadb.log") as server:
        script = TABLE.format(start=END - DAYS * DAY, daily=daily, last=row_count - 1)
        made = server.run(script)
        assert made.returncode == 0, made.stderr
        settings = new_settings(
            folder / "mariadb",
            sources={"orders": f"{server.address}#orders"},
            time_zones={"orders": "UTC"},
        )
        before = rows_read(server)
        count, seconds = rows_since(settings)
        read_count = rows_read(server) - before
    return (
        f"MariaDB: {count:,} rows asked for, {read_count:,} of {row_count:,} rows read, "
        f"{seconds:.1f} s"
    )


def measure_iceberg(folder: Path, row_count: int) -> str:
    daily = row_count // DAYS
    with pytest.MonkeyPatch.context() as monkeypatch, s3_server(folder, monkeypatch):
        endpoint = variables(0)
        catalog = use_catalog(
            monkeypatch,
            "lake",
            folder,
            warehouse="s3://gyre/lake",
            S3__ENDPOINT=os.environ["AWS_ENDPOINT_URL"],
            S3__ACCESS_KEY_ID=endpoint["AWS_ACCESS_KEY_ID"],
            S3__SECRET_ACCESS_KEY=endpoint["AWS_SECRET_ACCESS_KEY"],
            S3__REGION=endpoint["AWS_DEFAULT_REGION"],
        )
        table = catalog.create_table("shop.orders", schema=ORDERS.schema)
        for first_day in range(0, DAYS, 10):
            days = np.repeat(np.arange(first_day, first_day + 10), daily)
            times = [
                END - (DAYS - day) * DAY for day in range(first_day, first_day + 10)
            ]
            numbers = np.arange(first_day * daily, (first_day + 10) * daily)
            moments = pa.array(times, pa.timestamp("us", "UTC"))
            rows = {
                "order_id": numbers,
                "customer_id": numbers % 500_000,
                "order_ts": moments.take(pa.array(days - first_day)),
                "number_of_cds": np.ones(len(numbers), np.int64),
                "dollar_value": np.full(len(numbers), 9.5),
            }
            table.append(pa.table(rows, schema=ORDERS.schema))
        settings = new_settings(
            folder / "iceberg", sources={"orders": "iceberg://lake#shop.orders"}
        )
        log = folder / "s3.log"
        start = log.stat().st_size
        count, seconds = rows_since(settings)
        requests = log.read_text()[start:]
    files = set(re.findall(r'"GET (\S+\.parquet)', requests))
    return (
        f"Iceberg on S3: {count:,} rows asked for, {len(files)} of {DAYS // 10} files read "
        f"({len(files) * 10 * daily:,} rows), {seconds:.1f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    row_count = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as name:
        print(measure_mariadb(Path(name), row_count))
        print(measure_iceberg(Path(name), row_count))


if __name__ == "__main__":
    main()

"""Tables of a team that Gyre writes, in every kind of store: addresses, and what they hold."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pytest
import sqlalchemy as sql
from deltalake import DeltaTable
from pyarrow import parquet

from core.connectors.sink import TIME
from core.files import location, read_file
from tests.support.stores.iceberg import use_catalog
from tests.support.stores.mariadb import mariadb_server
from tests.support.stores.postgres import postgres_server
from tests.support.stores.s3 import BUCKET, s3_server

KINDS = ("postgres", "mariadb", "delta", "delta on s3", "iceberg", "files", "s3")

TODAY = date(2026, 11, 20)
AS_OF = datetime(2026, 11, 20, 3, 4, 5, 678, tzinfo=UTC)


def score_rows(
    count: int, day: date = TODAY, model: str = "churn", probability: float = 0.5
) -> pa.Table:
    """Rows of scores of entities with two keys; texts have what a writer must escape."""
    shops = [f"ä\t\"\\N'{number}" for number in range(1, count)]
    columns = {
        "model": pa.array([model] * count),
        "day": pa.array([day] * count),
        "customer_id": pa.array(range(count), pa.int64()),
        "shop": pa.array(["", *shops][:count]),
        "as_of": pa.array([AS_OF] * count, TIME),
        "probability": pa.array([probability] * count),
        "prediction": pa.array([None] * count, pa.float64()),
        "probabilities": pa.array([None] * count, pa.string()),
    }
    return pa.table(columns)


@dataclass(frozen=True)
class Sink:
    """A table: its address and its rows; a number that changes once a writer writes to it."""

    address: str
    read: Callable[[], list[dict[str, Any]]]
    progress: Callable[[], int]


@contextmanager
def sink(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sink]:
    """A place for a table that is not there yet."""
    if kind == "postgres":
        with postgres_server(folder / "postgres.log") as server:
            busy = (
                "SELECT count(*) FROM pg_stat_progress_copy WHERE tuples_processed > 9"
            )
            yield database(server.address, "postgresql+psycopg", busy)
    elif kind == "mariadb":
        with mariadb_server(folder / "mariadb.log") as server:
            # Only the server's own user sees it.
            grant = "GRANT PROCESS ON *.* TO gyre@'127.0.0.1'"
            assert server.run(grant).returncode == 0
            busy = "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_rows_modified > 9"
            yield database(server.address, "mysql+pymysql", busy)
    elif kind == "iceberg":
        yield iceberg(folder, monkeypatch)
    elif kind.endswith("s3"):
        with s3_server(folder, monkeypatch):
            yield of_files(f"s3://{BUCKET}/team/scores", "delta" in kind)
    else:
        yield of_files(str(folder / "team" / "scores"), kind == "delta")


def database(address: str, driver: str, busy: str) -> Sink:
    url = f"{driver}://{address.partition('://')[2]}"
    engine = sql.create_engine(url, poolclass=sql.NullPool)

    def rows(query: str) -> list[dict[str, Any]]:
        with engine.connect() as connection:
            return [dict(row) for row in connection.execute(sql.text(query)).mappings()]

    def read() -> list[dict[str, Any]]:
        is_there = sql.inspect(engine).has_table("scores")
        return rows("SELECT * FROM scores") if is_there else []

    def progress() -> int:
        (count,) = rows(busy)[0].values()
        return int(count)

    return Sink(f"{address}#scores", read, progress)


def iceberg(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Sink:
    catalog = use_catalog(monkeypatch, "team", folder)
    name = f"ml.scores_{uuid4().hex}"

    def read() -> list[dict[str, Any]]:
        if not catalog.table_exists(name):
            return []
        return catalog.load_table(name).scan().to_arrow().to_pylist()

    return Sink(f"iceberg://team#{name}", read, lambda: len(below(str(folder), "*")))


def of_files(address: str, is_delta: bool) -> Sink:
    def read() -> list[dict[str, Any]]:
        if not is_delta:
            return rows_of_files(address)
        if not DeltaTable.is_deltatable(address):
            return []
        return DeltaTable(address).to_pyarrow_table().to_pylist()

    place = f"{address}#delta" if is_delta else address
    return Sink(place, read, lambda: len(below(address, "*")))


def rows_of_files(address: str) -> list[dict[str, Any]]:
    """The folder's name is the model."""
    rows = []
    for file in sorted(below(address, "*.parquet")):
        model = file.parent.name.removeprefix("model=")
        table = parquet.read_table(BytesIO(read_file(file)))
        rows += [{"model": model} | row for row in table.to_pylist()]
    return rows


def below(address: str, pattern: str) -> list[Any]:
    return [*location(address).glob(f"**/{pattern}")]

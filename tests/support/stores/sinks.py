"""Tables of a team that Gyre writes, in every kind of store: addresses, and what they hold."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sql
from deltalake import DeltaTable
from pyarrow import parquet

from core.connectors.sink import TIME
from core.files import location, read_file

PART = ("model", "day", "probability")

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
    """A table: its address and its rows; a number that changes once a writer writes to it.

    Attributes:
        address: Of the table.
        read: Returns its rows.
        counts: Returns the number of rows for each model, day and probability.
        progress: Returns the number.
        many: So many rows that a writer can be killed while it writes them.

    """

    address: str
    read: Callable[[], list[dict[str, Any]]]
    counts: Callable[[], dict[tuple[Any, ...], int]]
    progress: Callable[[], int]
    many: int = 200_000


def postgres(server_address: str, table: str) -> Sink:
    busy = "SELECT count(*) FROM pg_stat_progress_copy WHERE tuples_processed > 9"
    return database(server_address, "postgresql+psycopg", table, busy)


def mariadb(server_address: str, table: str) -> Sink:
    busy = (
        "SELECT count(*) FROM information_schema.innodb_trx WHERE trx_rows_modified > 9"
    )
    # Rows go there one statement after the other, and slowly.
    return database(server_address, "mysql+pymysql", table, busy, many=100_000)


def database(
    server_address: str, driver: str, table: str, busy: str, **more: Any
) -> Sink:
    url = f"{driver}://{server_address.partition('://')[2]}"
    engine = sql.create_engine(url, poolclass=sql.NullPool)

    def rows(query: str) -> list[dict[str, Any]]:
        with engine.connect() as connection:
            return [dict(row) for row in connection.execute(sql.text(query)).mappings()]

    def read() -> list[dict[str, Any]]:
        is_there = sql.inspect(engine).has_table(table)
        return rows(f"SELECT * FROM {table}") if is_there else []

    def counts() -> dict[tuple[Any, ...], int]:
        names = ", ".join(PART)
        query = f"SELECT {names}, count(*) AS number FROM {table} GROUP BY {names}"
        return counts_of(rows(query), "number")

    def progress() -> int:
        (count,) = rows(busy)[0].values()
        return int(count)

    return Sink(f"{server_address}#{table}", read, counts, progress, **more)


def iceberg(catalog: Any, name: str, folder: Path) -> Sink:
    """A table of the catalog `team`, whose files are below a folder."""

    def table() -> pa.Table:
        return catalog.load_table(name).scan().to_arrow()

    def read() -> list[dict[str, Any]]:
        return table().to_pylist() if catalog.table_exists(name) else []

    def progress() -> int:
        return len(below(str(folder), "*"))

    return Sink(f"iceberg://team#{name}", read, lambda: arrow_counts(table()), progress)


def files(address: str) -> Sink:
    """Files below a folder or in a bucket."""

    def table() -> pa.Table:
        parts = [with_model(file) for file in sorted(below(address, "*.parquet"))]
        return pa.concat_tables(parts)

    def read() -> list[dict[str, Any]]:
        return table().to_pylist() if below(address, "*.parquet") else []

    return Sink(
        address,
        read,
        lambda: arrow_counts(table()),
        lambda: len(below(address, "*")),
    )


def delta(address: str) -> Sink:
    def table() -> pa.Table:
        return DeltaTable(address).to_pyarrow_table()

    def read() -> list[dict[str, Any]]:
        return table().to_pylist() if DeltaTable.is_deltatable(address) else []

    return Sink(
        f"{address}#delta",
        read,
        lambda: arrow_counts(table()),
        lambda: len(below(address, "*")),
    )


def with_model(file: Any) -> pa.Table:
    """Return the rows of a file; its folder's name is the model."""
    model = file.parent.name.removeprefix("model=")
    rows = parquet.read_table(BytesIO(read_file(file)))
    return rows.append_column("model", pa.array([model] * rows.num_rows))


def arrow_counts(table: pa.Table) -> dict[tuple[Any, ...], int]:
    parts = table.group_by([*PART]).aggregate([([], "count_all")])
    return counts_of(parts.to_pylist(), "count_all")


def counts_of(rows: list[dict[str, Any]], number: str) -> dict[tuple[Any, ...], int]:
    return {tuple(row[name] for name in PART): row[number] for row in rows}


def below(address: str, pattern: str) -> list[Any]:
    return [*location(address).glob(f"**/{pattern}")]
